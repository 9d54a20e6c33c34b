"""Drills with real disks: full, limited, or only to be read. Finished calls stay, and the run goes on once there is room."""

import contextlib
import json
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.core.workspace import Workspace
from tests.cli.long_run import RUN, calls_kept, many_workspace
from tests.workspaces import cai, data_bytes, start_cai

pytestmark = pytest.mark.attack

KIB = 1024
ROOM_KIB = 700
"""Beside what a workspace takes: enough for some hundreds of calls, and not for all."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, bytes]]:
    """Calls and outputs of a run with all the room it wants."""
    workspace = many_workspace(tmp_path_factory.mktemp("calm") / "w")
    assert cai(workspace.root, *RUN).returncode == 0
    return calls_kept(workspace), data_bytes(workspace.run("s"))


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """A file system of its own in memory, where the process may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "cai-drill", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode != 0:
        pytest.skip(f"may not mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def used_kib(folder: Path) -> int:
    return int(subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True, check=True).stdout.split()[0])


def stopped_for_room(workspace: Workspace, told: str, **options: Any) -> int:
    """Run until there is no room; return how many calls are kept."""
    run = start_cai(workspace.root, *RUN, **options)
    _, err = run.communicate(timeout=120)
    shown = " ".join(err.replace("│", " ").split())
    assert run.returncode == 2 and "StoreError" in err and "Traceback" not in err, err
    assert told in shown and "finished call" in shown
    return calls_kept(workspace)


def goes_on(workspace: Workspace, kept: int, calm: tuple[int, dict[str, bytes]]) -> None:
    """Run to the end: what is kept is not asked again, and the outputs are a calm run's."""
    assert 0 < kept < calm[0]
    done = cai(workspace.root, *RUN, "--json", timeout=120)
    assert done.returncode == 0, done.stderr
    assert sum(s["calls_made"] for s in json.loads(done.stdout)["stages"]) == calm[0] - kept
    assert data_bytes(workspace.run("s")) == calm[1]


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, calm: tuple[int, dict[str, bytes]]) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 64 * KIB):
        workspace = many_workspace(disk / "w")
        remount(disk, f"size={used_kib(disk) + ROOM_KIB}k")
        kept = stopped_for_room(workspace, "the disk is full")
        assert stopped_for_room(workspace, "the disk is full") >= kept, "trying again without room loses nothing either"
        kept = calls_kept(workspace)
        remount(disk, f"size={64 * KIB}k")
        goes_on(workspace, kept, calm)


def test_a_limit_on_the_size_of_files(tmp_path: Path, calm: tuple[int, dict[str, bytes]]) -> None:
    workspace = many_workspace(tmp_path / "w")
    limit = ROOM_KIB * KIB
    kept = stopped_for_room(workspace, "ulimit -f", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    goes_on(workspace, kept, calm)


def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 16 * KIB):
        workspace = many_workspace(disk / "w")
        done = cai(
            workspace.root, "run", "runs/s.yaml", "--only", "respond", "--set", "prompts.train=[{path: prompts/harmful.jsonl, limit: 3}]"
        )
        assert done.returncode == 0, done.stderr
        before = data_bytes(workspace.run("s"))
        remount(disk, "ro")
        for args in (("run", "runs/s.yaml", "--only", "respond"), ("report", "s"), ("run", "runs/s.yaml", "--name", "new")):
            done = cai(workspace.root, *args)
            assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
            assert "Give the folder write permission" in " ".join(done.stderr.replace("│", " ").split())
        shown = cai(workspace.root, "status", "s", "--json")
        assert shown.returncode == 0 and json.loads(shown.stdout)["stages"][0]["state"] == "done", "looking needs no writing"
        assert data_bytes(workspace.run("s")) == before
