"""Intervals against scipy, tests against exact values, and the doctests."""

import doctest
import math
import random

import pytest
from scipy import stats

import cai.stats
from cai.stats import above, holm, mcnemar, paired_bootstrap, sign_flip, wilson


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


def test_bootstrap_in_blocks_uses_every_resample():
    mean, low, high = paired_bootstrap([0.0, 1.0] * 750, 0)  # four blocks, the last of them smaller
    assert mean == 0.5 and 0.47 < low < 0.48 and 0.52 < high < 0.53


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (4, 12), (30, 20)])
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_sign_flips_of_one_size_are_mcnemars_exact_test() -> None:
    # 9 rose and 1 fell: P(at least 9 of 10 heads) = 11 / 1024
    assert sign_flip([1.0] * 9 + [-1.0] + [0.0] * 40) == pytest.approx(11 / 1024)


def test_sign_flips_of_several_sizes_count_the_sums_that_are_as_high() -> None:
    # all 2^4 signs of (1, 2, 3, 4): only the sum 10 itself reaches 10
    assert sign_flip([1.0, 2.0, 3.0, 4.0]) == pytest.approx(1 / 16, abs=0.005)
    assert sign_flip([1.0, 2.0, 3.0, 4.0], seed=3) == sign_flip([1.0, 2.0, 3.0, 4.0], seed=3)
    assert sign_flip([-1.0, -2.0, -3.0, -4.0]) > 0.99


def test_above_is_exact_for_yes_or_no_and_normal_otherwise() -> None:
    assert above([1.0, 1.0, 1.0], 0.5) == pytest.approx(0.125)
    assert 0 < above([1.0] * 1300 + [0.0] * 1200, 0.5) < 0.05, "and holds for thousands of items"
    values = [0.0, 1.0, 2.0] * 30
    z = (1.0 - 0.8) / math.sqrt(sum((v - 1) ** 2 for v in values) / 89 / 90)
    assert above(values, 0.8) == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)))
    assert (above([2.0, 2.0], 1.0), above([0.5, 0.5], 1.0)) == (0.0, 1.0)


def test_holm_is_never_smaller_than_the_p_value_and_keeps_their_order() -> None:
    p = [random.Random(0).random() for _ in range(50)]
    adjusted = holm(p)
    assert all(a >= x for a, x in zip(adjusted, p, strict=True))
    order = sorted(range(50), key=lambda i: p[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_doctests_hold() -> None:
    tried = doctest.testmod(cai.stats)
    assert tried.attempted >= 6 and tried.failed == 0
