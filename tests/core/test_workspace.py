"""Workspaces, run directories and hashes. Locks between processes are in test_pipeline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cai.core.workspace import RunDirectory, Workspace, file_hash, find_run, find_workspace, init_workspace, replace_stage_rows
from cai.errors import DataError, RecipeError, StoreError
from tests.workspaces import ROOT, rows


def test_a_new_workspace_has_what_is_shipped_and_no_runs(tmp_path: Path) -> None:
    made = init_workspace(tmp_path / "deep" / "w")
    names = {p.relative_to(tmp_path / "deep" / "w").as_posix() for p in made}
    assert {"constitution/general.yaml", "constitution/schema.json", "prompts/templates/critique.txt", "runs/quickstart.yaml"} <= names
    assert not any(n.startswith("runs/") and not n.endswith(".yaml") for n in names)
    assert all((ROOT / n).read_bytes() == (tmp_path / "deep" / "w" / n).read_bytes() for n in names)


@pytest.mark.parametrize("folder", ["constitution", "prompts", "runs"])
def test_a_folder_that_has_one_of_them_is_left_alone(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=f"already has {folder}/; nothing was changed"):
        init_workspace(tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == [folder]


def test_a_workspace_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        init_workspace(tmp_path / "file")


def test_the_workspace_is_the_nearest_folder_upwards(tmp_path: Path) -> None:
    init_workspace(tmp_path / "w")
    assert find_workspace(tmp_path / "w" / "prompts" / "templates") == Workspace(tmp_path / "w")
    with pytest.raises(RecipeError, match="cai init DIR"):
        find_workspace(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "x" * 65, "a b", "[red]", "a\x1b"])
def test_unsafe_run_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="letters, digits"):
        Workspace(tmp_path).run(name)


def test_a_run_is_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init_workspace(tmp_path / "w")
    init_workspace(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "w")
    for root in ("w", "other"):
        (tmp_path / root / "runs" / "first").mkdir()
        (tmp_path / root / "runs" / "first" / "recipe.yaml").touch()
    for name in ("first", "runs/first", "./runs/first", "runs/first/", str(tmp_path / "w" / "runs" / "first")):
        assert find_run(name) == RunDirectory(tmp_path / "w" / "runs" / "first")
    assert find_run("../other/runs/first").path == tmp_path / "other" / "runs" / "first"
    with pytest.raises(DataError, match=r"frist: no such run\. There are: first"):
        find_run("frist")


def test_a_folder_s_hash_changes_with_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = file_hash(tmp_path / "a")
    assert first == file_hash(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    second = file_hash(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({first, second, file_hash(tmp_path / "a")}) == 3
    with pytest.raises(DataError, match="can't be read"):
        file_hash(tmp_path / "none")


def test_a_stage_s_rows_are_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    replace_stage_rows(path, "a", [{"stage": "a", "n": 1}])
    replace_stage_rows(path, "b", [{"stage": "b", "n": 2}])
    replace_stage_rows(path, "a", [{"stage": "a", "n": 3}, {"stage": "a", "n": 4}])
    assert [(r["stage"], r["n"]) for r in rows(path)] == [("b", 2), ("a", 3), ("a", 4)]


def test_looking_at_a_lock_never_keeps_a_run_from_starting(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r")
    assert not run.in_use(), "no lock file yet"
    code = (
        f"from pathlib import Path; from cai.core.workspace import RunDirectory\nwhile True: RunDirectory(Path({str(run.path)!r})).in_use()"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as looking:
        try:
            for _ in range(200):
                with run.locked():
                    assert (run.path / ".lock").read_text() == str(os.getpid())
        finally:
            looking.kill()
    with run.locked():
        assert run.in_use()
    assert not run.in_use()


def test_a_run_directory_in_the_way_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("")
    with pytest.raises(StoreError, match="can't be written"), RunDirectory(tmp_path / "r").locked():
        pass


@pytest.mark.attack
def test_a_linked_runs_folder_belongs_to_the_workspace_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, elsewhere = tmp_path / "w", tmp_path / "disk" / "runs"
    init_workspace(root)
    elsewhere.parent.mkdir()
    (root / "runs").rename(elsewhere)
    (root / "runs").symlink_to(elsewhere)
    assert find_workspace(root / "runs").root == root
    monkeypatch.chdir(root)
    assert find_workspace(Path("runs")).root == root
    (tmp_path / "link").symlink_to(root / "prompts")
    assert find_workspace(tmp_path / "link").root == root  # a link into a workspace, from outside any


@pytest.mark.attack
@pytest.mark.parametrize("name", ["calls.sqlite", "calls.sqlite-wal", "calls.sqlite-claims", "Calls.sqlite-shm", "s (copy)", "..", "a\n"])
def test_a_run_is_never_named_like_the_call_store_or_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="run name"):
        Workspace(tmp_path).run(name)


@pytest.mark.attack
@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "progress.json", "data", "models/sft/adapter_model.safetensors"])
def test_a_run_writes_through_no_link_out_of_its_folder(tmp_path: Path, name: str) -> None:
    run, mine = RunDirectory(tmp_path / "w" / "runs" / "s"), tmp_path / "mine"
    mine.write_text("my own")
    link = run.path / name
    link.parent.mkdir(parents=True)
    run.manifest.write_text("{}")
    for target in (mine, tmp_path / "not-there"):
        link.symlink_to(target)
        with pytest.raises(StoreError, match=f"{name}: is a link to .*, outside of"), run.locked():
            pass
        link.unlink()
    assert mine.read_text() == "my own" and not (tmp_path / "not-there").exists()
    inside = tmp_path / "w" / "runs" / "other"
    inside.mkdir()
    if name == ".lock":  # changed in place: through no link at all
        (inside / "mine").write_text("my own")
        link.symlink_to(inside / "mine")
        with pytest.raises(StoreError, match=r"\.lock: is a link, and what it names would be changed"), run.locked():
            pass
        assert (inside / "mine").read_text() == "my own"
    else:  # another run's model, to start from
        link.symlink_to(inside)
        with run.locked():
            pass


@pytest.mark.attack
def test_a_run_goes_on_where_its_folder_or_runs_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "s" / "data").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "t").symlink_to(tmp_path / "disk" / "s")
    for name in ("s", "t"):
        with RunDirectory(tmp_path / "runs" / name).locked():
            pass
