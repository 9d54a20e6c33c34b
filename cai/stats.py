"""Statistics: 95 % confidence intervals of proportions, means and paired differences; exact and randomisation tests; Holm's correction.

Intervals: Wilson (1927), Newcombe (1998), percentile bootstrap (Efron 1979). Tests: McNemar (1947), Fisher's sign-flip test.
Multiple-testing correction: Holm (1979).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054
RESAMPLES = 10_000
_BLOCK_CELLS = 5_000_000
_FLIPS = 20_000


@dataclass
class RunningMean:
    """A mean of numbers that come one at a time."""

    total: float = 0.0
    n: int = 0

    def add(self, value: float | None) -> None:
        """Count one more; None was not measured."""
        if value is not None:
            self.total, self.n = self.total + value, self.n + 1

    @property
    def mean(self) -> float | None:
        """The mean, or None if nothing was measured."""
        return self.total / self.n if self.n else None


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion (Wilson 1927). It stays in [0, 1] and has a width above 0 even at 0 and n.

    Args:
        successes: number of successes, in [0, n]; may be fractional, for ties that count half.
        n: number of items, at least 1.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"wilson({successes}, {n}): expected 0 <= successes <= n and n >= 1")
    return wilson_of(successes / n, n)


def wilson_of(p: float, n: float) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion of `n` items; `n` need not be whole."""
    z2 = Z_95 * Z_95
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (0.0 if p == 0 else max(0.0, center - half)), (1.0 if p == 1 else min(1.0, center + half))


def clustered_share(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Return the 95 % interval of a proportion of items that come in clusters, such as several pairs of one prompt.

    Wilson's interval at the effective sample size of Korn & Graubard (1998): n divided by the design effect (at least 1), times
    (z / t)² with as many degrees of freedom as clusters less one. It is `wilson`'s where every item is a cluster of its own. If all values
    are 0 or all are 1, the number of clusters is the effective sample size.

    Args:
        values: one value per item, in [0, 1]; not empty.
        clusters: the cluster of each item.

    >>> clustered_share([1.0, 1.0, 0.0, 1.0], ["p", "q", "r", "s"]) == wilson(3, 4)
    True
    >>> low, high = clustered_share([1.0, 1.0, 0.0, 0.0, 1.0, 1.0], ["p", "p", "q", "q", "r", "r"])
    >>> round(low, 2), round(high, 2)
    (0.04, 0.99)
    """
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums.setdefault(cluster, []).append(value)
    n, groups = len(values), len(sums)
    total = math.fsum(values)
    if groups == n:
        return wilson(min(total, n), n)
    p = total / n
    if groups == 1:
        effective = 1.0
    elif p in (0.0, 1.0):
        effective = float(groups)
    else:
        variance = groups / (groups - 1) * math.fsum(math.fsum(v - p for v in mine) ** 2 for mine in sums.values()) / n**2
        effective = n / max(1.0, variance * n / (p * (1 - p))) * (Z_95 / t_95(groups - 1)) ** 2
    return wilson_of(p, effective)


def clustered_half_width(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Return half the width of the 95 % interval of a mean of clustered items (Student's t over clusters); None for one cluster."""
    mean = math.fsum(values) / len(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    groups = len(sums)
    if groups == 1:
        return None
    return t_95(groups - 1) * math.sqrt(groups / (groups - 1) * math.fsum(s * s for s in sums.values())) / len(values)


def cluster_factor(clusters: int, items: int) -> float:
    """Return the factor by which to widen a bootstrap interval over few clusters: Student's t for Z, and the bias of the variance.

    It is 1 if every item is a cluster of its own.

    Args:
        clusters: number of clusters, at least 2 unless it is the number of items.
        items: number of items.
    """
    return 1.0 if clusters == items else t_95(clusters - 1) / Z_95 * math.sqrt(clusters / (clusters - 1))


def t_95(degrees: int) -> float:
    """Return the two-sided 95 % quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def paired_bootstrap(differences: Sequence[float], seed: int, clusters: Sequence[Hashable] | None = None) -> tuple[float, float, float]:
    """Return a mean and its 95 % percentile-bootstrap interval (Efron 1979).

    Pass one difference per item to compare two systems on the same items, or plain values for the interval of a mean.

    Args:
        differences: one number per item; not empty.
        seed: seed of the resampling.
        clusters: the cluster of each item, such as its prompt; None: every item is one. Whole clusters are drawn, and the interval is
            widened for their number as Student's t is. One cluster says nothing: its interval is so wide that it holds 0.

    Returns:
        Mean, lower and upper bound.
    """
    import numpy as np

    if not differences:
        raise ValueError("paired_bootstrap: no items")
    values = np.asarray(differences, dtype=np.float64)
    index = {c: i for i, c in enumerate(dict.fromkeys(range(len(values)) if clusters is None else clusters))}
    of = np.array([index[c] for c in (range(len(values)) if clusters is None else clusters)])
    sums, sizes = np.bincount(of, values), np.bincount(of)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // len(sums))
    means = []
    for start in range(0, RESAMPLES, block):
        drawn = generator.integers(0, len(sums), size=(min(block, RESAMPLES - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    mean, groups = float(values.mean()), len(sums)
    if groups == 1 < len(values):
        half = 2 * float(np.abs(values).max())
        return mean, mean - half, mean + half
    wider = cluster_factor(groups, len(values))
    return mean, mean - wider * (mean - float(low)), mean + wider * (float(high) - mean)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test (1947). Null hypothesis: two systems are equally often right.

    Args:
        only_first: number of items that only the first system got right.
        only_second: number of items that only the second system got right.

    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / int(2**n))


def change(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Return the change of a proportion from `before` to `after` on the same items, with a 95 % interval.

    Newcombe (1998), Statistics in Medicine 17:2635-2650, method 10: combines the Wilson intervals of both proportions with their
    correlation. Unlike a bootstrap or Wald interval, it does not become too narrow when few items differ.

    Args:
        before: outcome of each item.
        after: outcomes of the same items in the same order; not empty.

    Returns:
        Change in [-1, 1], above 0 for an increase; lower and upper bound.

    >>> before = [True] * 36 + [True] * 12 + [False] * 2
    >>> after = [True] * 36 + [False] * 12 + [True] * 2
    >>> [round(x, 4) for x in change(before, after)]
    [-0.2, -0.3404, -0.0569]
    """
    n = len(before)
    both = sum(x and y for x, y in zip(before, after, strict=True))
    first, second = sum(before), sum(after)
    neither = n - first - second + both
    p, q = second / n, first / n
    (p_low, p_high), (q_low, q_high) = wilson(second, n), wilson(first, n)
    correlation = _correlation(both, first, second, neither, n)
    below = (p - p_low) ** 2 - 2 * correlation * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * correlation * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    return p - q, max(-1.0, p - q - math.sqrt(max(0.0, below))), min(1.0, p - q + math.sqrt(max(0.0, above)))


def _correlation(both: int, first: int, second: int, neither: int, n: int) -> float:
    """Return the phi coefficient of the 2 × 2 table, with Newcombe's continuity correction towards 0."""
    spread = first * (n - first) * second * (n - second)
    if spread == 0:
        return 0.0
    product = float(both * neither - (first - both) * (second - both))
    if product > 0:
        product = max(0.0, product - n / 2)
    return product / math.sqrt(spread)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order of the input.

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
    """Return the one-sided p-value of Fisher's sign-flip test. Null hypothesis: the paired differences are symmetric around 0.

    Exact (McNemar's test) if all non-zero differences have the same size; a Monte Carlo estimate otherwise.

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
    """Return the two-sided p-value of `sign_flip`; the exact McNemar test for differences of binary outcomes.

    >>> two_sided([1.0] * 5), two_sided([1.0, -1.0])
    (0.0625, 1.0)
    """
    return min(1.0, 2 * min(sign_flip(differences, seed), sign_flip([-d for d in differences], seed)))


def above(values: Sequence[float], level: float) -> float:
    """Return the one-sided p-value for the null hypothesis that the mean is at most `level`.

    Exact binomial test for binary values, normal approximation otherwise.
    """
    n = len(values)
    if is_binary(values):
        return _binomial_tail(round(sum(values)), n, level)
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / max(1, n - 1)
    if variance == 0:
        return 0.0 if mean > level else 1.0
    return 0.5 * math.erfc((mean - level) / math.sqrt(2 * variance / n))


def correctness(p: float, wanted: float) -> float:
    """Return 1 if two probabilities of an answer prefer the same one, 0 if they don't, ½ where the first is a tie."""
    return 0.5 if p == 0.5 else float((p > 0.5) == (wanted > 0.5))


def is_binary(values: Sequence[float]) -> bool:
    return all(v in (0, 1) for v in values)


def _binomial_tail(successes: int, n: int, p: float) -> float:
    """Return the probability of at least `successes` successes."""
    from scipy.stats import binom

    return float(binom.sf(successes - 1, n, p))
