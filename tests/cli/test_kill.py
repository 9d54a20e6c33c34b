"""Real processes, really killed: nothing that was finished is asked again, and the outputs are those of a calm run."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cai.core.workspace import Workspace
from tests.cli.long_run import ITEMS, RUN, calls_kept, many_workspace
from tests.workspaces import cai, data_bytes, start_cai

pytestmark = pytest.mark.attack


def wait_for_calls(process: "subprocess.Popen[str]", workspace: Workspace, wanted: int) -> None:
    deadline = time.monotonic() + 60
    while calls_kept(workspace) < wanted:
        assert process.poll() is None, f"ended before its {wanted}th call: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def summary(workspace: Workspace) -> dict[str, Any]:
    done = cai(workspace.root, *RUN, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, bytes]]:
    """Calls and outputs of a run that nobody disturbed."""
    workspace = many_workspace(tmp_path_factory.mktemp("calm") / "w")
    made = sum(s["calls_made"] for s in summary(workspace)["stages"])
    assert made == calls_kept(workspace) > 2 * ITEMS
    return made, data_bytes(workspace.run("s"))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_twice_at_random_ends_as_a_calm_one(tmp_path: Path, calm: tuple[int, dict[str, bytes]], seed: int) -> None:
    total, outputs = calm
    workspace = many_workspace(tmp_path / "w")
    for wanted in sorted(random.Random(seed).sample(range(1, int(0.8 * total)), 2)):
        process = start_cai(workspace.root, *RUN)
        wait_for_calls(process, workspace, wanted)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    kept = calls_kept(workspace)
    assert 0 < kept < total
    assert not workspace.run("s").in_use(), "the lock goes with its process"
    assert sum(s["calls_made"] for s in summary(workspace)["stages"]) == total - kept
    assert data_bytes(workspace.run("s")) == outputs


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_distillation_killed_twice_at_random_ends_as_a_calm_one(tmp_path: Path, seed: int) -> None:
    options = ("sft.data=[distill]", "distill.min_share=0.0", "window=2")  # two prompts at a time: many small commits
    stages = ("run", "runs/s.yaml", "--only", "respond,distill", *(part for option in options for part in ("--set", option)))
    calm, killed = (many_workspace(tmp_path / name) for name in ("calm", "killed"))
    assert (done := cai(calm.root, *stages)).returncode == 0, done.stderr
    outputs, total = data_bytes(calm.run("s")), calls_kept(calm)
    assert outputs["distilled.jsonl"].count(b"\n") > ITEMS / 4 and total > 4 * ITEMS
    for wanted in sorted(random.Random(seed).sample(range(ITEMS, total // 2), 2)):  # from where `respond` is done
        process = start_cai(killed.root, *stages)
        wait_for_calls(process, killed, wanted)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    kept = calls_kept(killed)
    assert ITEMS < kept < total
    assert (done := cai(killed.root, *stages, "--json")).returncode == 0, done.stderr
    assert sum(s["calls_made"] for s in json.loads(done.stdout)["stages"]) == total - kept
    assert data_bytes(killed.run("s")) == outputs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "a scheduler's"])
def test_ctrl_c_ends_a_run_with_130_and_says_how_to_go_on(
    tmp_path: Path, calm: tuple[int, dict[str, bytes]], number: signal.Signals
) -> None:
    workspace = many_workspace(tmp_path / "w")
    process = start_cai(workspace.root, *RUN)
    wait_for_calls(process, workspace, 100)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped. Finished calls and checkpoints are kept. Run the same command again to resume." in err
    assert "Traceback" not in err
    shown = cai(workspace.root, "status", "s", "--json")
    states = {s["name"]: s["state"] for s in json.loads(shown.stdout)["stages"]}
    assert "stopped" in states.values() and "failed" not in states.values()
    assert sum(s["calls_made"] for s in summary(workspace)["stages"]) < calm[0]
    assert data_bytes(workspace.run("s")) == calm[1]


def test_a_model_amid_a_batch_does_not_hold_up_the_second_ctrl_c() -> None:
    code = """
import time
from concurrent.futures import ThreadPoolExecutor
import cai.cli
@cai.cli.app.command()
def busy():
    ThreadPoolExecutor(1).submit(time.sleep, 600)
    raise KeyboardInterrupt
cai.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code, "busy"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130 and done.stderr.strip().startswith("Stopped.") and "Traceback" not in done.stderr


def test_two_runs_at_once_are_refused_by_name_of_process(tmp_path: Path) -> None:
    workspace = many_workspace(tmp_path / "w")
    process = start_cai(workspace.root, *RUN)
    wait_for_calls(process, workspace, 1)
    process.send_signal(signal.SIGSTOP)  # holds its lock for as long as this test needs
    try:
        second = cai(workspace.root, "run", "runs/s.yaml", "--only", "respond", "--set", "prompts.train=[]")
        other = cai(workspace.root, "run", "runs/s.yaml", "--only", "respond", "--name", "other", "--set", "model.name=other")
        shown = cai(workspace.root, "status", "s", "--json")
    finally:
        process.kill()
        process.communicate()
    assert second.returncode == 2 and f"pid {process.pid}" in second.stderr and "StoreError" in second.stderr
    assert other.returncode == 0, other.stderr
    assert "running" in {s["state"] for s in json.loads(shown.stdout)["stages"]}
