"""A run that is stopped, killed or short of disk goes on to the same bytes."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cai.core.manifest import read_manifest
from cai.errors import StoreError
from cai.models.store import CallStore
from tests.workspaces import Interrupting, calls_made, data_bytes, make_workspace, rows, run_data


@pytest.mark.parametrize("after", [1, 17, 40])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, after: int) -> None:
    calm, cut = make_workspace(tmp_path / "calm"), make_workspace(tmp_path / "cut")
    total = calls_made(run_data(calm))
    with pytest.raises(KeyboardInterrupt):
        run_data(cut, reporter=Interrupting(after))
    with CallStore(cut.store_path) as store:
        kept = len(store)
    manifest = read_manifest(cut.run("s").manifest)
    assert manifest is not None and manifest.stages[-1].status == "stopped"
    assert kept >= after
    assert calls_made(run_data(cut)) == total - kept
    assert data_bytes(cut.run("s")) == data_bytes(calm.run("s"))


def test_ctrl_c_stops_a_stage_that_asks_no_model_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage without an event loop gets the signal itself: trainings block for minutes."""
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace, only=("respond", "critique"))
    ended: list[str] = []

    def train(*args: Any) -> None:
        os.kill(os.getpid(), 2)
        time.sleep(5)
        ended.append("ran to its end")

    monkeypatch.setattr("cai.train.sft.train_sft", train)
    with pytest.raises(KeyboardInterrupt):
        run_data(workspace, only=("sft",))
    assert ended == []


def hold(folder: Path) -> "subprocess.Popen[str]":
    """A process that holds runs/s until its input ends."""
    code = (
        "import sys; from pathlib import Path; from cai.core.workspace import RunDirectory\n"
        "with RunDirectory(Path('runs/s')).locked():\n    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_run_in_use_is_refused_by_pid_and_another_name_works(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    with hold(workspace.root) as holder:
        assert workspace.run("s").in_use()
        with pytest.raises(StoreError, match=rf"pid {holder.pid}\).*--name"):
            run_data(workspace)
        assert calls_made(run_data(workspace, only=("respond",), name="other")) == 12
        holder.communicate("")
    assert not workspace.run("s").in_use()
    again = run_data(workspace, only=("respond",))
    assert again.stages[0].calls_made == 0, "both runs share one call store"


@pytest.mark.parametrize("after", [9, 22, 50, 140])
def test_a_stopped_stage_goes_on_after_its_finished_items_without_their_calls(tmp_path: Path, after: int) -> None:
    calm, stopped = make_workspace(tmp_path / "calm"), make_workspace(tmp_path / "stopped")
    whole = run_data(calm)
    run = stopped.run("s")
    with pytest.raises(KeyboardInterrupt):
        run_data(stopped, "window=4", reporter=Interrupting(after))
    journals = [p for p in run.unfinished.iterdir() if p.name != "prompts.jsonl"]
    assert len(journals) == 1
    finished = len(journals[0].read_text().splitlines()) - 1
    stopped.store_path.unlink()  # what isn't in the journal is asked again now
    again = run_data(stopped, "window=4")
    assert not run.unfinished.exists() and data_bytes(run) == data_bytes(calm.run("s"))
    resumed = next(s for s in again.stages if not s.reused)
    calls = next(s for s in whole.stages if s.name == resumed.name).calls_made
    assert resumed.calls_made <= calls - finished and finished > 0


def test_a_stopped_stage_with_other_settings_starts_anew(tmp_path: Path) -> None:
    calm, stopped = make_workspace(tmp_path / "calm"), make_workspace(tmp_path / "stopped")
    run_data(calm, "seed=7")
    with pytest.raises(KeyboardInterrupt):
        run_data(stopped, "window=4", reporter=Interrupting(9))
    run_data(stopped, "seed=7")
    assert data_bytes(stopped.run("s")) == data_bytes(calm.run("s"))


def test_prompts_are_looked_through_once_however_often_a_stage_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = workspace.run("s")
    with (workspace.root / "prompts" / "helpful.jsonl").open("a") as f:
        f.write("no JSON\n")
    with pytest.raises(KeyboardInterrupt):
        run_data(workspace, "window=4", reporter=Interrupting(9))
    with monkeypatch.context() as patched:
        patched.setattr("cai.pipeline.prompts.stream_prompts", lambda *_: pytest.fail("looked through again"))
        run_data(workspace, only=("respond",))
    assert [f["reason"] for f in rows(run.failures)] == ["unreadable"]
    with run.data("prompts").open("a") as f:  # by hand: they are written anew, as ever
        f.write("{}\n")
    run_data(workspace, only=("respond",))
    assert len(rows(run.data("prompts"))) == 12


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm, full = make_workspace(tmp_path / "calm"), make_workspace(tmp_path / "full")
    run_data(calm)
    real = os.fsync

    def no_space(fd: int) -> None:
        if "responses" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", no_space)
        with pytest.raises(StoreError, match=r"the disk is full\. Free some space and run the same command again"):
            run_data(full)
    assert not full.run("s").data("responses").exists()
    assert not list((full.run("s").path / "data").glob(".*")), "a temporary file stayed"
    again = run_data(full)
    assert again.stages[0].calls_made == 0 and again.stages[0].counts["responses"] == 12
    assert data_bytes(full.run("s")) == data_bytes(calm.run("s"))


def test_a_run_directory_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = workspace.run("s").path
    if os.geteuid() == 0:  # root may write anywhere: a file system mounted read-only is told the same way

        def refuse(path: str, flags: int) -> int:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr("cai.core.workspace.no_link", refuse)
    else:
        folder.chmod(0o555)
    try:
        with pytest.raises(StoreError, match=r"runs/s: not writable .*Give the folder write permission"):
            run_data(workspace)
    finally:
        folder.chmod(0o755)


@pytest.mark.attack
def test_what_a_killed_write_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = workspace.run("s")
    (run.path / "data").mkdir(parents=True)
    left = [run.path / f".{name}.0123abcd" for name in ("manifest.json", "recipe.yaml", "failures.jsonl", "metrics.jsonl")]
    left += [run.path / "data" / ".responses.jsonl.0123abcd", run.path / "models" / "policy" / "round-1" / ".pairs.jsonl.0123abcd"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    run_data(workspace, only=["respond"])
    assert run.data("responses").exists() and not any(path.exists() for path in left)
