"""Ratings from duels: against closed forms, strengths that are known, and what can't be rated."""

import math
import random

import numpy as np
import pytest

from cai.errors import DataError
from cai.evaluate.arena import MEAN, POINTS, Duel, fit, pairings, rate


def test_two_models_are_as_far_apart_as_the_log_odds_of_a_win() -> None:
    duels = [Duel(f"p{i}", "a", "b", float(i < 14)) for i in range(19)]  # with the imaginary tie: 14.5 wins against 5.5
    found = rate(duels, "judge")
    first, second = found.ratings
    assert (first.model, second.model, found.prompts, first.duels) == ("a", "b", 19, 19)
    assert first.elo - second.elo == pytest.approx(POINTS * math.log(14.5 / 5.5), abs=1e-3)
    assert first.elo + second.elo == pytest.approx(2 * MEAN) and first.win_rate == pytest.approx(14 / 19)
    assert first.low < first.elo < first.high


def test_sides_ties_and_order_do_not_matter() -> None:
    duels = [Duel(f"p{i}", "a", "b", (1.0, 0.5, 0.0, 1.0)[i % 4]) for i in range(40)]
    duels += [Duel(f"p{i}", "b", "c", (1.0, 0.5)[i % 2]) for i in range(40)]
    turned = [Duel(d.prompt_id, d.second, d.first, 1 - d.outcome) for d in reversed(duels)]
    elo, other = ({r.model: r.elo for r in rate(found, "judge").ratings} for found in (duels, turned))
    assert elo == pytest.approx(other, abs=1e-3)


def test_the_fit_is_where_the_likelihood_is_flat() -> None:
    """At the maximum a model's wins are what its strengths expect: Bradley & Terry's own equation."""
    generator = np.random.default_rng(0)
    wins = generator.integers(0, 30, size=(3, 5, 5)).astype(float)
    wins[:, range(5), range(5)] = 0
    theta = fit(wins)
    expected = 1 / (1 + np.exp(theta[:, None, :] - theta[:, :, None]))
    counted = wins + 0.5 * (1 - np.eye(5))
    met = counted + counted.transpose(0, 2, 1)
    assert (met * expected).sum(2) == pytest.approx(counted.sum(2), rel=1e-4)
    assert theta.sum(1) == pytest.approx(0, abs=1e-9)


def test_known_strengths_are_found_and_intervals_hold_them() -> None:
    truth = {"weak": -0.8, "middle": 0.0, "strong": 0.8}
    inside = tried = 0
    for trial in range(20):
        draw = random.Random(trial)
        duels = [
            Duel(f"p{i}", a, b, float(draw.random() < 1 / (1 + math.exp(truth[b] - truth[a]))))
            for i in range(150)
            for a, b in pairings([*truth])
        ]
        found = rate(duels, "judge", seed=trial)
        assert [r.model for r in found.ratings] == ["strong", "middle", "weak"]
        for r in found.ratings:
            tried += 1
            inside += r.low <= MEAN + POINTS * truth[r.model] <= r.high
    assert inside >= 0.85 * tried


def test_a_model_that_always_wins_has_a_rating() -> None:
    found = rate([Duel(f"p{i}", "best", "worst", 1.0) for i in range(30)], "judge")
    best, worst = found.ratings
    assert best.model == "best" and math.isfinite(best.elo) and best.elo - worst.elo == pytest.approx(POINTS * math.log(61), abs=1e-2)
    assert (best.above_next, worst.above_next) == (1.0, None)


def test_equals_are_not_told_apart() -> None:
    found = rate([Duel(f"p{i}", "a", "b", float(i % 2)) for i in range(100)], "reward")
    first, second = found.ratings
    assert first.elo == pytest.approx(second.elo, abs=1e-6) and first.low < MEAN < first.high
    assert first.above_next is not None and 0.3 < first.above_next < 0.7


@pytest.mark.parametrize(
    ("duels", "told"),
    [
        ([], "at least two models"),
        ([Duel("p", "a", "b", 1.0), Duel("p", "b", "a", 1.0)], "1 duels occur twice"),
        ([Duel("p", "a", "b", 1.0), Duel("p", "c", "d", 1.0)], "c, d: no comparison connects these models with a"),
    ],
)
def test_what_cannot_be_rated_is_refused(duels: list[Duel], told: str) -> None:
    with pytest.raises(DataError, match=told):
        rate(duels, "judge")
