"""The ten stages on a tiny real model: from prompts to report, twice, and through an interruption."""

import gc
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from cai.core.console import Reporter
from cai.core.jsonl import read_records
from cai.core.manifest import read_manifest
from cai.core.status import STAGE_NAMES, run_status
from cai.core.workspace import Workspace, file_hash
from cai.errors import RecipeError
from cai.models.base import TextModel
from cai.models.opening import open_engine
from cai.models.requests import Completion, Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.pipeline.driver import RunSummary, run_recipe
from cai.pipeline.run import Run
from cai.pipeline.stages import STAGES
from cai.recipe import ModelSpec, load_recipe
from cai.records import Preference, ResponsePair, ScoredPair
from tests.pipeline.tiny_runs import CONSTITUTION, tiny_workspace
from tests.workspaces import Interrupting, calls_made, data_bytes, make_workspace, recipe_of, rows, run_data


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, RunSummary]:
    """A workspace whose run has gone from prompts to report; tests must leave it as it is."""
    workspace = tiny_workspace(tmp_path_factory.mktemp("whole") / "w", tiny_model_dir)
    return workspace, run_recipe(recipe_of(workspace), workspace, STAGES, Reporter(), command="cai run runs/s.yaml")


@pytest.fixture
def copied(whole: tuple[Workspace, RunSummary], tmp_path: Path) -> Workspace:
    """The same in a folder of the test's own."""
    return Workspace(shutil.copytree(whole[0].root, tmp_path / "w"))


def counts_of(summary: RunSummary) -> dict[str, dict[str, int]]:
    return {s.name: dict(s.counts) for s in summary.stages}


def test_a_run_makes_data_in_the_order_of_the_stages(whole: tuple[Workspace, RunSummary]) -> None:
    workspace, made = whole
    assert [s.name for s in made.stages] == [s.name for s in STAGES if s.name not in ("distill", "blend")]
    assert [s.name for s in STAGES] == list(STAGE_NAMES)
    counts = counts_of(made)
    truncated = counts["respond"].pop("truncated")
    assert counts["respond"] == {"prompts": 12, "evaluation_prompts": 6, "responses": 12}
    assert 6 < truncated <= 12, "a random model seldom ends a turn; how seldom depends on the processor's rounding"
    assert counts["pairs"]["sampled"] > 0 and counts["pairs"]["contrast"] > 0
    assert {"ai:pointwise-contrast", "contrast"} <= {p["source"] for p in rows(workspace.run("s").data("preferences"))}


def test_a_run_trains_every_model(whole: tuple[Workspace, RunSummary]) -> None:
    workspace, made = whole
    run, counts = workspace.run("s"), counts_of(made)
    assert counts["sft"]["examples"] > 0 and counts["sft"]["steps"] > 0 and counts["policy"]["steps"] > 0
    assert counts["reward"]["members"] == 2
    for name in ("sft", "reward-0", "reward-1", "policy"):
        assert (run.model(name) / "adapter_model.safetensors").stat().st_size > 0
    assert {m["stage"] for m in rows(run.metrics)} == {"sft", "reward", "policy"}


def test_a_run_measures_every_model(whole: tuple[Workspace, RunSummary]) -> None:
    run = whole[0].run("s")
    measured = {(r["name"], r["model"]) for r in rows(run.data("evaluation"))}
    assert {("harmful_compliance", m) for m in ("base", "sft", "policy")} <= measured
    assert any(name.startswith("win_rate") and model == "policy" for name, model in measured)
    assert {("reward_accuracy", m) for m in ("ensemble", "reward-0", "reward-1")} <= measured
    assert {("reward_disagreement", m) for m in ("base", "sft", "policy")} <= measured
    assert {(name, m) for name in ("truthful", "perplexity") for m in ("base", "sft", "policy")} <= measured
    samples = rows(run.data("samples"))
    assert len(samples) == 6 and all(
        s["responses"].keys() == {"base", "sft", "policy"} == s["scores"].keys() == s["disagreement"].keys() for s in samples
    )


def test_the_ensemble_scores_every_labelled_pair(whole: tuple[Workspace, RunSummary]) -> None:
    workspace, made = whole
    scores = list(read_records(workspace.run("s").data("reward_scores"), ScoredPair))
    labels = counts_of(made)["preferences"]
    assert [sum(s.held_out is side for s in scores) for side in (True, False)] == [labels["held_out"], labels["train"]]
    assert all(s.chosen.value == pytest.approx(fmean(s.chosen.members) - s.chosen.std) for s in scores)
    assert max(s.disagreement for s in scores) > 0


def test_the_manifest_says_what_was_run(whole: tuple[Workspace, RunSummary]) -> None:
    run = whole[0].run("s")
    manifest = read_manifest(run.manifest)
    assert manifest is not None and manifest.command == "cai run runs/s.yaml"
    assert [s.status for s in manifest.stages] == ["done"] * 10
    assert manifest.versions["torch"] and manifest.model_fingerprint.startswith("local:")
    assert all(s.outputs for s in manifest.stages)
    assert [s.state for s in run_status(run).stages] == ["done"] * 10


def test_a_run_ends_with_a_report_and_warns_of_what_it_says(whole: tuple[Workspace, RunSummary]) -> None:
    workspace, made = whole
    run = workspace.run("s")
    *others, warning = made.warnings
    assert others and "token limit" in others[0], "twelve tokens are too few for these answers"
    page = re.sub(r"\s+", " ", run.report.read_text())
    assert "NOT SHOWN TO BEAT THE TRIVIAL BASELINES" in warning and "NOT SHOWN TO BEAT THE TRIVIAL BASELINES" in page
    assert made.report == str(run.report) and page.count("<html") == 1


def test_every_record_of_a_run_can_be_read(whole: tuple[Workspace, RunSummary]) -> None:
    workspace, made = whole
    run = workspace.run("s")
    for path in run.path.glob("data/*.jsonl"):
        assert len(Run(made, run).records(path.stem)) == len(rows(path)), path.name


def test_a_second_run_makes_only_the_report_again(copied: Workspace) -> None:
    before = data_bytes(copied.run("s"))
    again = run_recipe(recipe_of(copied), copied, STAGES, Reporter())
    assert [s.name for s in again.stages if not s.reused] == ["report"]
    assert data_bytes(copied.run("s")) == before and calls_made(again) == 0


def test_without_its_manifest_a_run_still_asks_and_trains_nothing_again(copied: Workspace) -> None:
    before = data_bytes(copied.run("s"))
    copied.run("s").manifest.unlink()
    only = [n for n in STAGE_NAMES if n not in ("distill", "blend", "evaluate")]
    again = run_recipe(recipe_of(copied), copied, STAGES, Reporter(), only=only)
    assert calls_made(again) == 0, "finished trainings are found again, so the policy that samples is the same"
    assert data_bytes(copied.run("s")) == before


def test_reward_models_load_when_no_other_model_is_in_memory(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a base too many is what doesn't fit: neither the one just trained, nor the judge's, nor an earlier ensemble's."""
    from transformers import PreTrainedModel

    from cai.train.reward import ensemble

    def models() -> set[int]:
        return {id(o) for o in gc.get_objects() if issubclass(type(o), PreTrainedModel)}

    before, beside = models(), []
    load = ensemble.load_scorer

    def watched(*args: Any) -> Any:
        beside.append(len(models() - before))
        return load(*args)

    monkeypatch.setattr(ensemble, "load_scorer", watched)
    workspace = tiny_workspace(tmp_path / "w", tiny_model_dir)
    run_recipe(recipe_of(workspace), workspace, STAGES, Reporter())
    assert len(beside) >= 5, "two members are measured, then their ensemble; it is loaded to evaluate, and to audit"
    assert set(beside) == {0}


@pytest.mark.parametrize("after", [9, 30])
def test_a_local_model_that_is_cut_off_gives_the_same_bytes(tmp_path: Path, tiny_model_dir: Path, after: int) -> None:
    """bfloat16, where another batch would give other numbers: the resumed run forms the batches that the calm one formed."""
    stages = ("respond", "critique", "feedback")
    folders = calm, cut = tiny_workspace(tmp_path / "calm", tiny_model_dir), tiny_workspace(tmp_path / "cut", tiny_model_dir)
    for workspace in folders:
        workspace.run("s").data("pairs").parent.mkdir(parents=True)
        workspace.run("s").data("pairs").write_bytes(b"")
    total = calls_made(run_data(calm, only=stages))
    with pytest.raises(KeyboardInterrupt):
        run_data(cut, only=stages, reporter=Interrupting(after))
    with CallStore(cut.store_path) as store:
        kept = len(store)
    assert after <= kept < total
    assert calls_made(run_data(cut, only=stages)) == total - kept
    assert data_bytes(cut.run("s")) == data_bytes(calm.run("s"))


def test_contrast_and_human_labels_enter_with_their_sources(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    made = run_data(workspace, "pairs.contrast=true", "preferences.human=[{path: prompts/probe_pairs.jsonl, weight: 2.0}]")
    counts = {s.name: s.counts for s in made.stages}
    assert counts["pairs"] == {"sampled": 12, "contrast": 12, "texts": 48, "truncated": 0}
    assert counts["feedback"]["judged"] == 12 + counts["critique"]["revision_pairs"], "contrast pairs are labelled by construction"
    train = list(read_records(workspace.run("s").data("preferences"), Preference))
    sources = {p.source: p.weight for p in train}
    assert [w for source, w in sources.items() if source.startswith("human:")] == [2.0]
    assert {"ai:pointwise-contrast", "revision:pointwise-contrast", "contrast"} <= sources.keys()
    held_out = list(read_records(workspace.run("s").data("preferences_heldout"), Preference))
    assert held_out and not {p.prompt.id for p in train} & {p.prompt.id for p in held_out}


def test_pairs_can_be_sampled_for_some_prompts(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    few, many = ({p.prompt.id for p in _pairs(workspace, f"pairs.limit={limit}", "pairs.per_prompt=2")} for limit in (3, 5))
    assert len(few) == 3 and len(many) == 5 and few < many, "raising the limit only adds prompts"


def test_responses_are_sampled_for_some_prompts_of_all_files(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    drawn = []
    for limit in (3, 6):
        run_data(workspace, f"respond.limit={limit}", "respond.kinds=[harmful, helpful]", only=("respond",))
        drawn.append([row["prompt"] for row in rows(workspace.run("s").data("responses"))])
    few, many = ({p["id"] for p in prompts} for prompts in drawn)
    assert len(few) == 3 and len(many) == 6 and few < many, "raising the limit only adds prompts"
    prompts = rows(workspace.run("s").data("prompts"))
    assert [p["id"] for p in drawn[1]] == [p["id"] for p in prompts if p["id"] in many], "in their order"
    assert {p["kind"] for p in drawn[1]} == {"harmful", "helpful"}, "not the first file's alone"


def _pairs(workspace: Workspace, *settings: str) -> list[ResponsePair]:
    run_data(workspace, *settings)
    return list(read_records(workspace.run("s").data("pairs"), ResponsePair))


@pytest.mark.parametrize("thinking", [False, True])
def test_what_a_model_thinks_is_in_the_trail_and_imitated_only_when_asked_for(
    thinking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = ScriptedEngine.submit

    async def think(engine: ScriptedEngine, request: Request) -> Reply:
        reply = await answered(engine, request)
        return replace(reply, text=f"<think>I weigh it.</think>{reply.text}") if isinstance(reply, Completion) else reply

    monkeypatch.setattr(ScriptedEngine, "submit", think)
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace, f"sft.thinking={str(thinking).lower()}", "critique.min_p_revised=0", only=("respond", "critique", "pairs"))
    data = workspace.run("s").data
    assert {trace["response_reasoning"] for trace in rows(data("traces"))} == {"I weigh it."}
    examples, pairs = rows(data("sft")), rows(data("pairs"))
    assert examples and {example["reasoning"] for example in examples} == {"I weigh it." if thinking else ""}
    assert not any(
        "think" in text for text in [e["completion"] for e in examples] + [str(p["response_a"] + p["response_b"]) for p in pairs]
    )


def test_prompts_that_are_also_evaluated_are_dropped_and_counted(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    both = "prompts.train=[{path: prompts/eval_harmful.jsonl, limit: 4}, {path: prompts/helpful.jsonl, limit: 4}]"
    made = run_data(workspace, both, only=("respond",)).stages[0]
    assert made.counts == {"prompts": 4, "evaluation_prompts": 4, "responses": 4, "truncated": 0}
    assert [f["reason"] for f in rows(workspace.run("s").failures)] == ["in_evaluate"] * 4


def test_one_engine_serves_a_spec_and_loads_nothing_until_it_is_asked(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    loaded: list[str] = []
    from cai.models.local.engine import LocalEngine

    monkeypatch.setattr(LocalEngine, "load", lambda spec: loaded.append(spec.path))

    async def look() -> str:
        engine = await open_engine(ModelSpec(path=str(tiny_model_dir)))
        with CallStore(None) as store:
            fingerprint = TextModel(engine, store, "test").fingerprint
        await engine.close()
        return fingerprint

    assert asyncio.run(look()).startswith("local:") and loaded == []


def test_the_gold_models_pairs_are_out_of_the_proxys_sight(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    own = "gold={fraction: 0.4, held_out_fraction: 0.3, human: [{path: prompts/probe_pairs.jsonl}]}"
    people = "preferences={held_out_fraction: 0.4, human: [{path: prompts/probe_pairs.jsonl, limit: 10}]}"
    made = run_data(workspace, own, people)
    counts = next(s.counts for s in made.stages if s.name == "preferences")
    assert counts["dropped_in_gold"] == 10, "the same people's labels are in both, so they are gold's alone"
    prompts = {
        name: {p["prompt"]["id"] for p in rows(workspace.run("s").data(name))}
        for name in ("preferences", "preferences_heldout", "gold", "gold_heldout")
    }
    assert counts["gold_train"] > 0 and all(prompts.values())
    assert len(set().union(*prompts.values())) == sum(map(len, prompts.values()))


@pytest.mark.parametrize("method", ["grpo"])
def test_a_policy_is_rewarded_by_models_and_judge_and_watched_by_gold(tmp_path: Path, tiny_model_dir: Path, method: str) -> None:
    workspace = tiny_workspace(tmp_path / "w", tiny_model_dir)
    overrides = (
        "gold={fraction: 0.4, max_length: 512, lora: {rank: 2}}",
        f"policy={{method: {method}, max_length: 512, batch_size: 4, epochs: 0.5, watch: {{every_steps: 2}}, online: {{num_generations: 2, "
        "max_tokens: 8, rewards: [{term: model}, {term: constitution, weight: 0.1}, {term: length, words: 5}, {term: refusal}]}}",
    )
    recipe = recipe_of(workspace, *overrides)
    run = workspace.run("s")
    made = run_recipe(recipe, workspace, STAGES, Reporter())
    counts = {s.name: s.counts for s in made.stages}
    assert counts["reward"]["gold_steps"] > 0 and counts["policy"]["steps"] == 3
    assert next(s for s in made.stages if s.name == "policy").calls_made > 0, "the judge's calls are counted"
    logs = [m for m in rows(run.metrics) if m["stage"] == "policy"]
    assert {"terms/model", "terms/constitution", "terms/length", "terms/refusal", "kl"} <= logs[0].keys()
    points = rows(run.model("policy") / "frontier.jsonl")
    assert [(p["step"], p["n"]) for p in points] == [(0, 3), (2, 3), (3, 3)]
    assert (counts["evaluate"]["watched_prompts_left_out"], counts["evaluate"]["prompts"]) == (3, 3), "what chooses must not measure"
    gold, proxy = (file_hash(run.model(name) / "adapter_model.safetensors") for name in ("gold", "reward-0"))
    assert gold != proxy

    again = run_recipe(recipe, workspace, STAGES, Reporter())
    assert [s.name for s in again.stages if not s.reused] == ["report"]
    run.manifest.unlink()
    third = run_recipe(recipe, workspace, STAGES, Reporter(), only=("policy",))
    assert calls_made(third) == 0 and rows(run.model("policy") / "frontier.jsonl") == points, "a finished training is found again"

    ppo = "policy={method: ppo, max_length: 512, batch_size: 4, watch: {every_steps: 2}, ppo: {response_length: 8, total_episodes: 12}}"
    other = run_recipe(recipe_of(workspace, overrides[0], ppo), workspace, STAGES, Reporter(), only=("policy",))
    assert [s.counts for s in other.stages] == [{"examples": 12, "steps": 3, "texts": 12, "truncated": 12}]
    assert [(p["step"], p["n"]) for p in rows(run.model("policy") / "frontier.jsonl")] == [(0, 3), (2, 3), (3, 3)]
    assert [m["step"] for m in rows(run.metrics) if m["stage"] == "policy"] == [1, 2, 3]

    told = "policy={method: distill, max_length: 512, batch_size: 4, online: {max_tokens: 8}, distill: {max_steps: 3}}"
    distilled = run_recipe(recipe_of(workspace, told), workspace, STAGES, Reporter(), only=("policy",))
    assert [s.counts for s in distilled.stages] == [{"examples": 12, "steps": 3, "texts": 12, "truncated": 12}]
    assert not (run.model("policy") / "frontier.jsonl").exists(), "of an earlier policy, that was watched"
    narrow = workspace.root / "constitution" / "narrow.yaml"
    narrow.write_text(
        "id: narrow\nname: N\ndescription: D\nprinciples: [{ id: p, statement: Decline it., applies_to: [harmful], source: s }]\n"
    )
    only = run_recipe(
        recipe_of(workspace, told, "constitution=constitution/narrow.yaml", "critique.kinds=[harmful]"),
        workspace,
        STAGES,
        Reporter(),
        only=("policy",),
    )
    harmful = sum(p["kind"] == "harmful" for p in rows(run.data("prompts")))
    assert 0 < harmful < 12 and only.stages[0].counts["steps"] == -(-harmful // 4), "other kinds have no principle to be told"


def test_a_watched_policy_needs_prompts_to_be_chosen_by_and_others_to_be_measured_on(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(RecipeError, match="1 held-out prompts, and a watched policy needs two"):
        run_data(workspace, "gold={fraction: 0.4}", "prompts.evaluate=[{path: prompts/eval_harmful.jsonl, limit: 1}]")


def test_a_gold_model_that_would_have_no_pairs_is_found_before_anything_runs(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(RecipeError, match="gold: the gold reward model has no pairs"):
        run_data(workspace, "gold={}")


def test_distilled_responses_are_what_sft_trains_on(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = tiny_workspace(tmp_path / "w", tiny_model_dir)
    told = ["sft.data=[distill]", "feedback.protocol=check", "constitution=constitution/checked.yaml", "distill.samples=2"]
    (workspace.root / "constitution" / "checked.yaml").write_text(CONSTITUTION + "    check: { max_words: 40 }\n")
    config = "distill: { min_share: 0.0, drop_refusals: false, sampling: { max_tokens: 12 } }\n"
    (workspace.root / "runs" / "s.yaml").write_text((workspace.root / "runs" / "s.yaml").read_text() + config)
    recipe = load_recipe(workspace.root / "runs" / "s.yaml", told)
    with pytest.raises(RecipeError, match=r"no stage 'critique' \(see sft.data\); the stages are: respond distill sft"):
        run_recipe(recipe, workspace, STAGES, Reporter(), only=["critique"])
    summary = run_recipe(recipe, workspace, STAGES, Reporter(), only=["respond", "distill"])
    counts = {s.name: s.counts for s in summary.stages}["distill"]
    assert counts["prompts"] == 12
    dropped = sum(n for name, n in counts.items() if name.startswith("samples_"))
    assert 24 - 2 * counts["kept"] <= dropped <= 24 - counts["kept"] and dropped > 0, "a tiny model seldom ends within 12 tokens"
    assert counts["kept"] == len(rows(workspace.run("s").data("distilled"))) and counts["pairs"] <= counts["kept"]


def test_distillation_needs_no_responses(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = tiny_workspace(tmp_path / "w", tiny_model_dir)
    told = ["sft.data=[distill]", "feedback.protocol=check", "constitution=constitution/checked.yaml", "respond.kinds=[harmful]"]
    (workspace.root / "constitution" / "checked.yaml").write_text(CONSTITUTION + "    check: { max_words: 40 }\n")
    config = "distill: { samples: 1, min_share: 0.0, drop_refusals: false, sampling: { max_tokens: 40 } }\n"
    (workspace.root / "runs" / "s.yaml").write_text((workspace.root / "runs" / "s.yaml").read_text() + config)
    recipe = load_recipe(workspace.root / "runs" / "s.yaml", told)
    run_recipe(recipe, workspace, STAGES, Reporter(), only=["respond", "distill"])
    run = workspace.run("s")
    kinds = [row["kind"] for row in rows(run.data("prompts"))]
    assert len(rows(run.data("responses"))) == kinds.count("harmful") < len(kinds)
    assert len(rows(run.data("distilled_pairs"))) <= kinds.count("harmful")
    assert run_recipe(recipe, workspace, STAGES, Reporter(), only=["distill"]).stages[0].counts["prompts"] == len(kinds)
    one = load_recipe(workspace.root / "runs" / "s.yaml", [*told, "respond.limit=1"])
    run_recipe(one, workspace, STAGES, Reporter(), only=["respond", "distill"])
    assert [row["prompt"]["kind"] for row in rows(run.data("responses"))] == ["harmful"]
    assert run_recipe(one, workspace, STAGES, Reporter(), only=["distill"]).stages[0].counts["prompts"] == len(kinds)
