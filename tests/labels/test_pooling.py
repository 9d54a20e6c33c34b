"""Several people's labels of one pair: who counts, how they are pooled, and what Dawid and Skene's model makes of unreliable people."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from cai.data.filters import sides_by_hash
from cai.labels.agreement import people_agreement
from cai.labels.dawid_skene import dawid_skene
from cai.labels.pooling import ADJUDICATOR, by_pair, consensus, pool_rows
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


Answers = dict[str, dict[str, float]]


def simulated(seed: int, pairs: int, skills: list[float], per_pair: int, doubtful: float = 0.0) -> tuple[Answers, dict[str, float]]:
    """Answers of people of these accuracies, a few to each pair, and the truth. About a share of the pairs everybody flips a coin."""
    rng = random.Random(seed)
    truth = {f"i{i}": float(rng.random() < 0.5) for i in range(pairs)}
    who = [rng.sample(range(len(skills)), per_pair) for _ in truth]
    clear = [skills if i >= doubtful * pairs else [0.5] * len(skills) for i in range(pairs)]
    drawn = zip(truth.items(), who, clear, strict=True)
    return {i: {f"p{j}": t if rng.random() < skilled[j] else 1 - t for j in js} for (i, t), js, skilled in drawn}, truth


def log_loss(p: dict[str, float], truth: dict[str, float]) -> float:
    return -sum(math.log(p[i] if t else 1 - p[i]) for i, t in truth.items()) / len(truth)


def shares(answers: Answers, smoothing: float) -> dict[str, float]:
    return {i: (sum(mine.values()) + smoothing) / (len(mine) + 2 * smoothing) for i, mine in answers.items()}


def mean_losses(drawn: list[tuple[Answers, dict[str, float]]]) -> tuple[float, float]:
    """Log loss of the model, and of the votes with the best of their smoothings, which is chosen with the truth at hand."""
    model = sum(log_loss(dawid_skene(answers).p_first, truth) for answers, truth in drawn) / len(drawn)
    votes = min(sum(log_loss(shares(answers, s), truth) for answers, truth in drawn) / len(drawn) for s in (0.25, 0.5, 1.0, 2.0))
    return model, votes


@pytest.mark.parametrize("flippers", [0.0, 0.2, 0.4])
@pytest.mark.parametrize(("raters", "per_pair"), [(3, 3), (5, 4), (10, 3), (20, 5)])
def test_dawid_skene_beats_votes_whatever_the_share_of_raters_who_flip_a_coin(raters: int, per_pair: int, flippers: float) -> None:
    guessing = round(flippers * raters)
    skills = [0.5] * guessing + [0.85] * (raters - guessing)
    model, votes = mean_losses([simulated(seed, 200, skills, per_pair) for seed in range(4)])
    assert model < votes - 0.02


@pytest.mark.parametrize("doubtful", [0.2, 0.4])
@pytest.mark.parametrize(("raters", "per_pair"), [(3, 3), (5, 4), (10, 3), (20, 5)])
@pytest.mark.parametrize("skill", [0.7, 0.85])
def test_dawid_skene_ties_votes_where_many_pairs_are_a_coin_flip(raters: int, per_pair: int, doubtful: float, skill: float) -> None:
    model, votes = mean_losses([simulated(seed, 200, [skill] * raters, per_pair, doubtful) for seed in range(4)])
    assert model < votes + 0.03


@pytest.mark.parametrize(
    ("pairs", "skills", "per_pair", "tie"),
    [
        (300, [0.7] * 20, 3, 0.02),
        (300, [0.7] * 20, 2, 0.02),
        (60, [0.7] * 20, 5, 0.0),
        (300, [0.55] * 5 + [0.9] * 5, 4, -0.1),
        (300, [0.85] * 5 + [0.15], 3, -0.1),
        (300, [0.9, 0.85, 0.8], 3, -0.04),
        (200, [0.8, 0.8], 2, 0.01),
        (200, [0.8], 1, 0.05),
    ],
)
def test_dawid_skene_ties_or_beats_votes_and_is_as_sure_as_it_is_right(pairs: int, skills: list[float], per_pair: int, tie: float) -> None:
    """Against the best of three smoothings of the votes, each chosen with the truth at hand."""
    drawn = [simulated(seed, pairs, skills, per_pair) for seed in range(6)]
    fitted = [dawid_skene(answers).p_first for answers, _ in drawn]
    loss = sum(log_loss(p, truth) for p, (_, truth) in zip(fitted, drawn, strict=True)) / 6
    votes = min(sum(log_loss(shares(answers, s), truth) for answers, truth in drawn) / 6 for s in (0.25, 0.5, 1.0))
    assert loss < votes + tie
    sure = [max(p, 1 - p) for one in fitted for p in one.values()]
    both = [(p, truth[i]) for one, (_, truth) in zip(fitted, drawn, strict=True) for i, p in one.items()]
    right = [0.5 if p == 0.5 else float((p > 0.5) == (t > 0.5)) for p, t in both]
    assert sum(sure) / len(sure) < sum(right) / len(right) + 0.06


REAL = Path(__file__).parents[2].parent / "shared" / "data" / "pandalm_dev.jsonl"


@pytest.mark.skipif(not REAL.exists(), reason="PandaLM's annotations are not here")
def test_dawid_skene_foretells_a_hidden_annotator_as_well_as_votes() -> None:
    rng, value = random.Random(0), {"A": 1.0, "B": 0.0, "tie": 0.5}
    rows = [[value[a] for a in json.loads(line)["annotators"]] for line in REAL.read_text().splitlines()]
    hidden = [rng.randrange(3) for _ in rows]
    answers = {str(i): {f"p{j}": a for j, a in enumerate(row) if j != h} for i, (row, h) in enumerate(zip(rows, hidden, strict=True))}
    truth = {str(i): row[h] for i, (row, h) in enumerate(zip(rows, hidden, strict=True))}

    def loss(p: dict[str, float]) -> float:
        return -sum(t * math.log(p[i]) + (1 - t) * math.log(1 - p[i]) for i, t in truth.items()) / len(truth)

    assert loss(dawid_skene(answers).p_first) < min(loss(shares(answers, s)) for s in (0.25, 0.5, 1.0))


def test_dawid_skene_of_raters_near_a_coin_is_as_bad_as_its_module_says() -> None:
    drawn = [simulated(seed, 200, [0.55] * 3, 3) for seed in range(12)]
    loss = sum(log_loss(dawid_skene(answers).p_first, truth) for answers, truth in drawn) / 12
    votes = {s: sum(log_loss(shares(answers, s), truth) for answers, truth in drawn) / 12 for s in (1.0, 2.0)}
    assert votes[2.0] < math.log(2) + 0.01 and loss < votes[1.0] + 0.02 and loss < math.log(2) + 0.04


def test_dawid_skene_takes_no_side() -> None:
    answers, _ = simulated(0, 100, [0.8] * 6, 3)
    one = dawid_skene(answers)
    other = dawid_skene({i: {who: 1 - a for who, a in mine.items()} for i, mine in answers.items()})
    assert all(other.p_first[i] == pytest.approx(1 - p) for i, p in one.p_first.items())
    assert other.accuracy == pytest.approx(one.accuracy)


def test_dawid_skene_outvotes_two_people_who_guess_by_one_who_knows() -> None:
    rng = random.Random(0)
    truth = {f"i{i}": float(rng.random() < 0.5) for i in range(300)}
    skill = {"expert": 0.97, "good": 0.9, "guess1": 0.5, "guess2": 0.5, "contrary": 0.1}
    answers = {i: {who: t if rng.random() < s else 1 - t for who, s in skill.items()} for i, t in truth.items()}
    fitted = dawid_skene(answers)
    right = sum((fitted.p_first[i] > 0.5) == (t > 0.5) for i, t in truth.items())
    majority = sum((sum(answers[i].values()) > 2.5) == (t > 0.5) for i, t in truth.items())
    assert right > 280 > majority
    assert fitted.accuracy == pytest.approx(skill, abs=0.08)


def test_dawid_skene_needs_answers() -> None:
    with pytest.raises(ValueError, match="every item needs an answer"):
        dawid_skene({"x": {}})
    pooled = pool_labels([label("ann", 1.0), label("bob", 1.0), label("ann", 0.0, "r"), label("bob", 0.0, "r")], "dawid-skene", 0.0)
    assert [p.chosen for p in pooled] == ["good", "bad"] and all(0.6 < p.p_chosen < 0.95 for p in pooled)


@pytest.mark.parametrize("method", ["votes", "dawid-skene"])
def test_a_decision_replaces_the_answers_that_it_decides(method: Pooling) -> None:
    answers = [label("ana", 0.0), label("ben", 0.0), label("", 0.0), label(ADJUDICATOR, 1.0)]
    [pooled] = consensus(answers).values()
    assert pooled.p_a == (1.0 if pooled.pair.response_a == "good" else 0.0)
    [preference] = pool_labels([x for x in answers if x.annotator], method, 0.0)
    assert preference.p_chosen > 0.5 and preference.chosen == "good"
    assert not any(r.model == ADJUDICATOR for r in people_agreement(answers))
