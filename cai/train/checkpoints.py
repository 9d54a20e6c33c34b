"""What makes a training resumable: which checkpoints are whole, whether they belong to this training, and whether it is finished.

Everything hangs on two marker files, each written last and at once. `training.json` in the output folder says that a training is
finished, with what result. A checkpoint without its own marker was torn by a kill, and is removed. Both carry the fingerprint of
the training (settings, model, token ids, labels, seed), so that a changed one never goes on from another's weights.
"""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cai.core.jsonl import NOT_JSON, write_text

FINISHED = "training.json"
WHOLE = "cai_checkpoint.json"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training did. `dropped` says how many examples were left out, by reason; `metrics` are the last step's and the total's."""

    steps: int
    examples: int
    dropped: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Of this process: less than the whole where a killed training went on."""
    resumed_from: int = 0
    """The step that it went on from; 0 where it started at the beginning."""


class _Finished(msgspec.Struct):
    fingerprint: str
    result: TrainResult


class _Whole(msgspec.Struct):
    fingerprint: str


def finished_result(out: Path, fingerprint: str) -> TrainResult | None:
    """Return the result of this training if `out` holds it finished, adapter and all; else None."""
    try:
        finished = msgspec.json.decode((out / FINISHED).read_bytes(), type=_Finished)
    except (OSError, *NOT_JSON):
        return None
    whole = finished.fingerprint == fingerprint and (out / "adapter_model.safetensors").exists()
    return finished.result if whole else None


def mark_finished(out: Path, fingerprint: str, result: TrainResult) -> None:
    """Say that `out` is complete. The last thing a training writes; its checkpoints go after."""
    write_text(out / FINISHED, msgspec.json.format(msgspec.json.encode(_Finished(fingerprint, result)), indent=2).decode() + "\n")
    remove_checkpoints(out)


def mark_whole(checkpoint: Path, fingerprint: str) -> None:
    """Say that a checkpoint is complete. The last thing written into it."""
    write_text(checkpoint / WHOLE, msgspec.json.encode(_Whole(fingerprint)).decode())


def last_checkpoint(out: Path, fingerprint: str) -> Path | None:
    """Return the newest whole checkpoint of this training, after removing those that are torn or belong to another; else None."""
    found: dict[int, Path] = {}
    for folder in sorted(checkpoint_folder(out).glob("checkpoint-*")):
        try:
            whole = msgspec.json.decode((folder / WHOLE).read_bytes(), type=_Whole).fingerprint == fingerprint
        except (OSError, *NOT_JSON):
            whole = False
        if whole and (match := _CHECKPOINT.match(folder.name)):
            found[int(match[1])] = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return found[max(found)] if found else None


def prune_checkpoints(out: Path, keep: int) -> None:
    """Remove all but the newest checkpoints of a training, for a trainer that has no such thing of its own."""
    found = {int(match[1]): folder for folder in checkpoint_folder(out).glob("checkpoint-*") if (match := _CHECKPOINT.match(folder.name))}
    for step in sorted(found)[:-keep]:
        shutil.rmtree(found[step], ignore_errors=True)


def checkpoint_folder(out: Path) -> Path:
    """Return the folder of a training's checkpoints."""
    return out / "checkpoints"


def remove_checkpoints(out: Path) -> None:
    """Remove a training's checkpoints."""
    shutil.rmtree(checkpoint_folder(out), ignore_errors=True)
