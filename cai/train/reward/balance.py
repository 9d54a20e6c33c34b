"""Weights under which longer and shorter answers win equally often among a reward model's pairs.

Where people prefer the shorter answer more often than not, length is the easiest thing to learn, and a policy that is rewarded by it
learns to say nothing (Singhal et al. 2023, arXiv 2310.03716, study length and such balancing in reward models, for longer answers).
"""

from collections.abc import Sequence
from dataclasses import replace

from cai.records import Preference

SIZES = (6 / 5, 2.0)
"""Lower edges of (longer answer's characters / shorter one's). Pairs are balanced among those of one size; below the first, they stay."""
LARGEST = 4.0
"""No weight is multiplied by more: a handful of pairs can't speak for a hundred."""


def balance_lengths(preferences: Sequence[Preference]) -> list[Preference]:
    """Return the same pairs with weights under which either length has as much of the labels' say, separately by difference in length.

    A pair says weight × |2p − 1| for its better side. The say of all pairs of a size together stays what it was, unless `LARGEST` or a
    size that only one length ever wins hinders it; there the longer and the shorter still don't balance.

    Args:
        preferences: labels in [0, 1], weights at least 0.
    """
    kinds = [_kind(p) for p in preferences]
    say: dict[tuple[int, bool], float] = {}
    for kind, p in zip(kinds, preferences, strict=True):
        say[kind] = say.get(kind, 0.0) + p.weight * abs(2 * p.p_chosen - 1)
    return [
        p if size == 0 else replace(p, weight=p.weight * _factor(say[size, longer], say.get((size, not longer), 0.0)))
        for (size, longer), p in zip(kinds, preferences, strict=True)
    ]


def _kind(preference: Preference) -> tuple[int, bool]:
    """Return how far the answers differ in length, from 0, and whether the better one is longer."""
    chosen, rejected = len(preference.chosen), len(preference.rejected)
    ratio = max(chosen, rejected) / max(1, min(chosen, rejected))
    return sum(ratio > edge for edge in SIZES), (chosen > rejected) == (preference.p_chosen >= 0.5)


def _factor(own: float, other: float) -> float:
    return min(LARGEST, (own + other) / (2 * own)) if own and other else 1.0
