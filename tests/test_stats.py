import random

import pytest
from scipy import stats

from cai.stats import mcnemar, paired_bootstrap, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (50, 100), (99, 100), (100, 100), (1, 1)])
def test_wilson_agrees_with_scipy(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_takes_halves_and_refuses_nonsense():
    low, high = wilson(2.5, 10)
    assert wilson(2, 10)[0] < low < 0.25 < high < wilson(3, 10)[1]
    for k, n in [(-1, 10), (11, 10), (0, 0)]:
        with pytest.raises(ValueError, match="expected"):
            wilson(k, n)


def test_wilson_covers_the_truth_about_95_times_in_a_hundred():
    generator = random.Random(0)
    hits = 0
    for _ in range(1000):
        low, high = wilson(sum(generator.random() < 0.3 for _ in range(60)), 60)
        hits += low <= 0.3 <= high
    assert 925 <= hits <= 975


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    generator = random.Random(1)
    values = [generator.gauss(0.2, 1) for _ in range(400)]
    mean, low, high = paired_bootstrap(values, 7)
    assert (mean, low, high) == paired_bootstrap(values, 7) != paired_bootstrap(values, 8)
    error = stats.sem(values)
    assert mean == pytest.approx(sum(values) / 400)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)


def test_bootstrap_of_equal_differences_has_no_width():
    assert paired_bootstrap([0.5] * 9, 0) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="no items"):
        paired_bootstrap([], 0)


def test_bootstrap_in_blocks_uses_every_resample(monkeypatch):
    import cai.stats as intervals

    monkeypatch.setattr(intervals, "_BLOCK_CELLS", 1000)
    mean, low, high = paired_bootstrap([0.0, 1.0] * 50, 0)
    assert mean == 0.5 and 0.38 < low < 0.43 and 0.57 < high < 0.62


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (4, 12), (30, 20)])
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
