"""Fits a judge's calibration to human labels by regularised logistic regression, and measures the gain by nested cross-validation.

Candidate models: one scale for the pooled log-odds (a temperature), optionally with a weight per principle, at several strengths of
regularisation towards the common scale. The candidate is chosen inside each training fold. All pairs of a prompt, of its conversation and
of its near-copies are in the same fold, so each measure comes from pairs that neither the fit nor the choice has seen. The final
calibration is fitted on all pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cai.errors import DataError
from cai.ids import split_fraction
from cai.judge.protocol import signal
from cai.labels.agreement import share
from cai.records import EvalResult
from cai.stats import paired_bootstrap

STRENGTHS = (0.003, 0.03, 0.3)
"""Candidate prior variances of the principles' weights, for standardised columns. Larger values allow larger deviations from the scale."""
SCALE_VARIANCE = 10.0
"""Prior variance of the common scale and of the length's weight: next to none."""
FOLDS = 5
MIN_PAIRS = 40
COIN = "coin"


class LabelledLength(Protocol):
    """What a human-labelled pair is measured by."""

    @property
    def group(self) -> str:
        """Group of the prompt (`split_groups`)."""
        ...

    @property
    def length(self) -> float:
        """`length_difference` of the pair."""
        ...

    @property
    def people(self) -> float:
        """Probability that A is better, by human labels."""
        ...


@dataclass(frozen=True, slots=True)
class Labelled:
    """One pair with the judge's log-odds and the human label. A is the first response in hashed order."""

    key: str
    group: str
    """Group of the prompt (`split_groups`). All pairs of a group are in the same fold."""
    pooled: float
    """The judge's uncalibrated log-odds that A is better."""
    by_principle: Mapping[str, float]
    """Principle id to the judge's log-odds under it."""
    length: float
    """`length_difference` of the pair."""
    people: float
    """Probability that A is better, by human labels."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Fitted weights, the chosen method, and cross-validated measures."""

    scale: float
    weights: dict[str, float]
    length: float
    method: str
    measured: tuple[EvalResult, ...]
    warnings: tuple[str, ...]


def fit_calibration(pairs: Sequence[Labelled], use_length: bool, seed: int) -> Fitted:
    """Fit on all pairs, and measure by nested cross-validation.

    Args:
        pairs: the judge's log-odds and the human labels.
        use_length: whether to correct length bias too.
        seed: seed of the folds and the bootstrap.

    Raises:
        DataError: see `check_enough`.
    """
    check_enough([p.group for p in pairs])
    names = sorted({name for p in pairs for name in p.by_principle})
    columns = _columns(pairs, names, use_length)
    people = [p.people for p in pairs]
    groups = [p.group for p in pairs]
    held_out = [0.0] * len(pairs)
    for train, test in folds(groups, seed):
        chosen = _choose(columns, people, groups, train, len(names), use_length, seed + 1)
        weights = _fit(columns, people, train, chosen, len(names))
        for i in test:
            held_out[i] = _dot(columns[i], weights)
    chosen = _choose(columns, people, groups, range(len(pairs)), len(names), use_length, seed + 1)
    weights = _fit(columns, people, range(len(pairs)), chosen, len(names))
    others = {"uncalibrated": [p.pooled for p in pairs]}
    rules = {"length alone, fitted": _length_alone(pairs, seed)} if use_length else {}
    measured = measured_answers(pairs, "calibrated", held_out, others, seed, rules)
    by_principle = {name: w for name, w in zip(names, weights[1:], strict=False) if w}
    length = weights[-1] if use_length else 0.0
    method = "temperature" if chosen is None else f"principles, prior variance {chosen:g}"
    return Fitted(weights[0], by_principle, length, method, measured, _warnings(weights[0], measured))


def check_enough(groups: Sequence[str]) -> None:
    """Check that there are enough pairs, and enough prompts for the folds. Call it before calling the judge.

    Args:
        groups: the prompt's group of each labelled pair.

    Raises:
        DataError: there are fewer than `MIN_PAIRS` pairs, or fewer than two prompts per fold.
    """
    prompts = len(set(groups))
    if len(groups) < MIN_PAIRS or prompts < 2 * FOLDS:
        raise DataError(
            f"{len(groups)} labelled pairs of {prompts} prompts; fitting a judge needs at least {MIN_PAIRS} pairs, of at least "
            f"{2 * FOLDS} prompts. A few hundred give a useful answer: `cai human queue` says which to label next."
        )


def _columns(pairs: Sequence[Labelled], names: Sequence[str], use_length: bool) -> list[list[float]]:
    """Return one row per pair: pooled log-odds, each principle's signal (0 if it was not asked), and the length difference."""
    return [
        [
            p.pooled,
            *(signal(p.by_principle.get(name, 0.0)) / max(1, len(p.by_principle)) for name in names),
            *([p.length] if use_length else []),
        ]
        for p in pairs
    ]


def folds(groups: Sequence[str], seed: int) -> list[tuple[list[int], list[int]]]:
    """Distribute groups over folds in the order of their hashes. Return the indices of each fold's training and test items."""
    order = sorted(set(groups), key=lambda g: split_fraction(g, f"fold:{seed}"))
    fold = {g: i % FOLDS for i, g in enumerate(order)}
    return [([i for i, g in enumerate(groups) if fold[g] != f], [i for i, g in enumerate(groups) if fold[g] == f]) for f in range(FOLDS)]


def _choose(
    columns: Sequence[Sequence[float]],
    people: Sequence[float],
    groups: Sequence[str],
    train: Sequence[int],
    principles: int,
    use_length: bool,
    seed: int,
) -> float | None:
    """Return the strength with the lowest cross-validated log loss on the training items; None for the temperature alone."""
    if principles < 2:
        return None
    losses: dict[float | None, float] = {}
    for candidate in (None, *STRENGTHS):
        losses[candidate] = 0.0
        for inner, test in folds([groups[i] for i in train], seed):
            weights = _fit(columns, people, [train[i] for i in inner], candidate, principles)
            losses[candidate] += sum(log_loss(_dot(columns[train[i]], weights), people[train[i]]) for i in test)
    return min(losses, key=lambda c: losses[c])


def _fit(
    columns: Sequence[Sequence[float]], people: Sequence[float], train: Sequence[int], strength: float | None, principles: int
) -> list[float]:
    """Return one weight per column. Weights of principles are 0 if only the temperature is fitted (`strength` None)."""
    import numpy as np

    x = np.array([columns[i] for i in train], dtype=np.float64)
    variance = np.full(x.shape[1], SCALE_VARIANCE)
    variance[1 : 1 + principles] = strength or 0.0
    return [float(w) for w in logistic_weights(x, np.array([people[i] for i in train], dtype=np.float64), variance)]


def logistic_weights(x: Any, y: Any, variance: Any, solver: str = "newton-cholesky") -> Any:
    """Return the weights of an L2-regularised logistic regression without intercept, as an array `[columns]`.

    Columns are divided by their root mean square and not centred, because centring would break the symmetry between A and B.

    Args:
        x: one row per pair, `[N, columns]`.
        y: probability that A is better, `[N]`.
        variance: prior variance of each standardised column's weight; 0 leaves a column out.
        solver: scikit-learn's; `lbfgs` is faster with many columns.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    size = np.sqrt((x**2).mean(axis=0))
    factor = np.where(size > 0, np.sqrt(variance) / np.where(size > 0, size, 1.0), 0.0)
    # A soft label becomes two weighted examples, one per class.
    model = LogisticRegression(C=1.0, fit_intercept=False, solver=solver)
    model.fit(np.vstack([x * factor] * 2), np.repeat([1, 0], len(y)), sample_weight=np.concatenate([y, 1 - y]))
    return model.coef_[0] * factor


def log_loss(log_odds: float, label: float) -> float:
    """Return −y·log σ(x) − (1 − y)·log σ(−x).

    >>> round(log_loss(0.0, 0.3), 4)
    0.6931
    """
    return max(log_odds, 0.0) - label * log_odds + math.log1p(math.exp(-abs(log_odds)))


def _dot(row: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(row, weights, strict=True))


def _right(log_odds: float, people: float) -> float:
    return 0.5 if log_odds == 0 else float((log_odds > 0) == (people > 0.5))


def measured_answers(
    pairs: Sequence[LabelledLength],
    mine: str,
    held_out: Sequence[float],
    others: Mapping[str, Sequence[float]],
    seed: int,
    rules: Mapping[str, Sequence[float]] | None = None,
) -> tuple[EvalResult, ...]:
    """Compare cross-validated log-odds with other judges, trivial rules and a coin, paired by item.

    Args:
        pairs: the human labels.
        mine: name of what was fitted.
        held_out: its log-odds that A is better, each by a fit that has not seen the pair.
        others: log-odds of other judges, by name.
        seed: seed of the bootstrap.
        rules: log-odds of rules besides "longer" and "shorter".

    Returns:
        Accuracy of everything; the gain in accuracy over each of `others` and over the best rule, which has a note; log loss, and its gain
        over each of `others` and over a coin.
    """
    decided = [i for i, p in enumerate(pairs) if p.people != 0.5]
    judges: dict[str, Sequence[float]] = {mine: held_out, **others}
    answers: dict[str, Sequence[float]] = {
        **judges,
        "rule: longer": [p.length for p in pairs],
        "rule: shorter": [-p.length for p in pairs],
        **(rules or {}),
    }
    right = {name: [_right(x[i], pairs[i].people) for i in decided] for name, x in answers.items()}
    groups, of_decided = [p.group for p in pairs], [pairs[i].group for i in decided]
    results = [r for name, hits in right.items() if (r := share("accuracy", name, hits, "cross-validated", of_decided)) is not None]
    best = max((name for name in right if name not in judges), key=lambda name: sum(right[name]))
    for other in (*others, best):
        value, low, high = paired_bootstrap([a - b for a, b in zip(right[mine], right[other], strict=True)], seed, of_decided)
        note = "the best rule on these pairs" if other == best else ""
        results.append(EvalResult("accuracy_gain", f"{mine} over {other}", value, len(decided), low, high, note))
    losses = {name: [log_loss(x, p.people) for x, p in zip(said, pairs, strict=True)] for name, said in judges.items()}
    losses[COIN] = [math.log(2.0)] * len(pairs)
    for name in judges:
        results.append(EvalResult("log_loss", name, *_mean(losses[name], seed, groups)))
    for other in (*others, COIN):
        value, low, high = paired_bootstrap([b - a for a, b in zip(losses[mine], losses[other], strict=True)], seed, groups)
        results.append(EvalResult("log_loss_gain", f"{mine} over {other}", value, len(pairs), low, high))
    return tuple(results)


def _mean(values: Sequence[float], seed: int, groups: Sequence[str]) -> tuple[float, int, float, float]:
    value, low, high = paired_bootstrap(values, seed, groups)
    return value, len(values), low, high


def _length_alone(pairs: Sequence[Labelled], seed: int) -> list[float]:
    """Return cross-validated log-odds of a fit on length alone."""
    columns, people = [[p.length] for p in pairs], [p.people for p in pairs]
    found = [0.0] * len(pairs)
    for train, test in folds([p.group for p in pairs], seed):
        weights = _fit(columns, people, train, None, 0)
        for i in test:
            found[i] = _dot(columns[i], weights)
    return found


def _warnings(scale: float, measured: Sequence[EvalResult]) -> tuple[str, ...]:
    """Return warnings about the fit."""
    by_name: dict[tuple[str, str], Any] = {(r.name, r.model): r for r in measured}
    found = []
    if scale < 0:
        found.append("the fitted scale is below 0: on these pairs people prefer what this judge finds worse, so calibration turns it round")
    if by_name["log_loss_gain", f"calibrated over {COIN}"].low <= 0:
        found.append("the calibrated judge was not shown to know more than a coin")
    if by_name["log_loss_gain", "calibrated over uncalibrated"].low <= 0:
        found.append("calibration was not shown to lower the log loss")
    over_rule = next(r for r in measured if r.name == "accuracy_gain" and r.note)
    if over_rule.low <= 0:
        rule = over_rule.model.removeprefix("calibrated over ")
        found.append(f"the calibrated judge was not shown to beat the best trivial rule ({rule})")
    return tuple(found)
