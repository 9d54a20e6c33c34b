"""Several people's labels of one pair: who counts, how they are pooled, and what Dawid and Skene's model makes of unreliable people."""

import random
from dataclasses import replace

import pytest

from cai.data.filters import sides_by_hash
from cai.labels.dawid_skene import dawid_skene
from cai.labels.pooling import by_pair, consensus, pool_rows
from cai.labels.readings import PairRow
from cai.recipe import Pooling
from cai.records import HumanLabel, Message, Preference, Prompt, Provenance, ResponsePair


def label(who: str, p_a: float, text: str = "q", time: str = "", swapped: bool = False) -> HumanLabel:
    pair = ResponsePair(Prompt(f"id-{text}", "other", (Message("user", text),), "s"), "good", "bad", "human", Provenance(""))
    found = HumanLabel(pair, who, p_a, "human:f.jsonl", time)
    return replace(found, pair=pair.swapped(), p_a=1 - p_a) if swapped else found


def pool_labels(labels: list[HumanLabel], method: Pooling, smoothing: float) -> list[Preference]:
    def row(x: HumanLabel) -> PairRow:
        preference = Preference(x.pair.prompt, x.pair.response_a, x.pair.response_b, x.p_a, 1.0, x.source, (), x.pair.provenance)
        return PairRow(preference, True, x.annotator, x.time)

    return [p for p, _ in pool_rows([row(x) for x in labels], method, smoothing)]


def test_votes_are_counted_whichever_way_round_they_were_shown() -> None:
    (p,) = pool_labels([label("ann", 1.0), label("bob", 1.0, swapped=True), label("eve", 0.0, swapped=True)], "votes", 0.0)
    assert (p.chosen, p.p_chosen, p.weight, p.source) == ("good", pytest.approx(2 / 3), 1.0, "human:f.jsonl")


@pytest.mark.parametrize(("smoothing", "p_chosen"), [(0.0, 1.0), (1.0, 0.75), (0.5, 2.5 / 3)])
def test_smoothing_imagines_votes_on_either_side(smoothing: float, p_chosen: float) -> None:
    (p,) = pool_labels([label("ann", 1.0), label("bob", 1.0)], "votes", smoothing)
    assert p.p_chosen == pytest.approx(p_chosen)


def test_a_tie_is_half_a_vote_and_an_even_pair_stays_even() -> None:
    pooled = pool_labels([label("ann", 1.0), label("bob", 0.5), label("ann", 1.0, "r"), label("bob", 0.0, "r")], "votes", 0.0)
    assert [p.p_chosen for p in pooled] == [0.75, 0.5]


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", 1.0),
        ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", 0.0),
        ("2026-01-01T00:30:00Z", "2026-01-01T01:00:00+01:00", 1.0),  # later as text, and half an hour earlier
        ("2026-01-01T00:30:00+00:00", "2026-01-01 00:45", 0.0),
        ("1767225600.5", "999999999", 1.0),
        ("2026-01-02", "1767225600", 1.0),
        ("9/1/2026", "10/1/2026", 0.0),  # nobody knows which: their order
        ("2026-01-02T00:00:00Z", "yesterday", 0.0),
        ("", "", 0.0),
    ],
)
def test_a_persons_later_answer_counts(first: str, second: str, says: float) -> None:
    (mine,) = by_pair([label("ann", 1.0, time=first), label("ann", 0.0, time=second, swapped=True)]).values()
    (kept,) = mine.values()
    assert (kept.p_a if kept.pair.response_a == "good" else 1 - kept.p_a) == says


def test_labels_without_a_name_are_votes_of_their_own() -> None:
    labels = [label("", 1.0), label("", 1.0), label("ann", 0.0)]
    assert [(p.chosen, p.p_chosen) for p in pool_labels(labels, "votes", 0.0)] == [("good", pytest.approx(2 / 3))]
    (found,) = consensus(labels).values()
    pair = found.pair
    assert (pair.response_a, pair.response_b) == sides_by_hash(pair.prompt, "good", "bad")
    assert (found.p_a if pair.response_a == "good" else 1 - found.p_a) == pytest.approx(2 / 3)


def test_one_round_of_dawid_skene_is_what_it_is_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three items; ann and bob say 1, 1, 0; cy says 0, 1, 0. Shares of votes: 2/3, 1, 0. No smoothing to speak of.
    # ann: first right (2/3 + 1) of 5/3: sensitivity 1; second right (1) of (1/3 + 1): specificity 3/4. cy: 1 of 5/3: 3/5; 4/3 of 4/3: 1.
    # prior 5/9. Item 1: odds 5/4 · (1 / (1/4))² · (2/5) / 1 = 8, so 8/9.
    monkeypatch.setattr("cai.labels.dawid_skene.MAX_ROUNDS", 1)
    answers = {"x": {"ann": 1.0, "bob": 1.0, "cy": 0.0}, "y": {"ann": 1.0, "bob": 1.0, "cy": 1.0}, "z": {"ann": 0.0, "bob": 0.0, "cy": 0.0}}
    fitted = dawid_skene(answers, smoothing=1e-9)
    assert fitted.sensitivity == pytest.approx({"ann": 1.0, "bob": 1.0, "cy": 0.6}, abs=1e-6)
    assert fitted.specificity == pytest.approx({"ann": 0.75, "bob": 0.75, "cy": 1.0}, abs=1e-6)
    assert fitted.accuracy["cy"] == pytest.approx(5 / 9 * 0.6 + 4 / 9, abs=1e-6)
    assert fitted.p_first["x"] == pytest.approx(8 / 9, abs=1e-6)


def test_dawid_skene_outvotes_two_people_who_guess_by_one_who_knows() -> None:
    import random

    rng = random.Random(0)
    truth = {f"i{i}": float(rng.random() < 0.5) for i in range(300)}
    skill = {"expert": 0.97, "good": 0.9, "guess1": 0.5, "guess2": 0.5, "contrary": 0.1}
    answers = {i: {who: t if rng.random() < s else 1 - t for who, s in skill.items()} for i, t in truth.items()}
    fitted = dawid_skene(answers)
    right = sum((fitted.p_first[i] > 0.5) == (t > 0.5) for i, t in truth.items())
    majority = sum((sum(answers[i].values()) > 2.5) == (t > 0.5) for i, t in truth.items())
    assert right > 280 > majority
    assert fitted.accuracy == pytest.approx(skill, abs=0.08)


def test_dawid_skene_of_noisy_people_is_fitted_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random.Random(0)
    votes = {f"pair {i}": {f"p{j}": float(drawn.random() < 0.5 + 0.04 * j * (-1) ** i) for j in range(6)} for i in range(60)}
    found = dawid_skene(votes, 1e-6)
    monkeypatch.setattr("cai.labels.dawid_skene.TOLERANCE", 0.0)
    monkeypatch.setattr("cai.labels.dawid_skene.MAX_ROUNDS", 20_000)
    end = dawid_skene(votes, 1e-6)
    assert max(abs(found.p_first[k] - p) for k, p in end.p_first.items()) < 1e-4


def test_dawid_skene_needs_answers() -> None:
    with pytest.raises(ValueError, match="every item needs an answer"):
        dawid_skene({"x": {}})
    pooled = pool_labels([label("ann", 1.0), label("bob", 1.0), label("ann", 0.0, "r"), label("bob", 0.0, "r")], "dawid-skene", 0.0)
    assert [p.chosen for p in pooled] == ["good", "bad"] and all(p.p_chosen > 0.99 for p in pooled)
