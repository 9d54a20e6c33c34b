"""Agreement against values worked out by hand or by other libraries, and what is said where nothing can be said."""

import random

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from cai.labels.agreement import (
    MIN_SHARED,
    alpha,
    gold_accuracy,
    group_agreement,
    judge_agreement,
    kappa,
    people_agreement,
    weighted_kappa,
)
from cai.labels.pooling import by_pair
from cai.records import HumanLabel, Message, Prompt, Provenance, ResponsePair


def label(item: int, who: str, good: float, **attributes: str) -> HumanLabel:
    """Someone's answer about item: how sure they are that "good" is better."""
    pair = ResponsePair(Prompt(f"p{item}", "other", (Message("user", f"q{item}"),), "s"), "good", "bad", "human", Provenance(""))
    return HumanLabel(pair, who, good, "human:f", "", attributes)


def test_kappa_is_what_it_is_by_hand_and_by_scikit_learn() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: 0.7 observed, 0.5 by chance, so 0.4 (Wikipedia's example).
    both = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15
    found = kappa("kappa", "m", both, 0)
    assert found is not None and found.value == pytest.approx(0.4) and found.low < 0.4 < found.high and found.n == 50
    rng = random.Random(1)
    pairs = [(rng.choice([0.0, 0.5, 1.0]), rng.choice([0.0, 0.5, 1.0, 1.0])) for _ in range(200)]
    expected = cohen_kappa_score([str(a) for a, _ in pairs], [str(b) for _, b in pairs], weights="linear")
    measured = kappa("kappa", "m", pairs, 0)
    assert measured is not None and measured.value == pytest.approx(expected)


def test_kappa_of_raters_who_always_say_the_same_is_undefined() -> None:
    assert kappa("kappa", "m", [(1.0, 1.0)] * 20, 0) is None and kappa("kappa", "m", [], 0) is None
    assert np.isnan(weighted_kappa([[5, 0], [0, 0]]))


def test_alpha_is_what_it_is_by_hand() -> None:
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example A: two raters, ten items, nominal: 0.095.
    one, other = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    answers = {str(i): {"a": float(a), "b": float(b)} for i, (a, b) in enumerate(zip(one, other, strict=True))}
    found = alpha("alpha", "people", answers, 0)
    assert found is not None and found.value == pytest.approx(0.095, abs=5e-4) and found.low < 0.095 < found.high
    assert alpha("alpha", "people", {"x": {"a": 1.0, "b": 1.0}}, 0) is None


def test_people_who_agree_and_one_who_guesses_are_told_apart() -> None:
    rng = random.Random(0)
    labels = []
    for i in range(120):
        truth = float(rng.random() < 0.5)
        labels += [
            label(i, who, truth if rng.random() < skill else 1 - truth) for who, skill in (("ann", 0.95), ("bob", 0.95), ("eve", 0.5))
        ]
    found = {(r.name, r.model): r for r in people_agreement(labels)}
    assert found["kappa", "ann and bob"].low > 0.6 > 0.3 > found["kappa", "ann and eve"].high
    assert found["reliability", "ann"].low > 0.85 > 0.7 > found["reliability", "eve"].high
    people = found["alpha", "people"]
    assert people.n == 120 and people.low < people.value < people.high and "360 labels by 3 people" in people.note
    assert all(r.low <= r.value <= r.high for r in found.values())


def test_too_few_shared_pairs_make_no_kappa_and_labels_without_names_no_agreement() -> None:
    few = [label(i, who, float(i % 2)) for i in range(MIN_SHARED - 1) for who in ("ann", "bob")]
    assert "kappa" not in {r.name for r in people_agreement(few)}
    assert people_agreement([label(1, "", 1.0), label(1, "", 0.0)]) == []


def test_groups_that_want_different_things_are_seen() -> None:
    labels = [label(i, f"{g}{n}", float(i % 2) if g == "x" else 1.0 - i % 2, group=g) for i in range(40) for g in "xy" for n in range(2)]
    found = {(r.name, r.model): r for r in group_agreement(labels)}
    assert found["alpha", "group = x"].value == pytest.approx(1.0)
    assert found["agrees_with_others", "group = x"].value == 0.0 and found["agrees_with_others", "group = x"].n == 40
    assert people_agreement(labels)[0].value < 0


def test_intervals_are_over_conversations_and_one_of_them_says_nothing() -> None:
    rng = random.Random(0)

    def told(prompts: int) -> list[HumanLabel]:
        rng.seed(0)
        labels = []
        for i in range(120):
            prompt = Prompt(f"p{i % prompts}", "other", (Message("user", f"q{i % prompts}"),), "s")
            pair = ResponsePair(prompt, f"good {i}", f"bad {i}", "human", Provenance(""))
            labels += [HumanLabel(pair, who, float(rng.random() < 0.5 + 0.4 * (i % 2)), "human:f") for who in ("ann", "bob")]
        return labels

    apart, together, one = ({(r.name, r.model): r for r in people_agreement(told(n))} for n in (120, 10, 1))
    assert apart.keys() == together.keys() == one.keys() and len(apart) == 4
    for key, r in together.items():
        assert r.low <= r.value <= r.high and r.n == 120
        assert (one[key].low, one[key].high) == (0.0 if r.name == "reliability" else -1.0, 1.0)
    said, truth = {str(i): 0.9 for i in range(40)}, {str(i): float(i % 4 > 0) for i in range(40)}
    people, grouped = judge_agreement("j", said, truth), judge_agreement("j", said, truth, talks={k: str(int(k) % 4) for k in said})
    assert people[0].value == grouped[0].value == 0.75 and grouped[0].high - grouped[0].low > 2 * (people[0].high - people[0].low)


def test_gold_questions_measure_each_person() -> None:
    labels = [label(i, "ann", 1.0) for i in range(8)] + [label(i, "bob", 0.0 if i < 4 else 0.5) for i in range(8)]
    keys = by_pair([label(i, "gold", 1.0) for i in range(6)])
    gold = {key: mine["gold"].p_a for key, mine in keys.items()}
    found = {r.model: r for r in gold_accuracy(labels, gold)}
    assert (found["ann"].value, found["ann"].n) == (1.0, 6) and found["ann"].low < 1.0
    assert found["bob"].value == pytest.approx(1 / 6)


def test_a_judge_is_compared_on_what_people_decided() -> None:
    people = {"a": 1.0, "b": 0.0, "c": 0.5, "d": 0.75}
    (found,) = judge_agreement("judge:x", {"a": 0.9, "b": 0.7, "c": 0.9, "d": 0.6, "e": 0.1}, people)
    assert (found.name, found.value, found.n) == ("agrees", pytest.approx(2 / 3), 3)
    many = {f"{i}": float(i % 2) for i in range(MIN_SHARED)}
    results = {r.name: r.value for r in judge_agreement("judge:x", {k: 0.3 + 0.4 * p for k, p in many.items()}, many)}
    assert results == {"agrees": 1.0, "kappa": 1.0, "alpha": 1.0}
