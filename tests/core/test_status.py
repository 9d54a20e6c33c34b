"""A run seen from outside."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cai.core.jsonl import append_record
from cai.core.manifest import JudgeCard, Manifest, StageEntry, read_manifest, write_manifest
from cai.core.stages import STAGE_NAMES
from cai.core.status import run_status, stages_of
from cai.core.workspace import RunDirectory
from cai.errors import DataError
from cai.records import Failure


def written(folder: Path) -> RunDirectory:
    run = RunDirectory(folder / "r")
    manifest = Manifest("r", judge=JudgeCard("pairwise", True, note="It does not agree."))
    manifest.put(StageEntry("respond", "done", "f", seconds=3.0, calls_made=5, calls_reused=2, counts={"prompts": 7}))
    manifest.put(StageEntry("critique", "failed", "f", message="too many failures"))
    manifest.put(StageEntry("sft", "running", "f"))
    write_manifest(run.manifest, manifest)
    for i in range(3):
        append_record(run.failures, Failure("critique", f"p{i}", "empty"))
    return run


def test_states_counts_and_notes(tmp_path: Path) -> None:
    run = written(tmp_path)
    found = run_status(run)
    assert [(s.name, s.state, s.failures) for s in found.stages[:4]] == [
        ("respond", "done", 0),
        ("critique", "failed", 3),
        ("sft", "stopped", 0),  # its process is gone
        ("pairs", "not run", 0),
    ]
    assert (found.stages[0].calls_made, found.stages[0].calls_reused, found.stages[0].counts) == (5, 2, {"prompts": 7})
    assert found.notes == ("critique: too many failures", "judge: It does not agree.")


def test_a_working_run_says_where_it_is(tmp_path: Path) -> None:
    run = written(tmp_path)
    state = {"stage": "sft", "done": 3, "total": 8, "unit": "steps", "calls": 0}
    (run.path / "progress.json").write_text(json.dumps(state))
    assert not any("now:" in note for note in run_status(run).notes), "left behind by a killed process"
    with run.locked():
        assert run_status(run).stages[2].state == "running"
        assert "now: sft, 3 of 8 steps, 0 calls" in run_status(run).notes
        (run.path / "progress.json").write_text('{"stage"')
        assert "now: working" in run_status(run).notes


def test_a_stage_that_was_not_chosen_does_not_wait_and_the_clock_runs(tmp_path: Path) -> None:
    run = written(tmp_path)
    manifest = read_manifest(run.manifest)
    assert manifest is not None
    started = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    manifest.put(StageEntry("sft", "running", "f", started=started))
    write_manifest(run.manifest, replace(manifest, chosen=("sft", "pairs")))
    with run.locked():
        states = {s.name: s for s in run_status(run).stages}
    assert (states["pairs"].state, states["reward"].state) == ("waiting", "not run")
    assert states["sft"].seconds >= 300


@pytest.mark.parametrize(
    ("recipe", "optional"),
    [
        (None, {"critique"}),
        ("name: [", {"critique"}),
        ("sft: {}", {"critique"}),
        ("sft: { data: [distill] }", {"distill"}),
        ("sft: { data: [critique, distill] }\nblend: null", {"critique", "distill"}),
        ("sft: { data: [distill] }\nblend: { prompts: [] }", {"distill", "blend"}),
    ],
)
def test_a_run_has_the_stages_of_its_recipe_and_the_papers_without_one(tmp_path: Path, recipe: str | None, optional: set[str]) -> None:
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    found = stages_of(tmp_path)
    assert found == [name for name in STAGE_NAMES if name in found]
    assert {*STAGE_NAMES} - {*found} == {"critique", "distill", "blend"} - optional


def test_a_run_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Start one with: cai run RECIPE"):
        run_status(RunDirectory(tmp_path / "x"))
    written(tmp_path)
    with pytest.raises(DataError, match="There are: r"):
        run_status(RunDirectory(tmp_path / "x"))
