"""Trainings of the real embedded model, really killed: whatever the moment, going on gives the bytes of a calm run."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from cai.core.jsonl import write_records
from cai.core.workspace import RunDirectory, Workspace
from tests.train.builders import example, preference
from tests.workspaces import cai, make_workspace, start_cai

pytestmark = pytest.mark.attack

STAGES = ("sft", "reward", "policy")
ADAPTERS = ("sft", "reward-0", "policy")
STEPS = 4
TRAINING = "{ precision: %s, optimizer: %s, batch_size: 2, max_length: 96, save_steps: 1, lora: { layers: 3, dropout: 0.1 } }"
RUN = ("run", "runs/s.yaml", "--only", ",".join(STAGES))


def workspace_at(folder: Path, precision: str, optimizer: str) -> Workspace:
    """A workspace that has what the three trainings read."""
    recipe = "".join(f"{stage}: {TRAINING % (precision, optimizer)}\n" for stage in STAGES)
    workspace = make_workspace(folder, recipe, adapters=False)
    run = workspace.run("s")
    write_records(run.data("sft"), [example(i, f"I would rather talk about number {i} in another way.") for i in range(2 * STEPS)])
    write_records(run.data("preferences"), [preference(i, 0.9) for i in range(2 * STEPS)])
    write_records(run.data("preferences_heldout"), [preference(i) for i in range(90, 94)])
    return workspace


def progress(run: RunDirectory) -> int:
    """Optimizer steps, over all three trainings, whose checkpoint was begun or whose training is finished."""
    done = 0
    for name in ADAPTERS:
        folder = run.model(name)
        steps = [int(p.name.rpartition("-")[2]) for p in folder.glob("checkpoints/checkpoint-*")]
        done += STEPS if (folder / "training.json").exists() else max(steps, default=0)
    return done


def weights(run: RunDirectory) -> dict[str, bytes]:
    return {name: (run.model(name) / "adapter_model.safetensors").read_bytes() for name in ADAPTERS}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "optimizer", "seed"), [("bfloat16", "adamw_torch", 0), ("nf4", "paged_adamw_8bit", 1)])
def test_trainings_killed_at_random_moments_end_with_the_bytes_of_a_calm_run(
    tmp_path: Path, precision: str, optimizer: str, seed: int
) -> None:
    calm, disturbed = (workspace_at(tmp_path / name, precision, optimizer) for name in ("calm", "disturbed"))
    assert (done := cai(calm.root, *RUN, timeout=1800)).returncode == 0, done.stderr
    chance = random.Random(seed)
    run = disturbed.run("s")
    kills = 0
    for wanted in sorted(chance.sample(range(1, len(STAGES) * STEPS), 4)):
        process = start_cai(disturbed.root, *RUN)
        deadline = time.monotonic() + 900
        while progress(run) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 1.0))  # while a checkpoint is written, in a step, between two trainings
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 4, "every run was still at work"
    assert (done := cai(disturbed.root, *RUN, timeout=1800)).returncode == 0, done.stderr
    assert weights(run) == weights(calm.run("s"))
    results = [json.loads((run.model(name) / "training.json").read_text())["result"] for name in ADAPTERS]
    assert [r["steps"] for r in results] == [STEPS] * 3
    assert any(r["resumed_from"] > 0 for r in results), "at least one training went on in its middle"
