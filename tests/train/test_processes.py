"""Two gloo processes under `torchrun`: the losses and the weights of one process, and a run that one leads and the other joins."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cai.core.jsonl import read_records
from cai.core.manifest import read_manifest
from cai.core.workspace import Workspace
from cai.pipeline.methods.online_dpo import PREFERENCES
from cai.records import MonitorPoint, Preference
from cai.train.checkpoints import FINISHED
from cai.train.monitor import FRONTIER
from tests.pipeline.tiny_runs import ROUNDS, tiny_workspace
from tests.train.builders import assert_same_weights
from tests.train.processes import STEPS, run_all
from tests.workspaces import RECIPE, ROOT, cai, make_workspace, rows

TOGETHER = ("sft", "reward", "dpo", "kto", "grpo", "rloo", "distill")


def started(*command: str, cwd: Path = ROOT) -> "subprocess.Popen[str]":
    """Two processes under torchrun."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*launcher, *command], cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def torchrun(*command: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    run = started(*command, cwd=cwd)
    try:
        stdout, stderr = run.communicate(timeout=600)
    finally:
        run.kill()  # where it took too long
    return subprocess.CompletedProcess(run.args, run.returncode, stdout, stderr)


def kill_leader(launcher: "subprocess.Popen[str]") -> None:
    """Kill the first of a launcher's processes, as the system does where memory runs out."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    [leader] = [int(pid) for pid in children if b"RANK=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    os.kill(leader, signal.SIGKILL)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "training_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Every training by one process, and by two with half the batch each."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    run_all(tiny_model_dir, one)
    done = torchrun("-m", "tests.train.processes", str(tiny_model_dir), str(two))
    assert done.returncode == 0, done.stderr
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOGETHER)
def test_two_processes_train_as_one_does(trained: tuple[Path, Path], kind: str) -> None:
    one, two = (folder / kind for folder in trained)
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-4, abs=1e-5)
    assert_same_weights(one, two, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_ktos_divergence_is_that_of_all_processes(trained: tuple[Path, Path]) -> None:
    one, two = ([step["kl"] for step in rows(folder / "kto" / "training_log.jsonl")] for folder in trained)
    assert max(one) > 0.0 and two == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_last_step_with_one_pair_left_keeps_no_process_waiting(trained: tuple[Path, Path]) -> None:
    one, two = (losses(folder / "dpo-short") for folder in trained)
    assert len(one) == len(two) == STEPS and two[:-1] == pytest.approx(one[:-1], rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_two_processes_see_what_one_sees(trained: tuple[Path, Path]) -> None:
    one, two = (list(read_records(folder / "grpo" / FRONTIER, MonitorPoint)) for folder in trained)
    assert [p.step for p in one] == [p.step for p in two] == [0, 2, 3]
    assert one[0] == two[0] and two[-1].kl == pytest.approx(one[-1].kl, abs=1e-3)


@pytest.mark.slow
def test_a_run_is_led_by_one_process_and_trained_by_two(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = tiny_workspace(tmp_path / "w", tiny_model_dir)
    command = ("-m", "cai", "run", "runs/s.yaml", "--json", "--set", "sft.batch_size=1")
    done = torchrun(*command, cwd=workspace.root)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)  # of one process: two answers would not be JSON
    run = workspace.run("s")
    assert all(s["calls_made"] for s in answer["stages"] if s["name"] in ("respond", "critique", "feedback"))
    manifest = read_manifest(run.manifest)
    assert manifest is not None and {s.status for s in manifest.stages} == {"done"}
    examples = len(rows(run.data("sft")))
    steps = manifest.stage("sft").counts["steps"]  # type: ignore[union-attr]
    assert steps == math.ceil(examples / 2) < examples, "two processes with one example each a step"
    again = torchrun(*command, cwd=workspace.root)
    assert [s["name"] for s in json.loads(again.stdout)["stages"] if not s["reused"]] == ["report"]


@pytest.mark.slow
def test_rounds_of_online_dpo_are_sampled_by_one_process_and_trained_by_two_as_by_one(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = tiny_workspace(tmp_path / "one", tiny_model_dir)
    assert cai(workspace.root, "run", "runs/s.yaml", "--only", "respond,critique,sft").returncode == 0
    shutil.copytree(workspace.root, tmp_path / "two")
    overrides = [o for value in (*ROUNDS, "policy.rounds.prompts=8") for o in ("--set", value)]
    command = ("run", "runs/s.yaml", "--only", "policy", "--json", *overrides)
    assert cai(workspace.root, *command).returncode == 0
    done = torchrun("-m", "cai", *command, "--set", "policy.batch_size=2", cwd=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (w.run("s").model("policy") for w in (workspace, Workspace(tmp_path / "two")))
    for number in ("round-1", "round-2"):
        texts = [[(p.chosen, p.rejected, p.p_chosen) for p in read_records(f / number / PREFERENCES, Preference)] for f in (one, two)]
        assert texts[0] == texts[1] and len(texts[0]) % 4 == 0, "else the last step would repeat some pairs"
        assert losses(two / number) == pytest.approx(losses(one / number), rel=1e-4, abs=1e-5)
        assert_same_weights(one / number, two / number, rtol=1e-3, atol=2e-5)
    assert_same_weights(two, two / "round-2")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
@pytest.mark.parametrize("after", [f"round-1/{PREFERENCES}", f"round-1/{FINISHED}", f"round-2/{PREFERENCES}"])
def test_a_killed_leader_ends_every_process_and_rounds_go_on_to_the_same_weights(tmp_path: Path, tiny_model_dir: Path, after: str) -> None:
    calm = tiny_workspace(tmp_path / "calm", tiny_model_dir)
    assert cai(calm.root, "run", "runs/s.yaml", "--only", "respond,critique,sft").returncode == 0
    killed = Workspace(tmp_path / "killed")
    shutil.copytree(calm.root, killed.root)
    overrides = [o for value in (*ROUNDS, "policy.batch_size=2") for o in ("--set", value)]
    command = ("-m", "cai", "run", "runs/s.yaml", "--only", "policy", *overrides)
    assert torchrun(*command, cwd=calm.root).returncode == 0
    one, two = (w.run("s").model("policy") for w in (calm, killed))

    run = started(*command, cwd=killed.root)
    try:
        deadline = time.monotonic() + 300
        while not (two / after).exists():
            assert run.poll() is None and time.monotonic() < deadline, f"never came to {after}"
            time.sleep(0.005)
        kill_leader(run)
        run.communicate(timeout=120)  # nobody waits for the dead
    finally:
        run.kill()
    assert run.returncode != 0 and not (two / "adapter_model.safetensors").exists()

    done = torchrun(*command, cwd=killed.root)
    assert done.returncode == 0, done.stderr
    assert_same_weights(one, two, rtol=0.0, atol=0.0)
    for number in ("round-1", "round-2"):
        assert (one / number / PREFERENCES).read_bytes() == (two / number / PREFERENCES).read_bytes()


@pytest.mark.slow
def test_a_round_that_fails_ends_every_process_with_one_message(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = tiny_workspace(tmp_path / "w", tiny_model_dir)
    assert cai(workspace.root, "run", "runs/s.yaml", "--only", "respond,critique,sft").returncode == 0
    overrides = [o for value in (*ROUNDS, "preferences.min_margin=0.5") for o in ("--set", value)]  # no label is so certain
    done = torchrun("-m", "cai", "run", "runs/s.yaml", "--only", "policy", *overrides, cwd=workspace.root)
    assert done.returncode != 0 and not (workspace.run("s").model("policy") / "round-1" / "adapter_model.safetensors").exists()
    assert done.stderr.count("DataError") == 1


@pytest.mark.slow
def test_a_users_error_ends_every_process_with_one_message(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", RECIPE)
    done = torchrun("-m", "cai", "run", "runs/s.yaml", "--only", "policy", "--set", "constitution=nowhere.yaml", cwd=workspace.root)
    assert done.returncode != 0
    assert done.stderr.count("nowhere.yaml") >= 1 and done.stderr.count("RecipeError") == 1


def test_a_command_that_cannot_share_its_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w", RECIPE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cai(workspace.root, "plan", "runs/s.yaml")
    assert done.returncode == 2 and "cai plan: started in 2 processes" in done.stderr
