"""What is looked at before anything runs. All problems at once are in test_pipeline."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cai.core.console import Reporter
from cai.errors import ModelError, RecipeError
from cai.judge.probe import write_probe
from cai.pipeline.setup_check import check_setup, local_prompts, prompt_warnings, spec_fingerprint
from cai.recipe import ModelSpec
from cai.train.rl.terms import TERMS
from tests.conftest import TINY_TEMPLATE
from tests.judge.judging import made_probe
from tests.workspaces import make_workspace, recipe_of, rows, run_data


def test_a_good_setup_gives_what_the_run_needs(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    constitution, fingerprint = check_setup(recipe_of(workspace), workspace)
    assert len(constitution.principles) >= 16 and fingerprint == "scripted:None:None"


def test_labels_whose_answers_can_not_be_read_are_refused_before_anything_runs(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    for rater, choice in (("ann", 0), ("bob", 1)):
        row = {"prompt": "Is it so?", "response_a": "Yes.", "response_b": "No.", "choice": choice, "annotator": rater}
        (workspace.root / f"{rater}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RecipeError, match=r"(?s)preferences\.human: .*ann\.jsonl, .*bob\.jsonl: .*found 0 \(1×\), 1 \(1×\).*--choices"):
        check_setup(recipe_of(workspace, "preferences.human=[{path: '*.jsonl'}]"), workspace)


def test_models_are_told_apart_before_they_are_opened(tiny_model_dir: Path) -> None:
    specs = [
        ModelSpec(path="scripted"),
        ModelSpec(path="scripted", name="b"),
        ModelSpec(path="http://127.0.0.1:1/v1", name="b"),
        ModelSpec(path=str(tiny_model_dir), precision="bfloat16"),
        ModelSpec(path=str(tiny_model_dir), precision="float32"),
    ]
    assert len({spec_fingerprint(s) for s in specs}) == len(specs)


def test_prompts_on_the_hub_are_not_looked_for_here(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    sources = "[{path: hub:owner/name}, {path: owner/other, format: hub}, {path: prompts/harmful.jsonl}]"
    recipe = recipe_of(workspace, f"prompts.train={sources}", "prompts.evaluate=[]")
    assert list(local_prompts(recipe, workspace.root)) == ["prompts/harmful.jsonl"]
    check_setup(recipe, workspace)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("prompts.train=[{path: prompts/none.jsonl}]", "prompts: .*none.jsonl: no such file"),
        ("prompts.train=[{path: 'prompts/none*.jsonl'}]", "no file matches this pattern"),
        ("prompts.train=[{path: ../secret.jsonl}]", "leaves the workspace"),
        ("preferences.human=[{path: labels.jsonl}]", "preferences.human: .*labels.jsonl"),
        ("feedback.bench_pairs=none.jsonl", "feedback.bench_pairs: .*none.jsonl"),
        ("weights={path: ./nowhere}", "nowhere"),
        ("policy={method: kto, batch_size: 1}", "policy.batch_size: 1"),
        ("policy={method: ppo, max_length: 128}", r"policy.ppo.response_length: 128 tokens .*max_length \(128\)"),
        ("policy={method: distill, max_length: 96, online: {max_tokens: 96}}", "policy.online.max_tokens: 96 tokens"),
        ("policy={method: rloo, max_length: 64, online: {max_tokens: 96}}", "policy.online.max_tokens: 96 tokens"),
        (
            "policy={method: grpo, max_length: 128, online: {max_tokens: 64, thinking_tokens: 64}}",
            r"policy.online.max_tokens \+ thinking_tokens: 128 tokens",
        ),
        ("policy={method: ppo, max_length: 192, ppo: {thinking_tokens: 64}}", r"policy.ppo.response_length \+ thinking_tokens: 192 tokens"),
        ("feedback={protocol: pairwise-cot, cot_clamp: [0.2, 0.9]}", r"feedback.cot_clamp: \[0.2, 0.9\] is not symmetric"),
        ("policy={method: grpo, batch_size: 6}", "a step of 6 completions can't be divided into groups of 8"),
        ("feedback.protocol=probe", "feedback.probe: no probe is named. Fit one to human labels with: cai judge fit"),
        ("feedback={protocol: probe, probe: none.json}", "feedback.probe: .*none.json: no such probe"),
        ("policy={method: grpo, online: {rewards: [{term: probe}]}}", "policy.online.rewards: feedback.probe: no probe is named"),
        (
            "feedback={protocol: probe, probe: p.json, judge: {path: 'http://127.0.0.1:1/v1'}}",
            "feedback.probe: http://127.0.0.1:1/v1 gives no",
        ),
        ("policy={method: best-of-n, max_length: 96, online: {max_tokens: 96}}", "policy.online.max_tokens: 96 tokens"),
        ("policy={method: best-of-n, online: {rewards: [{weight: 0}]}}", "policy.online.rewards: every weight is 0"),
        ("policy={method: best-of-n, online: {rewards: [{term: check}]}}", "policy.online.rewards: check: no principle of .* has a check"),
        ("reward.slices=parts", "reward.slices: parts needs at least 2 members, found 1"),
    ],
)
def test_what_is_missing_is_named_with_its_setting(tmp_path: Path, override: str, told: str) -> None:
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(RecipeError, match=told):
        check_setup(recipe_of(workspace, override), workspace)


def test_a_reward_term_says_itself_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    picky = replace(TERMS.get("length"), problems=lambda recipe, constitution: [f"length: {constitution.id} under {recipe.name}"])
    monkeypatch.setitem(TERMS._loaded, "length", picky)
    check_setup(recipe_of(workspace), workspace)
    recipe = recipe_of(workspace, "policy={online: {rewards: [{term: length}, {term: probe}, {term: length, words: 9}]}}")
    told = (
        r"2 configuration errors\n- policy.online.rewards: feedback.probe: no probe .*\n- policy.online.rewards: length: general under s$"
    )
    with pytest.raises(RecipeError, match=told):
        check_setup(recipe, workspace)


@pytest.mark.parametrize("role", ["model", "feedback.judge"])
def test_several_servers_are_refused_before_a_run_with_the_router_to_use(tmp_path: Path, role: str) -> None:
    workspace = make_workspace(tmp_path)
    recipe = recipe_of(workspace, f"{role}={{path: 'http://one:8000/v1, http://two:8000/v1'}}")
    with pytest.raises(RecipeError, match=r"vllm-router --worker-urls http://one:8000 http://two:8000"):
        check_setup(recipe, workspace, trains=False)


def test_a_kind_without_a_principle_is_told(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    fields = "".join(
        f"    {key}: Is it kind?\n" for key in ("statement", "critique", "revision", "ask_positive", "ask_negative", "compare")
    )
    text = f"id: one\nname: One\ndescription: d\nprinciples:\n  - id: p\n{fields}    applies_to: [helpful, harmful]\n"
    (workspace.root / "constitution" / "one.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"no principle of constitution/one.yaml applies to borderline$"):
        check_setup(recipe_of(workspace, "constitution=constitution/one.yaml"), workspace)


def test_a_run_without_training_may_use_a_server(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    recipe = recipe_of(workspace, "model.path=http://127.0.0.1:1/v1")
    check_setup(recipe, workspace, trains=False)
    check_setup(recipe_of(workspace, "model.path=http://127.0.0.1:1/v1", "weights={path: scripted}"), workspace)


def test_a_protocol_that_can_judge_by_no_principle_is_refused_before_the_run(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    recipe = recipe_of(workspace, "feedback.protocol=check")
    with pytest.raises(RecipeError, match=r"feedback.protocol: check can judge by no principle of constitution/"):
        check_setup(recipe, workspace)
    check_setup(recipe_of(workspace, "feedback.protocol=check", "constitution=constitution/starter.yaml"), workspace)


def test_a_probe_of_another_model_is_told_before_the_run(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    write_probe(workspace.root / "p.json", made_probe("local:another"))
    probing = ("feedback={protocol: probe, probe: p.json, bench_pairs: null}",)
    check_setup(recipe_of(workspace, *probing), workspace, trains=False)  # a script's fingerprint is known once it is opened
    with pytest.raises(RecipeError, match=r"feedback.probe was fitted on another model: on scripted in float32 \(local:another\)"):
        check_setup(recipe_of(workspace, *probing, f"model.path={tiny_model_dir}"), workspace, trains=False)


STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = TINY_TEMPLATE.replace("for m in messages", "for m in messages if m.role != 'assistant'")
SILENT = TINY_TEMPLATE.replace("{{ m['content'] }}", "")


class Warned(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(
    ("template", "told", "failed"),
    [
        (STRICT, "2 of 6 prompts (such as greeted) will be counted failures: the model's chat template can't write this conversation: ", 2),
        (
            FORGETFUL,
            "3 of 6 prompts (such as several) will be asked without their assistant turns, which the model's chat template leaves out",
            0,
        ),
    ],
    ids=["refuses", "drops"],
)
def test_what_a_chat_template_can_not_take_of_the_prompts_is_counted_before_the_run(
    template: str, told: str, failed: int, tmp_path: Path, tiny_model_dir: Path
) -> None:
    workspace = make_workspace(tmp_path / "w")
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    turn = {"u": "user", "a": "assistant", "s": "system"}
    for file, shapes in (
        ("train", {"plain": "su", "several": "suau", "greeted": "au", "again": "saau"}),
        ("shown", {"one": "u", "two": "su"}),
    ):
        with (workspace.root / "prompts" / f"{file}.jsonl").open("w") as f:
            for name, roles in shapes.items():
                messages = [{"role": turn[role], "content": f"{name} {i}"} for i, role in enumerate(roles)]
                f.write(json.dumps({"id": name, "kind": "helpful", "messages": messages}) + "\n")
    prompts = "prompts={train: [{path: prompts/train.jsonl}], evaluate: [{path: prompts/shown.jsonl}]}"
    settings = (prompts, "respond={kinds: [helpful], sampling: {max_tokens: 1}}", "max_failure_fraction=1.0")
    reporter = Warned()
    run_data(workspace, *settings, f"model.path={model}", only=("respond",), reporter=reporter)
    (warning,) = [w for w in reporter.warnings if w.startswith(f"{model}: ")]
    assert warning.startswith(f"{model}: {told}")
    assert sum(f["reason"] == "template_refused" for f in rows(workspace.run("s").failures)) == failed
    assert not list(prompt_warnings(recipe_of(workspace, prompts, f"model.path={tiny_model_dir}"), workspace))
    served = recipe_of(workspace, prompts, "model.path=http://127.0.0.1:1/v1", f"weights={{path: {model}}}")
    told = told.replace("will be counted failures", "will stop the training, unless you remove them")
    assert [w.startswith(f"{model}: {told}") for w in prompt_warnings(served, workspace)] == [True], "no server is asked"
    (model / "chat_template.jinja").write_text(SILENT)
    with pytest.raises(ModelError, match="leaves out what the user says"):
        list(prompt_warnings(recipe_of(workspace, prompts, f"feedback.judge={{path: {model}}}"), workspace))
