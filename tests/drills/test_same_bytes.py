"""The same recipe gives the same bytes: whatever order Python's sets have in a process, and whatever was killed, in every stage."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cai.core.stages import STAGE_NAMES
from cai.core.workspace import RunDirectory, Workspace
from tests.drills.forked import Forked
from tests.workspaces import make_workspace

TRAINING = "precision: float32, batch_size: 2, max_length: 400, save_steps: 1, lora: { layers: 2, dropout: 0.1 }"
SHORT = "sampling: { max_tokens: 24 }"
METHODS = {
    "dpo": "method: dpo, epochs: 2",
    "kto": "method: kto, epochs: 3",
    "ppo": "method: ppo, ppo: { total_episodes: 48, response_length: 8 }",
    "grpo": "method: grpo, online: { num_generations: 2, max_tokens: 8 }, epochs: 3",
    "rloo": "method: rloo, online: { num_generations: 2, max_tokens: 8 }, epochs: 3",
    "distill": "method: distill, online: { max_tokens: 8 }, distill: { max_steps: 24 }, epochs: 12",
    "best-of-n": "method: best-of-n, online: { num_generations: 3, max_tokens: 8 }, epochs: 3",
    "online-dpo": "method: online-dpo, online: { max_tokens: 16 }, rounds: { count: 2, labels: reward }, epochs: 3",
}
RUN = ("run", "runs/s.yaml")
BEFORE_POLICY = ("--only", "respond,critique,distill,sft,pairs,feedback,preferences,reward")
EVERY_STAGE = sorted([*STAGE_NAMES, "sft", "reward", "policy", "policy", "policy", "blend"], key=STAGE_NAMES.index)
"""The stages in which the run with DPO is killed, one after the other. The others are killed in their policy stage only."""
POLICY_KILLS = 14
_TIMED = re.compile(rb'"(?:seconds|step_time|resumed_from)":\s*[\d.e-]+')


@pytest.fixture(scope="module")
def ending_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a longer context, and with answers that end: a token in six is the end of the turn."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("ending") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[0] = 0.0  # no layer writes to the first feature: it is the same everywhere, a bias
    weights["model.embed_tokens.weight"][:, 0] = 2.0
    weights["model.embed_tokens.weight"][config["eos_token_id"], 0] = 16.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def recipe_of(model: Path, policy: str) -> str:
    return f"""\
model: {{ path: {model}, precision: float32, max_length: 8192 }}
constitution: constitution/starter.yaml
prompts:
  train: [{{ path: prompts/harmful.jsonl, limit: 8 }}]
  evaluate: [{{ path: prompts/eval_harmful.jsonl, limit: 3 }}]
max_failure_fraction: 1.0
respond: {{ {SHORT} }}
critique: {{ {SHORT}, min_p_revised: 0.0, drop_refusals: false }}
distill: {{ {SHORT}, per_prompt: 2, min_share: 0.0 }}
pairs: {{ {SHORT} }}
feedback: {{ principles: sample, bench_limit: 2 }}
sft: {{ data: [critique, distill], {TRAINING} }}
reward: {{ {TRAINING} }}
policy: {{ {METHODS[policy]}, {TRAINING.replace("400", "4000") if policy == "distill" else TRAINING} }}
blend: {{ prompts: [{{ path: prompts/more_harmful.jsonl, limit: 4 }}], keep: {{ brief: 0.5 }}, shares: [0.5], {SHORT} }}
evaluate: {{ {SHORT}, told: 1 }}
"""


def workspace_at(folder: Path, model: Path, policy: str) -> Workspace:
    return make_workspace(folder, recipe_of(model, policy), adapters=False)


def files(run: RunDirectory) -> dict[str, bytes]:
    """Every file of a run, without times; the manifest and the report are made of them."""
    left_out = ("manifest.json", "report.html", ".lock", "progress.json")
    found = {str(p.relative_to(run.path)): p.read_bytes() for p in sorted(run.path.rglob("*")) if p.is_file() and p.name not in left_out}
    return {name: _TIMED.sub(b"", content) for name, content in found.items()}


def calls(workspace: Workspace) -> dict[bytes, tuple[int, float]]:
    """Each call's key, with its row and the seconds that it took: another row under the same key is a call that was made again."""
    if not workspace.store_path.exists():
        return {}
    with contextlib.closing(sqlite3.connect(f"file:{workspace.store_path}?mode=ro", uri=True)) as store:
        try:
            return {key: (row, seconds) for key, row, seconds in store.execute("SELECT key, rowid, seconds FROM calls")}
        except sqlite3.OperationalError:  # its table isn't made yet
            return {}


def stage_of(run: RunDirectory) -> str:
    """The stage that is running; empty between two."""
    try:
        entries = json.loads(run.manifest.read_bytes())["stages"]
    except FileNotFoundError:
        return ""
    return next((entry["name"] for entry in entries if entry["status"] == "running"), "")


def state_of(workspace: Workspace) -> tuple[frozenset[str], int]:
    """What is there of a run: its files and folders, and the size of the call store's log. The run may remove some meanwhile."""
    walked = os.walk(workspace.run("s").path)  # unlike rglob, it passes over a folder that is gone
    found = frozenset(f"{folder}/{name}" for folder, folders, files in walked for name in (*folders, *files))
    size = 0
    with contextlib.suppress(FileNotFoundError):
        size = Path(f"{workspace.store_path}-wal").stat().st_size
    return found, size


def kill_in(forked: Forked, workspace: Workspace, stage: str, changes: int, command: tuple[str, ...]) -> str | None:
    """Run, and kill once a stage has changed that much on the disk, or a later one has begun.

    Returns:
        The stage that was killed; None if the run ended before.
    """
    run = workspace.run("s")
    written = run.manifest.stat().st_mtime_ns if run.manifest.exists() else 0
    pid = forked.start(workspace.root, *command)
    deadline, seen, before, running = time.monotonic() + 1800, 0, None, ""
    while not forked.ended() and seen < changes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        if run.manifest.exists() and (now := run.manifest.stat().st_mtime_ns) != written:
            written, running = now, stage_of(run)
        if running and STAGE_NAMES.index(running) > STAGE_NAMES.index(stage):
            break
        if running == stage and (state := state_of(workspace)) != before:
            seen, before = seen + 1, state
    if not forked.ended():
        os.kill(pid, signal.SIGKILL)
    code = forked.wait()
    assert code in (0, -signal.SIGKILL), forked.errors
    return None if code == 0 else stage_of(run) or "between two"


def run_to_end(forked: Forked, workspace: Workspace, command: tuple[str, ...]) -> None:
    forked.start(workspace.root, *command)
    assert forked.wait() == 0, forked.errors


@pytest.fixture(scope="module")
def forked() -> Iterator[Sequence[Forked]]:
    """Where runs come from; each has another hash seed."""
    processes = [Forked(seed) for seed in ("1", "2", "3")]
    yield processes
    for process in processes:
        process.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ending_model_dir: Path, forked: Sequence[Forked]) -> Path:
    """A workspace with all that a policy is trained on."""
    workspace = workspace_at(tmp_path_factory.mktemp("prepared") / "w", ending_model_dir, "dpo")
    run_to_end(forked[0], workspace, (*RUN, *BEFORE_POLICY))
    return workspace.root


def same_bytes(
    forked: Sequence[Forked], one: Workspace, other: Workspace, killed: Workspace, command: tuple[str, ...], stages: Sequence[str]
) -> Counter[str]:
    """Run two to the end, and kill the third in stage after stage before it ends too; return how often each stage was killed.

    Nothing may be lost or asked again, and all three have the same files and calls.
    """
    run_to_end(forked[0], one, command)
    run_to_end(forked[1], other, command)
    draw, hit = random.Random(one.root.parent.name), Counter[str]()
    lost = repeated = 0
    for number, stage in enumerate(stages):
        before = calls(killed)
        found = kill_in(forked[number % 3], killed, stage, draw.randint(1, 8), command)
        if found is None:
            break
        hit[found] += 1
        now = calls(killed)
        lost += len(before.keys() - now)
        repeated += sum(now.get(key, row) != row for key, row in before.items())
    run_to_end(forked[2], killed, command)
    wanted, others = files(one.run("s")), [files(w.run("s")) for w in (other, killed)]
    differ = {name for found in others for name in wanted | found if wanted.get(name) != found.get(name)}
    print(f"{hit.total()} kills: {dict(hit)}; {len(calls(one))} calls, {lost} lost, {repeated} asked again; ", end="")
    print(f"{len(wanted)} files, {len(differ)} differ {sorted(differ)}")
    assert (lost, repeated, differ) == (0, 0, set())
    assert calls(one).keys() == calls(other).keys() == calls(killed).keys()
    return hit


@pytest.mark.attack
@pytest.mark.slow
def test_two_calm_runs_and_one_killed_in_every_stage_have_the_same_bytes_and_calls(
    tmp_path: Path, ending_model_dir: Path, forked: Sequence[Forked]
) -> None:
    one, other, killed = (workspace_at(tmp_path / name / "w", ending_model_dir, "dpo") for name in ("one", "other", "killed"))
    hit = same_bytes(forked, one, other, killed, RUN, EVERY_STAGE)
    assert hit.total() >= len(EVERY_STAGE) - 3 and len(hit) >= 7, hit  # a short stage may be over before it is hit
    counts = {s["name"]: s["counts"] for s in json.loads(one.run("s").manifest.read_text())["stages"]}
    assert min(counts["critique"]["sft_examples"], counts["distill"]["kept"], counts["preferences"]["train"]) > 0, counts
    config = json.loads((one.run("s").model("sft") / "adapter_config.json").read_text())
    assert len(config["target_modules"]) > 3 and config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.attack
@pytest.mark.slow
@pytest.mark.parametrize("policy", [name for name in METHODS if name != "dpo"])
def test_two_calm_policies_and_a_killed_one_have_the_same_bytes_and_calls(
    tmp_path: Path, ending_model_dir: Path, prepared: Path, forked: Sequence[Forked], policy: str
) -> None:
    workspaces = [Workspace(Path(shutil.copytree(prepared, tmp_path / name / "w"))) for name in ("one", "other", "killed")]
    for workspace in workspaces:
        (workspace.root / "runs" / "s.yaml").write_text(recipe_of(ending_model_dir, policy))
    one, other, killed = workspaces
    hit = same_bytes(forked, one, other, killed, (*RUN, "--only", "policy"), ["policy"] * POLICY_KILLS)
    assert set(hit) == {"policy"} and hit.total() >= POLICY_KILLS // 2, hit
