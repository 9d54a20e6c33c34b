"""The same recipe gives the same bytes: whatever order Python's sets have in a process, and whatever was killed."""

import contextlib
import json
import re
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from cai.core.jsonl import write_records
from cai.core.workspace import RunDirectory, Workspace
from tests.train.builders import example, preference
from tests.workspaces import cai, make_workspace, start_cai

TRAINING = "precision: float32, batch_size: 2, max_length: {}, save_steps: 1, lora: {{ layers: 2, dropout: 0.1 }}"
PAIRS, SAMPLES = TRAINING.format(96), TRAINING.format(256)
METHODS = {
    "dpo": PAIRS,
    "ppo": f"method: ppo, {SAMPLES}, ppo: {{ total_episodes: 6, response_length: 8 }}",
    "grpo": f"method: grpo, {SAMPLES}, online: {{ num_generations: 2, max_tokens: 8 }}",
    "distill": f"method: distill, {TRAINING.format(512)}, online: {{ max_tokens: 8 }}, distill: {{ max_steps: 4 }}, epochs: 4",
    "online-dpo": f"method: online-dpo, {SAMPLES}, rounds: {{ count: 2, labels: reward }}",
}
RUN = ("run", "runs/s.yaml", "--only", "respond,sft,pairs,reward,policy")
_TIMED = re.compile(rb'"(?:seconds|step_time|resumed_from)":\s*[\d.e-]+')


def workspace_at(folder: Path, model: Path, policy: str) -> Workspace:
    recipe = f"""\
model: {{ path: {model}, precision: float32, max_length: 256 }}
prompts:
  train: [{{ path: prompts/harmful.jsonl, limit: 4 }}]
  evaluate: [{{ path: prompts/eval_harmful.jsonl, limit: 2 }}]
max_failure_fraction: 1.0
respond: {{ sampling: {{ max_tokens: 8 }} }}
pairs: {{ sampling: {{ max_tokens: 8 }} }}
distill: {{ per_prompt: 1 }}
sft: {{ {PAIRS} }}
reward: {{ {PAIRS} }}
policy: {{ {METHODS[policy]} }}
"""
    workspace = make_workspace(folder, recipe, adapters=False)
    run = workspace.run("s")
    (run.path / "data").mkdir(parents=True)
    write_records(run.data("sft"), [example(i, f"I would rather talk about number {i}.") for i in range(8)])
    write_records(run.data("preferences"), [preference(i, 0.9) for i in range(8)])
    write_records(run.data("preferences_heldout"), [preference(i) for i in range(90, 94)])
    return workspace


def files(run: RunDirectory) -> dict[str, bytes]:
    """Every file of a run, without times."""
    left_out = ("manifest.json", ".lock", "progress.json")
    found = {str(p.relative_to(run.path)): p.read_bytes() for p in sorted(run.path.rglob("*")) if p.is_file() and p.name not in left_out}
    return {name: _TIMED.sub(b"", content) for name, content in found.items()}


def calls(workspace: Workspace) -> list[bytes]:
    with contextlib.closing(sqlite3.connect(workspace.store_path)) as store:
        return sorted(key for (key,) in store.execute("SELECT key FROM calls"))


def begun(run: RunDirectory, adapter: str) -> bool:
    return any(run.model(adapter).rglob("checkpoint-2"))


@pytest.mark.attack
@pytest.mark.slow
@pytest.mark.parametrize("policy", METHODS)
def test_two_calm_runs_and_a_killed_one_have_the_same_bytes_and_calls(tmp_path: Path, tiny_model_dir: Path, policy: str) -> None:
    one, other, killed = (workspace_at(tmp_path / name / "w", tiny_model_dir, policy) for name in ("one", "other", "killed"))
    for seed, workspace in (("1", one), ("2", other)):
        done = cai(workspace.root, *RUN, environment={"PYTHONHASHSEED": seed}, timeout=900)
        assert done.returncode == 0, done.stderr
    run = killed.run("s")
    for adapter in ("sft", "reward-0", "policy"):
        process = start_cai(killed.root, *RUN, environment={"PYTHONHASHSEED": "3"})
        deadline = time.monotonic() + 900
        while not begun(run, adapter) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = cai(killed.root, *RUN, environment={"PYTHONHASHSEED": "4"}, timeout=900)
    assert done.returncode == 0, done.stderr
    config = json.loads((run.model("sft") / "adapter_config.json").read_text())
    assert len(config["target_modules"]) > 3 and config["target_modules"] == sorted(config["target_modules"])
    assert calls(one) == calls(other) == calls(killed)
    wanted = files(one.run("s"))
    for workspace in (other, killed):
        found = files(workspace.run("s"))
        assert {name for name in wanted | found if wanted.get(name) != found.get(name)} == set()
