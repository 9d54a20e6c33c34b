"""A run of the first version: its manifest, recipe, records and call store as that version wrote them, a few rows of each."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from cai.core.workspace import Workspace
from cai.models.store import SCHEMA_VERSION
from cai.pipeline.driver import RunSummary
from cai.pipeline.run import Run
from cai.report.collect import collect_report
from tests.cli.calling import Called
from tests.workspaces import cai, make_workspace, rows

FIRST = Path(__file__).with_name("first_version")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with the run and an empty call store clustered by key."""
    made = make_workspace(tmp_path / "w")
    shutil.copytree(FIRST, made.run("first").path)
    store = sqlite3.connect(made.store_path)
    store.execute(
        "CREATE TABLE calls (key BLOB PRIMARY KEY, stage TEXT NOT NULL, model TEXT NOT NULL, request BLOB NOT NULL, reply BLOB NOT NULL, "
        "seconds REAL NOT NULL, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID"
    )
    store.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    store.close()
    return made


def test_its_status_and_report_are_shown(workspace: Workspace, call: Called) -> None:
    found = call.json(workspace.root, "status", "first")
    states = {s["name"]: s["state"] for s in found["stages"]}
    assert "distill" not in states and {states[name] for name in ("respond", "critique", "sft", "reward", "policy", "report")} == {"done"}
    assert any(note.startswith("judge: THE JUDGE WAS NOT SHOWN") for note in found["notes"])
    assert call(workspace.root, "report", "first") == 0
    run = workspace.run("first")
    assert collect_report(run.path).problems == () and "no-help-with-violence" in run.report.read_text()


def test_its_records_are_read(workspace: Workspace) -> None:
    run = workspace.run("first")
    found = Run(RunSummary("first", (), (), None), run)
    for path in run.path.glob("data/*.jsonl"):
        assert len(found.records(path.stem)) == len(rows(path)), path.name


def test_it_goes_on_under_this_version(workspace: Workspace) -> None:
    done = cai(workspace.root, "run", "runs/first/recipe.yaml", "--name", "first", "--only", "respond")
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.replace("│", " ").split())
    assert "preferences.revision_weight is now preferences.revision.weight" in told
    assert "preferences.ai_weight" not in told, "nobody set what is at its default"
    assert sqlite3.connect(workspace.store_path).execute("SELECT count(*) FROM calls").fetchone() == (12,)
