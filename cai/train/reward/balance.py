"""Length balancing: weights under which the longer and the shorter response win equally often in a reward model's training pairs.

Length is the easiest feature to learn (Singhal et al. 2023, arXiv 2310.03716). Where people mostly prefer the shorter response, a policy
trained on that reward learns to give empty ones.
"""

from collections.abc import Sequence
from dataclasses import replace

from cai.records import Preference

SIZES = (6 / 5, 2.0)
"""Lower edges of the bins of (characters of the longer response / of the shorter). Pairs below the first are not balanced."""
LARGEST = 4.0
"""Largest factor of a weight, so that a few pairs can't count as a hundred."""


def balance_lengths(preferences: Sequence[Preference]) -> list[Preference]:
    """Return the pairs with weights under which longer and shorter responses win with equal total strength, in each bin of `SIZES`.

    A pair has strength weight × |2p − 1|. The total strength of a bin doesn't change. Exceptions, which stay unbalanced: the factor of a
    weight is limited to `LARGEST`, and a bin in which only one length wins keeps its weights.

    Args:
        preferences: pairs with labels in [0, 1] and weights of at least 0.
    """
    bins = [_bin(p) for p in preferences]
    strength: dict[tuple[int, bool], float] = {}
    for key, p in zip(bins, preferences, strict=True):
        strength[key] = strength.get(key, 0.0) + p.weight * abs(2 * p.p_chosen - 1)
    return [
        p if size == 0 else replace(p, weight=p.weight * _factor(strength[size, longer], strength.get((size, not longer), 0.0)))
        for (size, longer), p in zip(bins, preferences, strict=True)
    ]


def _bin(preference: Preference) -> tuple[int, bool]:
    """Return the pair's bin of `SIZES` (0: below the first edge), and whether the better response is the longer one."""
    chosen, rejected = len(preference.chosen), len(preference.rejected)
    ratio = max(chosen, rejected) / max(1, min(chosen, rejected))
    return sum(ratio > edge for edge in SIZES), (chosen > rejected) == (preference.p_chosen >= 0.5)


def _factor(own: float, other: float) -> float:
    return min(LARGEST, (own + other) / (2 * own)) if own and other else 1.0
