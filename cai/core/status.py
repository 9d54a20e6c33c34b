"""The status of a run, read from its manifest, its failures and, while it is running, its progress file."""

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cai.core.jsonl import read_existing, read_file
from cai.core.manifest import read_manifest
from cai.core.stages import STAGE_INFO, STAGE_NAMES
from cai.core.workspace import RunDirectory, no_such_run
from cai.core.yaml_source import load_yaml
from cai.errors import DataError
from cai.records import Failure


@dataclass(frozen=True)
class StageStatus:
    """Status of one stage. `state`: done, running, stopped, failed, waiting, or not run where no process is running the recipe."""

    name: str
    state: str
    seconds: float = 0.0
    calls_made: int = 0
    calls_reused: int = 0
    failures: int = 0
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStatus:
    """Status of a run: its stages in order, and notes for the reader."""

    run: str
    path: str
    stages: tuple[StageStatus, ...]
    notes: tuple[str, ...]


def stages_of(run: Path) -> list[str]:
    """Return the names of a run's stages, in order; the paper's if its recipe can't be read."""
    try:
        recipe = load_yaml(run / "recipe.yaml", DataError).data
    except DataError:
        recipe = None
    return [name for name, stage in STAGE_INFO.items() if stage.is_in(recipe)]


def run_status(run: RunDirectory) -> RunStatus:
    """Read the status of a run.

    Raises:
        DataError: the run does not exist.
    """
    manifest = read_manifest(run.manifest)
    if manifest is None:
        raise no_such_run(run)
    failures = Counter(f.stage for f in read_existing(run.failures, Failure, torn_tail="drop"))
    alive = run.in_use()
    expected, stages = stages_of(run.path), []
    for name in STAGE_NAMES:
        entry = manifest.stage(name)
        if entry is None:
            if name in expected:
                waits = alive and (not manifest.chosen or name in manifest.chosen)
                stages.append(StageStatus(name, "waiting" if waits else "not run"))
            continue
        state = "stopped" if entry.status == "running" and not alive else entry.status
        seconds = _since(entry.started) if state == "running" else entry.seconds
        stages.append(StageStatus(name, state, seconds, entry.calls_made, entry.calls_reused, failures[name], entry.counts))
    notes = [f"{s.name}: {s.message}" for s in manifest.stages if s.message and s.status == "failed"]
    progress = run.path / "progress.json"
    if alive and progress.exists():
        try:
            now = json.loads(read_file(progress))
            doing = now.get("loading") or f"{now['done']} of {now['total'] or '?'} {now['unit']}, {now['calls']} calls"
            notes.append(f"now: {now['stage']}, {doing}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
            notes.append("now: working")
    if manifest.judge is not None:
        notes.append(f"judge: {manifest.judge.note}")
    if run.report.exists():
        notes.append(f"report: {run.report}")
    return RunStatus(manifest.name, str(run.path), tuple(stages), tuple(notes))


def _since(started: str) -> float:
    """Return the seconds since a time in ISO 8601; 0 for another text."""
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds())
    except (ValueError, TypeError):  # a run of another version
        return 0.0
