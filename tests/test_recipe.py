"""Recipes: every problem at once with its line, no key unknown, and a hash of what decides the run."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.errors import RecipeError
from cai.recipe import Recipe, load_recipe, recipe_schema


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "first-try.yaml"


def load(path: Path, text: str, *overrides: str) -> Recipe:
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def problems(path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as e:
        load(path, text, *overrides)
    return str(e.value).replace(str(path), "F")


def test_an_empty_mapping_is_the_defaults_named_after_the_file(path: Path) -> None:
    assert load(path, "{}") == Recipe(name="first-try")


def test_settings_reach_their_place(path: Path) -> None:
    recipe = load(path, "seed: 3\npolicy:\n  learning_rate: 2e-4\n  lora: {rank: 4}\nprompts:\n  train: [{path: x.jsonl, kind: harmful}]\n")
    assert (recipe.seed, recipe.policy.learning_rate, recipe.policy.lora.rank, recipe.policy.lora.alpha) == (3, 2e-4, 4, 32)
    assert recipe.prompts.train[0].kind == "harmful"
    assert recipe.prompts.evaluate == Recipe(name="x").prompts.evaluate


def test_a_setting_of_earlier_versions_is_left_out_at_its_default_and_else_refused_with_what_to_do(path: Path) -> None:
    old = "policy: {ppo: {kl_estimator: k1, target_kl: null, kl_horizon: 10000, kl_coef: 0.1}, dpo: {ld_alpha: null, sft_weight: 0.0}}"
    assert load(path, old) == load(path, "policy: {ppo: {kl_coef: 0.1}}")
    told = problems(path, "policy:\n  ppo: {kl_estimator: k3, target_kl: 6}\n  dpo: {sft_weight: 0.1}")
    assert "F: 3 problems" in told and "known:" not in told
    assert "F:2: policy.ppo.kl_estimator: this setting is gone: k3 as a reward is no gradient of the KL divergence" in told
    assert "F:2: policy.ppo.target_kl: this setting is gone: the KL coefficient is constant; set policy.ppo.kl_coef" in told
    assert "F:3: policy.dpo.sft_weight: this setting is gone: " in told
    assert "--set policy.dpo.ld_alpha=0.5: policy.dpo.ld_alpha: this setting is gone" in problems(path, "{}", "policy.dpo.ld_alpha=0.5")


def test_a_renamed_setting_works_with_a_warning(path: Path) -> None:
    with pytest.warns(
        FutureWarning, match=r":2: preferences\.ai_weight is now preferences\.ai\.weight; the old name works in this release"
    ):
        found = load(path, "preferences:\n  ai_weight: 2\n  ai: { noise: 0.1 }")
    assert (found.preferences.ai.weight, found.preferences.ai.noise) == (2, 0.1)
    with pytest.warns(FutureWarning, match=r"--set preferences\.contrast_weight=0: "):
        assert load(path, "{}", "preferences.contrast_weight=0").preferences.contrast.weight == 0
    with pytest.warns(FutureWarning):
        assert "F:1: preferences.ai_weight: preferences.ai.weight: must be a number" in problems(path, "preferences: {ai_weight: x}")
    twice = problems(path, "preferences: {ai_weight: 2, ai: {weight: 1}}")
    assert "F:1: preferences.ai_weight: is now preferences.ai.weight, which is set too. Leave one of them out" in twice
    assert load(path, "preferences: {ai_weight: 1.0}") == Recipe(name="first-try"), "a run's own recipe names every default"


@pytest.mark.parametrize("block", ["model: {path: %s}", "weights: {path: %s}", "feedback: {judge: {path: %s}}"])
def test_several_servers_of_one_model_stand_behind_a_router(path: Path, block: str) -> None:
    told = problems(path, block % "['http://a/v1', 'http://b/v1']")
    assert "F: 1 problem" in told and "path: takes one URL, not a list" in told and "vllm-router" in told


def test_label_smoothing_is_for_the_robust_loss(path: Path) -> None:
    assert load(path, "policy: {dpo: {loss: robust, label_smoothing: 0.1}}").policy.dpo.label_smoothing == 0.1
    assert "label_smoothing is for loss: robust; sigmoid has no use for it" in problems(path, "policy: {dpo: {label_smoothing: 0.1}}")


def test_a_constitution_in_a_recipes_place_is_named_as_one(path: Path) -> None:
    assert "this is a constitution, and a run takes a recipe.\nFix: run a recipe with it" in problems(path, "principles: []")


def test_all_problems_are_reported_at_once_with_their_lines(path: Path) -> None:
    text = """\
seed: -1
modle: {}
critique:
  rounds: 0
  sampling: {temperature: hot, top_k: 5}
prompts:
  train:
    - path: a.jsonl
    - kind: harmfull
policy:
  learning_rate: 0
  lora:
    rnak: 3
"""
    assert problems(path, text).splitlines() == [
        "F: 9 problems",
        "  F:1: seed: must be a whole number from 0 to 4294967295; found -1",
        "  F:2: modle: unknown key 'modle'. Did you mean 'model'?",
        "  F:4: critique.rounds: must be a whole number, at least 1; found 0",
        "  F:5: critique.sampling.temperature: must be a number from 0 to 5; found 'hot'",
        "  F:5: critique.sampling.top_k: unknown key 'top_k'. Did you mean 'top_p'?",
        "  F:9: prompts.train[1].kind: 'harmfull' is none of borderline, harmful, helpful, other. Did you mean 'harmful'?",
        "  F:9: prompts.train[1]: 'path' is missing",
        "  F:11: policy.learning_rate: must be a number above 0; found 0",
        "  F:13: policy.lora.rnak: unknown key 'rnak'. Did you mean 'rank'?",
    ]


@pytest.mark.parametrize("text", ["[]", "just text", "3", ""])
def test_a_recipe_is_a_mapping(path: Path, text: str) -> None:
    assert problems(path, text).startswith("F: a recipe is a mapping of settings; found ")


@pytest.mark.parametrize(
    "text",
    [
        "name: ../escape",
        "name: a/b",
        "name: ''",
        "name: .hidden",
        f"name: {'x' * 65}",
        "name: null",
        "seed: 4294967296",
        "seed: 1.5",
        "seed: true",
        "window: 0",
        "policy: {epochs: .nan}",
        "policy: {epochs: .inf}",
        "critique:",
        "model: {api_key: sk-secret}",
        "model: {path: [a]}",
        "feedback: {protocol: vote}",
        "feedback: {cot_clamp: [0.1]}",
        "feedback: {judge: embedded}",
        "preferences: {min_margin: 0.6}",
        "preferences: {human: [{path: x, weight: -1}]}",
    ],
)
def test_values_out_of_range_or_type_are_refused(path: Path, text: str) -> None:
    assert problems(path, text).startswith("F: 1 problem\n  F:1: ")


def test_overrides_change_one_value_and_are_read_like_the_file(path: Path) -> None:
    overrides = (
        "critique.rounds=3",
        "policy.learning_rate=1e-3",
        "model.name=yes",
        "feedback.judge.path=http://h:8000/v1",
        "description=a=b",
    )
    recipe = load(path, "critique: {rounds: 2, train_on: every}", *overrides)
    assert (recipe.critique.rounds, recipe.critique.train_on, recipe.policy.learning_rate, recipe.model.name) == (3, "every", 1e-3, "yes")
    assert recipe.feedback.judge is not None and recipe.feedback.judge.path == "http://h:8000/v1"
    assert recipe.description == "a=b"
    assert load(path, "{}", "feedback.judge=null").feedback.judge is None


def test_the_last_override_wins_and_the_name_has_its_own(path: Path) -> None:
    assert load(path, "seed: 1", "seed=2", "seed=3").seed == 3
    path.write_text("name: here")
    assert load_recipe(path).name == "here"
    assert load_recipe(path, name="there").name == "there"
    with pytest.raises(RecipeError, match="name: 'no/where' does not match"):
        load_recipe(path, name="no/where")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("critique.rounds", "--set critique.rounds: expected key.path=value"),
        ("=3", "--set =3: expected key.path=value"),
        ("seed.deep=1", "--set seed.deep=1: unknown key 'seed.deep'; 'seed' is not a block of settings"),
        ("seed=[1", "--set seed:1: not valid YAML"),
        ("seed=!!python/name:os.system x", "--set seed:1: tags"),
        ("seed=\udcff", "--set seed: not text"),
        ("critique.ruonds=1", "--set critique.ruonds=1: unknown key 'critique.ruonds'. Did you mean 'critique.rounds'?"),
        ("critque.rounds=1", "--set critque.rounds=1: unknown key 'critque.rounds'. Did you mean 'critique.rounds'?"),
        ("rounds=1", "--set rounds=1: unknown key 'rounds'. Did you mean 'critique.rounds' or 'policy.rounds'?"),
        ("pairs.colour=1", "unknown key 'pairs.colour'; known: pairs.per_prompt, pairs.limit, pairs.sampling, pairs.contrast"),
        ("critique.rounds=none", "--set critique.rounds=none: critique.rounds: must be a whole number, at least 1; found 'none'"),
        ("pairs={contrats: true}", "--set pairs={contrats: true}: pairs.contrats: unknown key 'contrats'. Did you mean 'contrast'?"),
        ("critique..rounds=1", "unknown key 'critique..rounds'. Did you mean 'critique.rounds'?"),
    ],
)
def test_a_wrong_override_says_what_was_expected(path: Path, override: str, said: str) -> None:
    assert said in problems(path, "seed: 1", override)


def test_the_hash_is_of_every_setting_but_the_name_and_description(path: Path) -> None:
    base = load(path, "{}")
    assert load(path, "{name: other, description: words, seed: 0}").hash == base.hash
    changed = [
        "seed=1",
        "window=8",
        "model.path=other",
        "critique.sampling.temperature=0.5",
        "feedback.judge={path: embedded}",
        "policy.lora.rank=8",
    ]
    hashes = {load(path, "{}", one).hash for one in changed}
    assert len(hashes | {base.hash}) == len(changed) + 1


def test_defaults_are_legal_and_a_resolved_recipe_loads_as_itself(path: Path) -> None:
    recipe = load(path, "seed: 5\nfeedback: {protocol: pairwise-cot, judge: {path: embedded}}\nprompts: {train: [{path: a}]}")
    path.write_bytes(msgspec.yaml.encode(recipe))
    assert load_recipe(path) == recipe


def test_the_schema_knows_no_free_keys() -> None:
    definitions = recipe_schema()["$defs"]
    assert len(definitions) >= 15
    assert [name for name, d in definitions.items() if d.get("type") == "object" and d.get("additionalProperties") is not False] == []


@given(
    st.dictionaries(
        st.sampled_from([*Recipe.__struct_fields__, "x"]), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=3
    )
)
def test_any_mapping_is_a_recipe_or_a_recipe_error(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("any") / "r.yaml"
    path.write_bytes(msgspec.json.encode(data))
    try:
        assert load_recipe(path).hash
    except RecipeError as e:
        assert str(path) in str(e)
