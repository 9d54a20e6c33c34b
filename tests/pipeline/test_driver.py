"""The driver: what is reused, what is asked again, and what becomes of a run that can't go on."""

import os
from pathlib import Path
from typing import Any

import pytest

from cai.core.console import Reporter
from cai.core.manifest import read_manifest
from cai.errors import DataError, ModelError, RecipeError, ReplyError, StoreError
from cai.models.requests import ChoicesRequest, CompleteRequest, Reply, Request
from cai.models.scripted import default_script
from cai.pipeline.driver import choose_stages, run_recipe
from cai.pipeline.stages import STAGES
from cai.recipe import Recipe
from tests.workspaces import DATA_STAGES, RECIPE, calls_made, data_bytes, make_workspace, recipe_of, rows, run_data, script

KEPT_DATA = {
    "prompts.jsonl",
    "eval_prompts.jsonl",
    "responses.jsonl",
    "traces.jsonl",
    "sft.jsonl",
    "revision_pairs.jsonl",
    "pairs.jsonl",
    "judge_bench.jsonl",
    "judgments.jsonl",
    "preferences.jsonl",
    "preferences_heldout.jsonl",
    "balance.jsonl",
}


def test_a_second_run_reuses_everything_and_changes_no_byte(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    first = run_data(workspace)
    before = data_bytes(workspace.run("s"))
    assert before.keys() == KEPT_DATA
    assert all(before[name] for name in ("responses.jsonl", "traces.jsonl", "sft.jsonl", "judgments.jsonl", "preferences.jsonl"))
    assert calls_made(first) > 50 and not any(s.reused for s in first.stages)
    second = run_data(workspace)
    assert [s.name for s in second.stages if s.reused] == list(DATA_STAGES)
    assert data_bytes(workspace.run("s")) == before
    assert [s.counts for s in second.stages] == [s.counts for s in first.stages]


def test_without_its_manifest_a_run_makes_no_call_again(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    made = calls_made(run_data(workspace))
    run = workspace.run("s")
    before = data_bytes(run)
    run.manifest.unlink()
    for file in (run.path / "data").iterdir():
        file.unlink()
    again = run_data(workspace)
    assert calls_made(again) == 0 and sum(s.calls_reused for s in again.stages) >= made
    assert data_bytes(run) == before


def test_a_damaged_output_is_made_again_without_a_call(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    before = data_bytes(workspace.run("s"))
    traces = workspace.run("s").data("traces")
    traces.write_bytes(traces.read_bytes()[:-10])
    again = run_data(workspace)
    assert [s.name for s in again.stages if not s.reused] == ["critique"]
    assert calls_made(again) == 0 and data_bytes(workspace.run("s")) == before


def test_two_workspaces_agree_byte_for_byte_whatever_their_window(tmp_path: Path) -> None:
    one, other = make_workspace(tmp_path / "a"), make_workspace(tmp_path / "b")
    run_data(one)
    run_data(other, "window=3")
    assert data_bytes(one.run("s")) == data_bytes(other.run("s"))


def test_an_edited_principle_repeats_only_its_own_calls(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", RECIPE.replace("limit: 8 }\n    -", "limit: 60 }\n    -"))
    run_data(workspace, only=("respond", "critique"))
    before = {t["prompt"]["id"]: t for t in rows(workspace.run("s").data("traces"))}
    lines = dict(
        zip((t["prompt"]["id"] for t in before.values()), workspace.run("s").data("traces").read_bytes().splitlines(), strict=True)
    )
    edited = next(iter(before.values()))["rounds"][0]["critique"]["principle_id"]
    file = workspace.root / "constitution" / "general.yaml"
    head, found, tail = file.read_text().partition(f"- id: {edited}\n")
    assert found
    file.write_text(head + found + tail.replace("critique: >-\n", "critique: >-\n      Read closely.\n", 1))
    again = run_data(workspace, only=("respond", "critique"))
    after = dict(
        zip(
            (t["prompt"]["id"] for t in rows(workspace.run("s").data("traces"))),
            workspace.run("s").data("traces").read_bytes().splitlines(),
            strict=True,
        )
    )
    touched = {i for i, t in before.items() if t["rounds"][0]["critique"]["principle_id"] == edited}
    assert 0 < len(touched) < len(before) / 2
    assert {i for i in lines if lines[i] != after[i]} == touched
    respond, critique = again.stages
    assert respond.reused
    assert critique.calls_made == 2 * len(touched)  # a critique and a revision each
    assert critique.calls_reused == 2 * (len(before) - len(touched))


def test_a_changed_setting_runs_its_stages_and_those_that_read_them(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    again = run_data(workspace, "preferences.min_margin=0.1")
    assert [s.name for s in again.stages if not s.reused] == ["preferences"]
    again = run_data(workspace, "preferences.min_margin=0.1", "critique.sampling.temperature=0.5")
    assert [s.name for s in again.stages if s.reused] == ["respond", "pairs"]


def test_another_judge_model_is_asked(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    again = run_data(workspace, "feedback.judge={path: scripted, name: other}")
    feedback = next(s for s in again.stages if s.name == "feedback")
    assert not feedback.reused and feedback.calls_made > 0
    assert next(s for s in again.stages if s.name == "respond").reused


def test_new_rows_behind_a_glob_are_noticed(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    (workspace.root / "prompts" / "mine").mkdir()
    (workspace.root / "prompts" / "mine" / "a.txt").write_text("One question?\nAnother question?\n")
    train = "prompts.train=[{path: 'prompts/mine/*.txt', kind: harmful}]"
    assert run_data(workspace, train, only=("respond",)).stages[0].counts["prompts"] == 2
    assert run_data(workspace, train, only=("respond",)).stages[0].reused
    (workspace.root / "prompts" / "mine" / "b.txt").write_text("A third?\n")
    again = run_data(workspace, train, only=("respond",)).stages[0]
    assert again.counts["prompts"] == 3 and again.calls_made == 1 and again.calls_reused == 2


def failing(bad: int) -> Any:
    """A script that refuses every prompt whose hash is below `bad` of 10."""

    def answer(request: Request) -> Reply:
        if isinstance(request, CompleteRequest) and request.seed % 10 < bad:
            raise ReplyError("refused", "by the script")
        return default_script(request)

    return answer


def test_failures_are_counted_and_replaced_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w", RECIPE + "max_failure_fraction: 0.9\n")
    source = workspace.root / "prompts" / "harmful.jsonl"
    source.write_text(source.read_text() + "not json\n")  # a loader's failure, beside the stage's own
    with monkeypatch.context() as patched:
        script(patched, failing(4))
        first = run_data(workspace, only=("respond",)).stages[0]
    failures = rows(workspace.run("s").failures)
    refused = [f for f in failures if f["reason"] == "refused"]
    assert len(refused) == 12 - first.counts["responses"] > 0
    assert {f["stage"] for f in failures} == {"respond"} and len(failures) == len(refused) + 1
    workspace.run("s").manifest.unlink()
    again = run_data(workspace, only=("respond",)).stages[0]
    assert again.calls_made == len(refused) and again.counts["responses"] == 12
    assert [f["reason"] for f in rows(workspace.run("s").failures)] == ["unreadable"]


def test_too_many_failures_stop_a_stage_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = workspace.run("s")
    with monkeypatch.context() as patched:
        script(patched, failing(9))
        with pytest.raises(ModelError, match=r"stage respond: \d+ of 12 items failed.*refused × \d+"):
            run_data(workspace)
    failures = rows(run.failures)
    manifest = read_manifest(run.manifest)
    assert manifest is not None
    [entry] = manifest.stages
    assert entry.status == "failed" and f"{len(failures)} of 12 items failed" in entry.message
    assert not run.data("responses").exists()
    mended = run_data(workspace)
    assert mended.stages[0].counts["responses"] == 12 and mended.stages[0].calls_made == len(failures)
    assert rows(run.failures) == [] and len(mended.stages) == len(DATA_STAGES)


def test_a_bug_in_a_stage_is_not_dressed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")

    def broken(request: Request) -> Reply:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        script(patched, broken)
        with pytest.raises(ZeroDivisionError):
            run_data(workspace)
    manifest = read_manifest(workspace.run("s").manifest)
    assert manifest is not None and manifest.stages[0].message == "ZeroDivisionError"


def test_setup_problems_are_told_together_before_anything_is_made(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", adapters=False)
    constitution = workspace.root / "constitution" / "general.yaml"
    constitution.write_text(constitution.read_text().replace("statement:", "statment:", 1))
    (workspace.root / "prompts" / "harmful.jsonl").unlink()
    (workspace.root / "prompts" / "templates" / "revise.txt").write_text("[[user]]\n{{ nonsense }}\n")
    (workspace.root / "prompts" / "probe_pairs.jsonl").unlink()
    with pytest.raises(RecipeError) as e:
        run_data(workspace, "feedback.judge={path: ./nowhere}")
    told = str(e.value)
    assert "5 configuration errors" in told
    for part in (
        "statment",
        "prompts: ",
        "harmful.jsonl",
        "revise.txt",
        "nonsense",
        "feedback.bench_pairs",
        "probe_pairs.jsonl",
        "nowhere",
    ):
        assert part in told
    assert not workspace.run("s").path.exists() and not workspace.store_path.exists()


def test_training_through_a_server_is_refused_unless_weights_are_named(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(RecipeError, match=r"is a server, and there is nothing here to train.*--only respond,critique"):
        run_recipe(recipe_of(workspace, "model.path=http://127.0.0.1:1/v1"), workspace, STAGES, Reporter())
    with pytest.raises(RecipeError, match=r"weights\.placement: not used"):
        run_recipe(recipe_of(workspace, "weights={path: scripted, placement: user}"), workspace, STAGES, Reporter())


PLAIN = Recipe(name="plain")


def test_stages_are_chosen_by_name() -> None:
    assert [s.name for s in choose_stages(STAGES, PLAIN, (), None)] == [s.name for s in STAGES if s.name not in ("distill", "blend")]
    assert [s.name for s in choose_stages(STAGES, PLAIN, ("critique", "respond"), None)] == ["respond", "critique"]
    assert [s.name for s in choose_stages(STAGES, PLAIN, (), "policy")] == ["policy", "evaluate", "report"]
    assert [s.name for s in choose_stages(STAGES, PLAIN, ("respond", "evaluate"), "sft")] == ["evaluate"]
    with pytest.raises(RecipeError, match="no stage 'crit', 'polcy'; the stages are: respond critique sft"):
        choose_stages(STAGES, PLAIN, ("crit",), "polcy")


def test_a_stage_without_its_inputs_names_them(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", adapters=False)
    with pytest.raises(DataError, match=r"stage feedback reads data/pairs.jsonl, data/revision_pairs.jsonl.*leave out --only"):
        run_data(workspace, only=("feedback",))
    with pytest.raises(DataError, match=r"stage feedback reads data/pairs.jsonl"):
        run_data(workspace, only=("respond", "feedback"))
    assert not list(workspace.root.glob("runs/*/data/responses.jsonl"))  # told before anything is paid for


def test_an_unproven_judge_is_told_and_a_proven_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w", RECIPE.replace("bench_limit: 8", "bench_limit: 60"))
    [warning] = run_data(workspace).warnings
    assert "NOT SHOWN TO BEAT THE TRIVIAL BASELINES" in warning and "n = 60" in warning
    [unmeasured] = run_data(workspace, "feedback.bench_pairs=null").warnings
    assert "was not measured against human labels" in unmeasured

    probes = rows(workspace.root / "prompts" / "probe_pairs.jsonl")
    chosen, rejected = ([r[side][0]["content"] for r in probes] for side in ("chosen", "rejected"))
    negative = [
        line.split(":", 1)[1].strip()
        for line in (workspace.root / "constitution" / "general.yaml").read_text().splitlines()
        if "ask_negative:" in line
    ]

    def wise(request: Request) -> Reply:
        if not isinstance(request, ChoicesRequest):
            return default_script(request)
        text = " ".join(request.messages[-1].content.split())
        good, bad = (any(" ".join(c.split()) in text for c in side) for side in (chosen, rejected))
        if not good and not bad:
            return default_script(request)
        says_yes = good != any(n in text for n in negative)
        reply = default_script(request)
        return type(reply)(tuple(-0.1 if (c == "Yes") == says_yes else -3.0 for c in request.choices), 1)  # type: ignore[call-arg]

    script(monkeypatch, wise)
    proven = run_data(workspace, "feedback.judge={path: scripted, name: wise}")
    assert proven.warnings == ()
    manifest = read_manifest(workspace.run("s").manifest)
    assert manifest is not None and manifest.judge is not None
    assert manifest.judge.beats_baselines and manifest.judge.n == 60 and manifest.judged_by == "scripted" and not manifest.trained
    assert proven.warnings == run_data(workspace, "feedback.judge={path: scripted, name: wise}").warnings, "reused, and still known"


def test_the_resolved_recipe_runs_again_as_it_stands(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace, "seed=7", only=("respond",))
    from cai.recipe import load_recipe

    assert load_recipe(workspace.run("s").path / "recipe.yaml") == recipe_of(workspace, "seed=7")


@pytest.mark.attack
def test_a_folder_of_other_files_never_becomes_a_run(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    mine = workspace.root / "runs" / "notes" / "drafts" / "report.html"
    mine.parent.mkdir(parents=True)
    mine.write_text("my own")
    with pytest.raises(StoreError, match=r"is no run's folder: it has drafts/report\.html"):
        run_data(workspace, only=("respond",), name="notes")
    assert mine.read_text() == "my own" and [p.name for p in mine.parent.parent.iterdir()] == ["drafts"]


@pytest.mark.attack
def test_prompt_files_whose_names_are_not_text_are_read_under_an_escaped_name(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", RECIPE.replace("prompts/helpful.jsonl", "prompts/odd*.jsonl"))
    for i, odd in enumerate((b"odd\xff.jsonl", b"odd\x1b[31m.jsonl")):
        path = Path(os.fsdecode(os.fsencode(workspace.root / "prompts") + b"/" + odd))
        path.write_text(f'{{"prompt": "Say {i}."}}\n{{\n')
    run_data(workspace, only=("respond",))
    run = workspace.run("s")
    assert {r"prompts/odd\udcff.jsonl", r"prompts/odd\x1b[31m.jsonl"} <= {row["source"] for row in rows(run.data("prompts"))}
    assert sum(row["item_id"].endswith((r"odd\udcff.jsonl:2", r"odd\x1b[31m.jsonl:2")) for row in rows(run.failures)) == 2
