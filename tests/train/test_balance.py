"""Weights that take length out of what labels say: both lengths end up with as much of a say, at each difference in length."""

from dataclasses import replace

import pytest

from cai.recipe import GoldConfig
from cai.records import Preference
from cai.train.reward.balance import LARGEST, SIZES, balance_lengths
from tests.train.builders import preference


def pair(i: int, better: int, worse: int, p: float = 1.0, weight: float = 1.0) -> Preference:
    """A pair whose better answer has `better` characters; below one half, the better one is `rejected`."""
    sides = ("b" * better, "w" * worse) if p >= 0.5 else ("w" * worse, "b" * better)
    return replace(preference(i, p, weight), chosen=sides[0], rejected=sides[1])


def say(pairs: list[Preference], longer: bool, size: int) -> float:
    total = 0.0
    for p in pairs:
        better, worse = (len(p.chosen), len(p.rejected))[:: 1 if p.p_chosen >= 0.5 else -1]
        ratio = max(better, worse) / max(1, min(better, worse))
        if sum(ratio > edge for edge in SIZES) == size and (better > worse) == longer:
            total += p.weight * abs(2 * p.p_chosen - 1)
    return total


PAIRS = [
    *(pair(i, 10, 30) for i in range(6)),
    *(pair(10 + i, 30, 10, 0.9, 0.5) for i in range(4)),
    *(pair(20 + i, 30, 40) for i in range(3)),
    *(pair(30 + i, 40, 30, 0.2) for i in range(3)),
    pair(40, 100, 99),
    pair(41, 0, 0),
]


def test_either_length_has_as_much_of_a_say_at_each_size() -> None:
    assert (say(PAIRS, True, 2), say(PAIRS, False, 2)) == (pytest.approx(1.6), 6.0)
    balanced = balance_lengths(PAIRS)
    for size in (1, 2):
        assert say(balanced, True, size) == pytest.approx(say(balanced, False, size))
        whole = [say(found, True, size) + say(found, False, size) for found in (PAIRS, balanced)]
        assert whole[0] == pytest.approx(whole[1]), "the say of a size stays what it was"
    assert balanced[-2:] == PAIRS[-2:], "answers of about one length stay as they are"
    assert [replace(b, weight=a.weight) for a, b in zip(PAIRS, balanced, strict=True)] == PAIRS, "nothing but weights moves"


def test_a_lone_pair_does_not_speak_for_a_hundred_and_nothing_balances_nothing() -> None:
    crowd = [pair(i, 10, 30) for i in range(100)]
    balanced = balance_lengths([*crowd, pair(100, 30, 10)])
    assert balanced[-1].weight == LARGEST and balanced[0].weight == pytest.approx(101 / 200)
    assert balance_lengths(crowd) == crowd
    undecided = [pair(0, 10, 30, 0.5), pair(1, 30, 10)]
    assert balance_lengths(undecided) == undecided


def test_a_gold_reward_model_is_balanced_as_its_recipe_says() -> None:
    assert [GoldConfig(balance_length=b).reward.balance_length for b in (True, False)] == [True, False]
