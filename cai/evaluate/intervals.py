"""95 % intervals for what `cai` measures: shares, mean differences on the same items, and a test of paired yes-or-no answers.

Pure numbers; what they are about is the callers' matter.
"""

import math
from collections.abc import Sequence

Z_95 = 1.959963984540054
RESAMPLES = 10_000
_BLOCK_CELLS = 5_000_000


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927), which stays in [0, 1] and keeps a width at 0 and at n.

    Args:
        successes: in [0, n]; halves are fine, where ties count half.
        n: items, at least 1.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"wilson({successes}, {n}): expected 0 <= successes <= n and n >= 1")
    p = successes / n
    z2 = Z_95 * Z_95
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (0.0 if successes == 0 else max(0.0, center - half)), (1.0 if successes == n else min(1.0, center + half))


def paired_bootstrap(differences: Sequence[float], seed: int) -> tuple[float, float, float]:
    """Return the mean of some items' numbers and its 95 % percentile-bootstrap interval (Efron 1979).

    Give it one difference per item to compare two systems on the same items, or plain values for a mean.

    Args:
        differences: one number per item; not empty.
        seed: of the resampling; the same seed gives the same bounds.

    Returns:
        Mean, lower and upper bound.
    """
    import numpy as np

    if not differences:
        raise ValueError("paired_bootstrap: no items")
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // len(values))
    means = np.concatenate(
        [
            values[generator.integers(0, len(values), size=(min(block, RESAMPLES - start), len(values)))].mean(axis=1)
            for start in range(0, RESAMPLES, block)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that two yes-or-no judges of the same items are equally often right (McNemar 1947).

    Args:
        only_first: items that only the first got right.
        only_second: items that only the second got right. Items on which they agree say nothing.

    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / int(2**n))
