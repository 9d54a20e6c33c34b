"""Ranks several models by pairwise comparisons on the same prompts: a Bradley–Terry fit on the Elo scale.

Each model has a strength s, and beats another with probability s/(s + s′) (Bradley & Terry 1952). The fit is Hunter's MM algorithm (2004,
Annals of Statistics 32:384-406, eq. 3), run on all bootstrap resamples at once. Ties count half for each side (his §5 models them
better). 400 Elo points are odds of ten to one. The mean of all models is 1000, so compare ratings only within one arena.

Departures: (1) one tie is added between every two models, so that a model that always wins has a finite rating; (2) the bootstrap resamples
prompts, not duels, because duels on one prompt are correlated. The intervals don't cover systematic errors of the judge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cai.errors import DataError

RESAMPLES = 1000
POINTS = 400 / math.log(10)
MEAN = 1000.0
_TOLERANCE = 1e-6
_ROUNDS = 10_000


@dataclass(frozen=True, slots=True)
class Duel:
    """A judged comparison of two models' responses to one prompt."""

    prompt_id: str
    first: str
    second: str
    outcome: float
    """1 if the first won, 0 if the second won, ½ for a tie."""


@dataclass(frozen=True, slots=True)
class Rating:
    """One model's rating in an arena."""

    model: str
    elo: float
    low: float
    """Lower bound of the 95 % confidence interval, by bootstrap over prompts."""
    high: float
    win_rate: float
    """Win rate against all other models; ties count half."""
    duels: int
    above_next: float | None
    """Fraction of resamples in which it is rated above the next model; None for the last."""


@dataclass(frozen=True, slots=True)
class Arena:
    """Ratings by one scorer, best first."""

    by: str
    """`judge` or `reward`."""
    prompts: int
    ratings: tuple[Rating, ...]


def rate(duels: Sequence[Duel], by: str, seed: int = 0) -> Arena:
    """Rate models by their duels. `duels`: at most one per prompt and pair of models; at least two models."""
    import numpy as np

    models = list(dict.fromkeys(m for d in duels for m in (d.first, d.second)))
    prompts = list(dict.fromkeys(d.prompt_id for d in duels))
    _check(duels, models)
    place = {m: i for i, m in enumerate(models)}
    row = {p: i for i, p in enumerate(prompts)}
    wins_PMM = np.zeros((len(prompts), len(models), len(models)))
    for d in duels:
        i, j, p = place[d.first], place[d.second], row[d.prompt_id]
        wins_PMM[p, i, j] += d.outcome
        wins_PMM[p, j, i] += 1 - d.outcome
    counts_RP = np.random.default_rng(seed).multinomial(len(prompts), [1 / len(prompts)] * len(prompts), size=RESAMPLES)
    every = np.concatenate([np.ones((1, len(prompts)), dtype=counts_RP.dtype), counts_RP])
    elo_RM = MEAN + POINTS * fit(np.tensordot(every, wins_PMM, 1))
    elo_M, drawn_RM = elo_RM[0], elo_RM[1:]
    low_M, high_M = np.percentile(drawn_RM, [2.5, 97.5], axis=0)
    total_MM = wins_PMM.sum(0)
    order = sorted(range(len(models)), key=lambda i: (-elo_M[i], models[i]))
    ratings = [
        Rating(
            models[i],
            float(elo_M[i]),
            float(low_M[i]),
            float(high_M[i]),
            float(total_MM[i].sum() / (total_MM[i].sum() + total_MM[:, i].sum())),
            round(total_MM[i].sum() + total_MM[:, i].sum()),
            None if k + 1 == len(order) else float((drawn_RM[:, i] > drawn_RM[:, order[k + 1]]).mean()),
        )
        for k, i in enumerate(order)
    ]
    return Arena(by, len(prompts), tuple(ratings))


def fit(wins: Any) -> Any:
    """Return the log-strengths of M models for each of R tables of wins: shape (R, M), mean 0 in each row.

    Args:
        wins: shape (R, M, M): how often the row's model beat the column's, at least 0, not necessarily whole numbers; the diagonal is 0.

    >>> import numpy as np
    >>> [[round(float(x), 3) for x in row] for row in fit(np.array([[[0, 2.5], [0.5, 0]]]))]  # with the tie: 3 wins of 4
    [[0.549, -0.549]]
    """
    import numpy as np

    models = wins.shape[-1]
    wins_RMM = wins + 0.5 * (1 - np.eye(models))
    met_RMM = wins_RMM + wins_RMM.transpose(0, 2, 1)
    won_RM = wins_RMM.sum(2)
    log_RM = np.zeros(won_RM.shape)
    for _ in range(_ROUNDS):
        s_RM = np.exp(log_RM)
        new_RM = np.log(won_RM / (met_RMM / (s_RM[:, :, None] + s_RM[:, None, :])).sum(2))
        new_RM -= new_RM.mean(1, keepdims=True)
        moved = float(np.abs(new_RM - log_RM).max())
        log_RM = new_RM
        if moved < _TOLERANCE:
            break
    return log_RM


def _check(duels: Sequence[Duel], models: Sequence[str]) -> None:
    if len(models) < 2:
        raise DataError("an arena needs judged responses of at least two models to the same prompts; found none")
    seen = {(d.prompt_id, frozenset((d.first, d.second))) for d in duels}
    if len(seen) < len(duels):
        raise DataError(f"{len(duels) - len(seen)} duels occur twice; judge each pair of models once per prompt")
    reached = {models[0]}
    while more := {m for d in duels for m in (d.first, d.second) if {d.first, d.second} & reached} - reached:
        reached |= more
    if len(reached) < len(models):
        alone = ", ".join(m for m in models if m not in reached)
        raise DataError(f"{alone}: no comparison connects these models with {models[0]}, so they can't be rated on one scale")


def pairings(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return all unordered pairs of models."""
    return list(combinations(models, 2))
