"""Fitting a calibration: it finds what is there, doesn't find what isn't, and says which."""

import math
import random
from collections.abc import Callable

import pytest

from cai.errors import DataError
from cai.judge.fitting import MIN_PAIRS, Fitted, Labelled, fit_calibration, folds
from cai.records import EvalResult


def made(n: int, people: Callable[[dict[str, float], float], float], seed: int = 0, principles: int = 4) -> list[Labelled]:
    """Pairs with random opinions, and people who answer by the given log-odds of opinions and length."""
    rng = random.Random(seed)
    pairs = []
    for i in range(n):
        said = {f"p{k}": rng.gauss(0, 2) for k in range(principles)}
        length = rng.gauss(0, 0.7)
        p = 1 / (1 + math.exp(-people(said, length)))
        pooled = sum(said.values()) / len(said)
        pairs.append(Labelled(f"k{i}", f"prompt{i // 2}", pooled, said, length, float(rng.random() < p)))
    return pairs


def results(fitted: Fitted) -> dict[tuple[str, str], EvalResult]:
    return {(r.name, r.model): r for r in fitted.measured}


def test_an_overconfident_judge_is_calmed_down() -> None:
    fitted = fit_calibration(made(400, lambda said, length: 0.3 * sum(said.values()) / 4), False, 0)
    assert fitted.scale == pytest.approx(0.3, abs=0.2)
    gain = results(fitted)["log_loss_gain", "calibrated over uncalibrated"]
    assert gain.low > 0 and gain.n == 400


def test_the_one_principle_that_people_follow_is_found() -> None:
    fitted = fit_calibration(made(300, lambda said, length: 2 * said["p2"]), False, 0)
    assert fitted.method.startswith("principles") and max(fitted.weights, key=lambda k: fitted.weights[k]) == "p2"
    found = results(fitted)
    assert found["accuracy_gain", "calibrated over uncalibrated"].low > 0.1
    assert found["accuracy", "calibrated"].value > 0.8 and fitted.warnings == ()


def test_labels_that_nothing_predicts_give_no_gain_and_say_so() -> None:
    accuracies = []
    for seed in range(100, 103):
        fitted = fit_calibration(made(100, lambda said, length: 0.0, seed, principles=12), False, seed)
        accuracies.append(results(fitted)["accuracy", "calibrated"].value)
        assert "the calibrated judge was not shown to know more than a coin" in fitted.warnings
        assert any("trivial rule" in w for w in fitted.warnings)
    # On the pairs that it was fitted on, a fit of 13 weights to 100 coin flips would be right nearly two times out of three.
    assert 0.4 < sum(accuracies) / 3 < 0.6


def test_a_judge_that_people_contradict_is_turned_round_with_a_warning() -> None:
    fitted = fit_calibration(made(300, lambda said, length: -sum(said.values())), False, 0)
    assert fitted.scale < 0 and any("turns it round" in w for w in fitted.warnings)


def test_a_liking_for_length_is_taken_off_only_where_asked() -> None:
    pairs = made(250, lambda said, length: sum(said.values()) / 4 - 2 * length)
    assert fit_calibration(pairs, False, 0).length == 0.0
    fitted = fit_calibration(pairs, True, 0)
    assert fitted.length < -1 and ("accuracy", "length alone, fitted") in results(fitted)


def test_telling_a_pair_the_other_way_round_changes_nothing() -> None:
    pairs = made(120, lambda said, length: said["p1"])
    turned = [
        Labelled(p.key, p.group, -p.pooled, {k: -v for k, v in p.by_principle.items()}, -p.length, 1 - p.people) if i % 3 else p
        for i, p in enumerate(pairs)
    ]
    one, other = fit_calibration(pairs, True, 0), fit_calibration(turned, True, 0)
    assert other.scale == pytest.approx(one.scale, rel=1e-3) and other.weights == pytest.approx(one.weights, rel=1e-2, abs=1e-3)
    assert results(other)["accuracy", "calibrated"].value == results(one)["accuracy", "calibrated"].value


def test_soft_labels_weigh_both_answers() -> None:
    pairs = [Labelled(f"k{i}", f"p{i}", 1.0 if i % 2 else -1.0, {}, 0.0, 0.75 if i % 2 else 0.25) for i in range(200)]
    # Cross-entropy is least where σ(scale) = 3/4; the prior hardly pulls.
    assert fit_calibration(pairs, False, 0).scale == pytest.approx(math.log(3), rel=0.01)


def test_folds_hold_whole_prompts() -> None:
    groups = [f"p{i // 3}" for i in range(90)]
    found = folds(groups, 0)
    assert sorted(i for _, test in found for i in test) == list(range(90))
    for train, test in found:
        assert test and not {groups[i] for i in train} & {groups[i] for i in test}


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(DataError, match="fitting a judge needs at least"):
        fit_calibration(made(MIN_PAIRS - 1, lambda said, length: 0.0), False, 0)
