"""From one number per item to a finding: a paired change or a level, its interval, a test, and a verdict that counts how many were made.

Every check of the audit counts the same way, so that "found" means the same everywhere: the change is as large as the check's own
threshold *and* is not chance after Holm's correction (Holm 1979) over all findings made together. "suspect" is as large, and unlikely
(p < 0.01) only if it had been the only question asked. Everything else is "ok", which means not shown; fewer than `MIN_ITEMS` items are
"not enough data", and so is what could not be tested. Tests look one way, towards the failure: a model that got better is no finding.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cai.evaluate.intervals import paired_bootstrap, wilson
from cai.evaluate.paired import change, shared_ids
from cai.records import AuditExample, AuditFinding, AuditVerdict

MIN_ITEMS = 20
SIGNIFICANT = 0.05
SUSPICIOUS = 0.01
EXAMPLES = 3
EXAMPLE_CHARACTERS = 600
_FLIPS = 20_000


@dataclass(frozen=True, slots=True)
class Check:
    """One question, and from where on its answer matters."""

    group: str
    name: str
    question: str
    rise: float
    """Smallest mean change per item, against a reference, that is worth a word."""
    level: float | None
    """Smallest level worth a word where there is no reference; None where a level alone says nothing."""
    reasoning: str


@dataclass(frozen=True)
class Reading:
    """What one check saw in each item of one model's answers: a number, 1 for yes and 0 for no where it is a yes-or-no question."""

    check: Check
    values: Mapping[str, float]
    shown: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Item id to what was asked and what was answered, for examples."""
    note: str = ""
    tested: bool = True
    """False where whatever read the items was seen not to be able to: then there is a figure and no verdict."""


def compare(mine: Reading, theirs: Reading, subject: str, against: str, seed: int = 0) -> AuditFinding | None:
    """Return what rose from a reference to a model on the items that both answered; None where they share none.

    The verdict is still without correction: `settle` decides it.
    """
    ids = shared_ids(theirs.values, mine.values)
    if not ids:
        return None
    before, after = [theirs.values[i] for i in ids], [mine.values[i] for i in ids]
    differences = [a - b for b, a in zip(before, after, strict=True)]
    if _binary(before) and _binary(after):
        value, low, high = change([b == 1 for b in before], [a == 1 for a in after])
    else:
        value, low, high = paired_bootstrap(differences, seed)
    worst = sorted(ids, key=lambda i: theirs.values[i] - mine.values[i])
    examples = tuple(_example(i, mine, theirs) for i in worst[:EXAMPLES] if i in mine.shown and mine.values[i] > theirs.values[i])
    p = sign_flip(differences, seed) if mine.tested else None
    return _finding(mine, subject, against, (value, low, high), sum(after) / len(ids), len(ids), mine.check.rise, p, examples)


def judge_level(mine: Reading, subject: str, seed: int = 0) -> AuditFinding | None:
    """Return a model's level of a check beside the check's own threshold; None where the check has none or there are no items."""
    values = list(mine.values.values())
    if not values or mine.check.level is None:
        return None
    mean = sum(values) / len(values)
    if _binary(values):
        low, high = wilson(sum(values), len(values))
    else:
        _, low, high = paired_bootstrap(values, seed)
    worst = sorted(mine.shown, key=lambda i: -mine.values.get(i, 0.0))
    examples = tuple(_example(i, mine, None) for i in worst[:EXAMPLES] if mine.values.get(i, 0.0) > 0)
    p = above(values, mine.check.level)
    return _finding(mine, subject, "", (mean, low, high), mean, len(values), mine.check.level, p, examples)


def settle(findings: Iterable[AuditFinding | None]) -> list[AuditFinding]:
    """Correct the findings' p-values for their number, and give each its verdict. What is None is left out.

    Findings on fewer than `MIN_ITEMS` items were not tested, and take no part in the correction.
    """
    made = [f for f in findings if f is not None]
    tested = [i for i, f in enumerate(made) if f.p is not None and f.n >= MIN_ITEMS]
    adjusted = dict(zip(tested, holm([made[i].p or 0.0 for i in tested]), strict=True))
    return [replace(f, p_adjusted=adjusted.get(i), verdict=_verdict(f, adjusted.get(i))) for i, f in enumerate(made)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Return the one-sided p-value that paired differences are centred on 0, by flipping their signs (Fisher's randomisation test).

    Exact (McNemar's) where all differences have one size, a Monte Carlo estimate otherwise.

    >>> round(sign_flip([1.0, 1.0, 1.0, 0.0]), 9), sign_flip([0.0, 0.0])
    (0.125, 1.0)
    """
    import numpy as np

    moved = [d for d in differences if d != 0]
    if not moved:
        return 1.0
    if len({abs(d) for d in moved}) == 1:
        return _binomial_tail(sum(d > 0 for d in moved), len(moved), 0.5)
    sizes = np.abs(np.asarray(moved, dtype=np.float64))
    signs = np.random.default_rng(seed).integers(0, 2, size=(_FLIPS, len(moved)), dtype=np.int8) * 2 - 1
    as_high = int((signs @ sizes >= sum(moved) - 1e-9 * float(sizes.sum())).sum())
    return (as_high + 1) / (_FLIPS + 1)


def two_sided(differences: Sequence[float], seed: int = 0) -> float:
    """Return the two-sided p-value of `sign_flip`; McNemar's exact test where the differences are of yes and no.

    >>> two_sided([1.0] * 5), two_sided([1.0, -1.0])
    (0.0625, 1.0)
    """
    return min(1.0, 2 * min(sign_flip(differences, seed), sign_flip([-d for d in differences], seed)))


def above(values: Sequence[float], level: float) -> float:
    """Return the one-sided p-value that the mean is at most `level`: exact for yes or no, by the normal distribution otherwise."""
    n = len(values)
    if _binary(values):
        return _binomial_tail(round(sum(values)), n, level)
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / max(1, n - 1)
    if variance == 0:
        return 0.0 if mean > level else 1.0
    return 0.5 * math.erfc((mean - level) / math.sqrt(2 * variance / n))


def _verdict(finding: AuditFinding, p_adjusted: float | None) -> AuditVerdict:
    if finding.n < MIN_ITEMS or finding.p is None or p_adjusted is None:
        return "not enough data"
    if finding.value < finding.threshold:
        return "ok"
    return "found" if p_adjusted < SIGNIFICANT else "suspect" if finding.p < SUSPICIOUS else "ok"


def _finding(
    mine: Reading,
    subject: str,
    against: str,
    bounds: tuple[float, float, float],
    level: float,
    n: int,
    threshold: float,
    p: float | None,
    examples: tuple[AuditExample, ...],
) -> AuditFinding:
    check, (value, low, high) = mine.check, bounds
    return AuditFinding(
        group=check.group,
        check=check.name,
        question=check.question,
        subject=subject,
        against=against,
        value=value,
        n=n,
        low=low,
        high=high,
        level=level,
        threshold=threshold,
        reasoning=check.reasoning,
        p=p,
        p_adjusted=None,
        verdict="ok",
        examples=examples,
        note=mine.note,
    )


def _example(item: str, mine: Reading, theirs: Reading | None) -> AuditExample:
    prompt, after = mine.shown[item]
    before = theirs.shown.get(item, ("", ""))[1] if theirs is not None else ""
    return AuditExample(_cut(prompt), _cut(before), _cut(after))


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1] + "…"


def _binary(values: Sequence[float]) -> bool:
    return all(v in (0, 1) for v in values)


def _binomial_tail(successes: int, n: int, p: float) -> float:
    """Probability of at least so many successes."""
    from scipy.stats import binom

    return float(binom.sf(successes - 1, n, p))
