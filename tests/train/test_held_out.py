"""Accuracy and calibration from stored scores, whole and by bucket."""

import math

import pytest

from cai.records import PromptKind, ScoredPair
from cai.train.reward.ensemble import aggregate_scores
from cai.train.reward.metrics import ENSEMBLE, LENGTH_BUCKETS, RewardMeasure, length_bucket, measure_margins, measure_scores


def scored(
    i: int,
    chosen: tuple[float, ...],
    rejected: tuple[float, ...] = (),
    p: float = 1.0,
    characters: tuple[int, int] = (100, 100),
    source: str = "ai:test",
    kind: PromptKind = "harmful",
) -> ScoredPair:
    sides = aggregate_scores(chosen), aggregate_scores(rejected or (0.0,) * len(chosen))
    return ScoredPair(f"pair{i}", f"p{i}", kind, source, p, True, *characters, *sides)


def found(measures: list[RewardMeasure], model: str, by: str, group: str = "") -> tuple[float, int]:
    [m] = [m for m in measures if (m.model, m.by, m.group) == (model, by, group)]
    return m.metrics.accuracy, m.metrics.n


def test_members_and_ensemble_are_measured_on_every_bucket() -> None:
    pairs = [
        scored(0, (1.0, 3.0)),  # both right
        scored(1, (-1.0, 3.0), characters=(300, 100), source="human:f"),  # the second and the mean right
        scored(2, (-3.0, 1.0), characters=(100, 300), kind="helpful"),  # the second right, the mean wrong
        scored(3, (1.0, 3.0), p=0.2, characters=(100, 300)),  # rejected is the better one, and the longer: all wrong
        scored(4, (9.0, 9.0), p=0.5),  # no side
    ]
    measures = measure_scores(pairs, ("reward-0", "reward-1"))
    assert [m.model for m in measures if m.by == "all"] == [ENSEMBLE, "reward-0", "reward-1"]
    assert found(measures, ENSEMBLE, "all") == (0.5, 4)
    assert found(measures, "reward-0", "all") == (0.25, 4)
    assert found(measures, "reward-1", "all") == (0.75, 4)
    assert found(measures, ENSEMBLE, "source", "human:f") == (1.0, 1)
    assert found(measures, "reward-1", "kind", "helpful") == (1.0, 1)
    assert found(measures, ENSEMBLE, "length", "better is over twice as long") == (0.5, 2)
    assert found(measures, ENSEMBLE, "length", "better is under half as long") == (0.0, 1)
    assert found(measures, ENSEMBLE, "length", "about equally long") == (1.0, 1)


def test_a_single_member_is_measured_once_under_its_own_name() -> None:
    measures = measure_scores([scored(0, (1.0,)), scored(1, (-1.0,))], ("reward-0",))
    assert {m.model for m in measures} == {"reward-0"} and found(measures, "reward-0", "all") == (0.5, 2)
    assert measure_scores([scored(0, (1.0,), p=0.5)], ("reward-0",)) == []


@pytest.mark.parametrize(
    ("characters", "name"),
    [((49, 100), 0), ((50, 100), 0), ((60, 100), 1), ((90, 100), 2), ((120, 100), 2), ((150, 100), 3), ((201, 100), 4), ((5, 0), 4)],
)
def test_length_is_told_from_the_better_side(characters: tuple[int, int], name: int) -> None:
    assert length_bucket(scored(0, (1.0,), characters=characters)) == LENGTH_BUCKETS[name][1]
    assert length_bucket(scored(0, (1.0,), characters=(characters[1], characters[0]), p=0.1)) == LENGTH_BUCKETS[name][1]


def test_overconfidence_by_hand() -> None:
    margin = math.log(3.0)  # says ¾
    calm = measure_margins([margin] * 4, [1.0, 1.0, 1.0, 0.0])
    assert calm.overconfidence == pytest.approx(0.0) and calm.overconfidence_low < 0 < calm.overconfidence_high
    sure = measure_margins([margin, -margin], [0.0, 1.0])  # wrong twice
    assert sure.overconfidence == pytest.approx(0.75) == pytest.approx(sure.overconfidence_low)
    # gaps −¼ and ¾: mean ¼, sd 1/√2, half-width 1.96 · ½
    mixed = measure_margins([margin, margin], [1.0, 0.0])
    assert (mixed.overconfidence, mixed.overconfidence_high) == (pytest.approx(0.25), pytest.approx(min(1.0, 0.25 + 0.98)))
    assert (measure_margins([margin], [1.0]).overconfidence_low, measure_margins([margin], [1.0]).overconfidence_high) == (-1.0, 1.0)


def test_disagreement_is_of_margins_not_of_scores() -> None:
    offset = scored(0, (1.0, 9.0), (0.0, 8.0))  # far apart on each side, and equal margins
    assert offset.chosen.std == 4.0 and offset.disagreement == 0.0
    assert scored(1, (1.0, -1.0)).disagreement == 1.0
