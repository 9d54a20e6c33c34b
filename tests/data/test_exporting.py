"""From a run directory to another tool's columns. The columns are tested in data/test_export."""

from pathlib import Path

import pytest

from cai.core.manifest import read_manifest
from cai.core.workspace import RunDirectory
from cai.data.exporting import export_run, read_run_data
from cai.errors import DataError
from tests.workspaces import make_workspace, rows, run_data


def test_a_run_is_exported_into_its_own_folder_with_a_card(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    run = workspace.run("s")
    found = export_run(run, "hh", None, None, private=True)
    assert found.folder == str(run.path / "export" / "hh") and found.url is None
    train = rows(run.path / "export" / "hh" / "train.jsonl")
    assert found.rows["train"] == len(train) == len(rows(run.data("preferences"))) - found.left_out
    card = (run.path / "export" / "hh" / "README.md").read_text()
    assert "NOT SHOWN TO BEAT" in card and "scripted" in card


def test_what_a_run_has_not_made_yet_is_empty(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace, only=("respond", "critique"))
    manifest = read_manifest(workspace.run("s").manifest)
    assert manifest is not None
    data = read_run_data(workspace.run("s"), manifest)
    assert data.sft and data.traces and not data.train and data.constitution is not None
    with pytest.raises(DataError):
        export_run(workspace.run("s"), "ultrafeedback", None, None, private=True)


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run"):
        export_run(RunDirectory(tmp_path / "none"), "trl", tmp_path / "out", None, private=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.attack
@pytest.mark.parametrize("name", ["README.md", "train.jsonl", "test.parquet"])
def test_a_folder_with_files_of_others_is_left_alone_and_an_old_export_is_replaced(tmp_path: Path, name: str) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("my own")
    with pytest.raises(DataError, match=f"{name}: is not of an export"):
        export_run(workspace.run("s"), "hh", out, None, private=True)
    assert [p.name for p in out.iterdir()] == [name] and (out / name).read_text() == "my own"
    (out / name).unlink()
    (out / "notes.txt").write_text("my own")
    for _ in range(2):
        found = export_run(workspace.run("s"), "hh", out, None, private=True)
        assert str(out / "notes.txt") not in found.files and str(out / "README.md") in found.files


@pytest.mark.attack
def test_a_card_of_others_in_the_runs_own_folder_is_left_alone_too(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    card = workspace.run("s").path / "export" / "hh" / "README.md"
    card.parent.mkdir(parents=True)
    (card.parent / "train.jsonl").write_text("")  # of an export that was stopped before it wrote its card
    card.write_text("my own")
    with pytest.raises(DataError, match="is not of an export"):
        export_run(workspace.run("s"), "hh", None, None, private=True)
    assert card.read_text() == "my own"
    card.unlink()
    export_run(workspace.run("s"), "hh", None, None, private=True)
    assert card.exists()
