"""DPO and KTO on held-out pairs: what is measured, which epoch is kept, when training stops, and that a kill changes nothing."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.train.dpo import train_dpo
from cai.train.held_out import HeldOutPoint, best_point, is_over, read_points
from cai.train.kto import train_kto
from tests.train.builders import assert_same_weights, dpo_config, model_at, preference, preferences
from tests.train.killing import Killed, kill_at

Train = Callable[..., Any]


def point(step: int, loss: float) -> HeldOutPoint:
    return HeldOutPoint(step, float(step), loss, 0.0, 0.5, 4)


def test_the_lowest_loss_is_the_best_and_patience_counts_epochs_without_a_lower_one() -> None:
    points = [point(1, 0.7), point(2, 0.6), point(3, 0.6), point(4, 0.65)]
    assert best_point(points) == points[1] and best_point([]) is None
    assert [is_over(points[:n], 2) for n in range(5)] == [False, False, False, False, True]
    assert not is_over(points, None) and not is_over(points, 3)


@pytest.mark.parametrize("train", [train_dpo, train_kto])
def test_every_epoch_is_measured_and_training_stops_where_held_out_pairs_say_the_opposite(
    tiny_model_dir: Path, sft: Path, tmp_path: Path, train: Train
) -> None:
    """Held-out labels contradict the training's, so that every epoch makes the held-out loss worse."""
    opposite = [replace(preference(i), chosen=f"no {i}!", rejected=f"yes {i}, gladly.") for i in range(20, 24)]
    config = dpo_config(epochs=6.0, early_stopping=2)
    result = train(config, model_at(tiny_model_dir), sft, preferences(8), tmp_path / "a", 0, held_out=opposite)
    points = read_points(tmp_path / "a")
    assert [p.epoch for p in points] == [1.0, 2.0, 3.0], "stopped two epochs after the best"
    assert points[0].loss < points[1].loss < points[2].loss and points[-1].accuracy < 0.5 and points[-1].margin < 0
    assert result.metrics["held_out_step"] == points[0].step and result.metrics["held_out_loss"] == points[0].loss
    first = train(
        dpo_config(epochs=6.0, early_stopping=1), model_at(tiny_model_dir), sft, preferences(8), tmp_path / "b", 0, held_out=opposite
    )
    assert first.metrics["held_out_step"] == points[0].step
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert "held-out preferences" in (tmp_path / "a" / "README.md").read_text()


def test_pairs_that_agree_are_learned_and_the_last_epoch_is_kept(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    pairs = preferences(8)
    apart = [preference(i) for i in (20, 21)]
    result = train_dpo(dpo_config(epochs=3.0), model_at(tiny_model_dir), sft, pairs, tmp_path / "a", 0, held_out=apart)
    points = read_points(tmp_path / "a")
    assert len(points) == 3 and points[-1].loss < points[0].loss < math.log(2) and points[-1].accuracy == 1.0
    assert (result.metrics["held_out_accuracy"], result.metrics["held_out_n"]) == (1.0, 2)
    train_dpo(dpo_config(epochs=3.0), model_at(tiny_model_dir), sft, pairs, tmp_path / "b", 0)
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_a_killed_training_measures_and_decides_the_same(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    config, model = dpo_config(epochs=4.0, save_steps=1), model_at(tiny_model_dir)
    apart = [preference(i) for i in (20, 21, 22)]
    train_dpo(config, model, sft, preferences(8), tmp_path / "whole", 0, held_out=apart)
    with pytest.raises(Killed):
        train_dpo(config, model, sft, preferences(8), tmp_path / "cut", 0, kill_at(5), held_out=apart)
    train_dpo(config, model, sft, preferences(8), tmp_path / "cut", 0, held_out=apart)
    assert read_points(tmp_path / "cut") == read_points(tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
