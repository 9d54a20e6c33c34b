"""A preference training's loss, margin and accuracy on held-out pairs, epoch by epoch: which epoch is kept, and when training stops."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.core.jsonl import read_existing

HELD_OUT = "held_out.jsonl"
"""File of the measurements, in the policy's folder."""


@dataclass(frozen=True, slots=True)
class HeldOutPoint:
    """One measurement on the held-out pairs."""

    step: int
    epoch: float
    loss: float
    """Mean loss, as in training, of equally weighted pairs."""
    margin: float
    """Mean difference of the implicit rewards of the preferred and the other response; for KTO, twice the mean signed reward."""
    accuracy: float
    """Fraction of pairs (for KTO, of responses) whose implicit rewards agree with the label, in [0, 1]."""
    n: int
    """Number of pairs; for KTO, of responses."""


def best_point(points: Sequence[HeldOutPoint]) -> HeldOutPoint | None:
    """Return the measurement with the lowest loss, the earliest on ties; None without measurements."""
    return min(points, key=lambda p: (p.loss, p.step), default=None)


def is_over(points: Sequence[HeldOutPoint], patience: int | None) -> bool:
    """Return whether training should stop: the last `patience` measurements have no lower loss than an earlier one. None never stops."""
    best = best_point(points)
    return patience is not None and best is not None and len(points) - 1 - points.index(best) >= patience


def read_points(out: Path) -> list[HeldOutPoint]:
    """Return a training's measurements; empty if there are none."""
    path = out / HELD_OUT
    return list(read_existing(path, HeldOutPoint, torn_tail="drop"))
