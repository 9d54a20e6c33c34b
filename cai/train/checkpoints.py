"""Checkpoints and results of a training: which checkpoints are complete and belong to this training, and whether it has finished.

Two marker files, each written last and atomically, record this. `training.json` in the output folder marks a finished training and holds
its result. A checkpoint without its marker is incomplete, because the training was killed, and is removed. Both markers hold the
training's fingerprint (settings, model, token ids, labels, seed), so that a changed training never resumes from another's weights.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cai.core.jsonl import NOT_JSON, apply_umask, write_json, write_text
from cai.models.local.adapter import canonical_config

FINISHED = "training.json"
COMPLETE = "cai_checkpoint.json"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Result of a training."""

    steps: int
    examples: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of dropped examples by reason."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step and of the whole training."""
    seconds: float = 0.0
    """Wall-clock time of this process, without the time before a resume."""
    resumed_from: int = 0
    """The step that it was resumed from; 0 if it started from the beginning."""
    truncated: int = 0
    """Number of examples that were truncated to the maximum length."""


class _Finished(msgspec.Struct):
    fingerprint: str
    result: TrainResult


class _Complete(msgspec.Struct):
    fingerprint: str


def finished_result(out: Path, fingerprint: str) -> TrainResult | None:
    """Return the result of this training if it has finished in `out` and its adapter is there; else None."""
    try:
        finished = msgspec.json.decode((out / FINISHED).read_bytes(), type=_Finished)
    except (OSError, *NOT_JSON):
        return None
    is_valid = finished.fingerprint == fingerprint and (out / "adapter_model.safetensors").exists()
    return finished.result if is_valid else None


def mark_finished(out: Path, fingerprint: str, result: TrainResult) -> None:
    """Mark `out` as finished, as the last file that a training writes, and remove its checkpoints."""
    config = out / "adapter_config.json"
    if config.exists():
        write_text(config, json.dumps(canonical_config(json.loads(config.read_text(encoding="utf-8"))), indent=2, sort_keys=True) + "\n")
    apply_umask(out)
    write_json(out / FINISHED, _Finished(fingerprint, result))
    remove_checkpoints(out)


def mark_complete(checkpoint: Path, fingerprint: str) -> None:
    """Mark a checkpoint as complete. Call it after everything else is written."""
    write_text(checkpoint / COMPLETE, msgspec.json.encode(_Complete(fingerprint)).decode())


def last_checkpoint(out: Path, fingerprint: str) -> Path | None:
    """Return the newest complete checkpoint of this training, or None. Removes incomplete checkpoints and those of other trainings."""
    complete: dict[int, Path] = {}
    for folder in sorted(checkpoint_folder(out).glob("checkpoint-*")):
        try:
            usable = msgspec.json.decode((folder / COMPLETE).read_bytes(), type=_Complete).fingerprint == fingerprint
        except (OSError, *NOT_JSON):
            usable = False
        if usable and (match := _CHECKPOINT.match(folder.name)):
            complete[int(match[1])] = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return complete[max(complete)] if complete else None


def prune_checkpoints(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a training."""
    folders = {int(match[1]): folder for folder in checkpoint_folder(out).glob("checkpoint-*") if (match := _CHECKPOINT.match(folder.name))}
    for step in sorted(folders)[:-keep]:
        shutil.rmtree(folders[step], ignore_errors=True)


def checkpoint_folder(out: Path) -> Path:
    """Return the folder of a training's checkpoints."""
    return out / "checkpoints"


def remove_checkpoints(out: Path) -> None:
    """Remove a training's checkpoints."""
    shutil.rmtree(checkpoint_folder(out), ignore_errors=True)
