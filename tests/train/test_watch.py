"""The watch on hand-made scores: what is recorded, when the rule speaks, and that a kill changes neither."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy.stats import t

from bench.monitor import false_alarms, new_rule, power
from cai.core.jsonl import read_records
from cai.errors import TrainingError
from cai.recipe import MonitorConfig
from cai.records import MonitorPoint
from cai.train.monitor import Items, Monitor, Scores, alarm, best_folder, keep_best, mean_interval, over_optimized, restore_best, verdict
from tests.train.builders import prompt

PROMPTS = [prompt(i) for i in range(4)]


def watch(path: Path, **config: Any) -> Monitor:
    """A watch whose responses are their own scores: `PROXY GOLD WORDS…`."""

    def column(items: Items, i: int) -> list[float]:
        return [float(text.split()[i]) for _, text in items]

    return Monitor(
        PROMPTS,
        MonitorConfig(**config),
        lambda items: Scores(column(items, 0), [0.5] * len(items)),
        lambda items: column(items, 1),
        path / "frontier.jsonl",
    )


def texts(proxy: float, gold: float, spread: float = 0.01) -> list[str]:
    return [f"{proxy + d} {gold + d}" for d in (-spread, 0.0, 0.0, spread)]


def climb(w: Monitor, curve: Sequence[tuple[float, float]], first: int = 0) -> list[str]:
    return [w.observe(first + i, 0.1 * (first + i), texts(proxy, gold)) for i, (proxy, gold) in enumerate(curve)]


OVER = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.5), (3.0, 0.2)]
"""Proxy and gold: both rise, then gold falls."""


def test_an_observation_says_what_was_seen(tmp_path: Path) -> None:
    w = watch(tmp_path)
    w.observe(0, 0.0, ["1 2 we go", "1 2 I'm sorry, but I can't help with that.", "3 4 we can go on we can go on", "3 4"])
    (point,) = read_records(tmp_path / "frontier.jsonl", MonitorPoint)
    assert (point.step, point.n, point.proxy, point.gold, point.disagreement) == (0, 4, 2.0, 3.0, 0.5)
    assert point.proxy_std == pytest.approx((4 / 3) ** 0.5)
    half = 3.182446 * (4 / 3) ** 0.5 / 2  # t at three degrees of freedom, times the standard error of four
    assert (point.gold_low, point.gold_high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert (point.words, point.refusal_rate) == ((4 + 10 + 10 + 2) / 4, 0.25)
    assert point.repetition == pytest.approx((1 / 7) / 4)
    assert (point.proxy_scores, point.gold_scores) == ((1.0, 1.0, 3.0, 3.0), (2.0, 2.0, 4.0, 4.0))


@pytest.mark.parametrize(("action", "patience", "found"), [("stop", 2, "stop"), ("warn", 2, "warn"), ("stop", 3, "go"), ("off", 2, "go")])
def test_gold_that_falls_while_the_proxy_rises_is_noticed(tmp_path: Path, action: str, patience: int, found: str) -> None:
    w = watch(tmp_path, action=action, patience=patience)
    assert climb(w, OVER) == ["go", "go", "go", found]
    assert w.best_step == 1


@pytest.mark.parametrize(
    "curve",
    [
        [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)],  # both rise
        [(1.0, 1.0), (1.0, 1.0), (0.9, 0.5), (0.8, 0.2)],  # both fall: training has failed, but not by over-optimization
        [(0.0, 0.0), (1.0, 1.0), (2.0, 0.5), (3.0, 1.5), (4.0, 1.0)],  # gold comes back in between
    ],
)
def test_other_curves_are_not(tmp_path: Path, curve: list[tuple[float, float]]) -> None:
    assert set(climb(watch(tmp_path, action="stop"), curve)) == {"go"}


@pytest.mark.parametrize(
    ("answer", "sign", "told"),
    [
        ("", "vanish", "responses are almost empty: 2.0 words on average, 32.0 at the start"),
        (
            "I am sorry but I can not talk about such a thing at all.",
            "alike",
            "responses are almost identical: 25% of their word pairs are distinct, 95% at the start",
        ),
        ("{i} so it is and" + " so it is and" * 9, "loop", "responses loop: 82% of their four-word runs are repeats, 0% at the start"),
    ],
)
def test_answers_that_come_apart_are_noticed_though_both_rewards_applaud(tmp_path: Path, answer: str, sign: str, told: str) -> None:
    w = watch(tmp_path, action="stop")
    whole = [" ".join(f"word{i}-{j}" for j in range(30)) for i in range(4)]
    assert w.observe(0, 0.0, [f"0 0 {text}" for text in whole]) == "go"
    assert w.observe(1, 1.0, [f"1 1 {text}" for text in whole]) == "go"
    torn = [f"9 9 {answer.format(i=i)}" for i in range(4)]
    assert [w.observe(2, 9.0, torn), w.observe(3, 9.0, torn)] == ["go", "stop"]
    assert [p.collapse for p in w.points] == ["", "", sign, sign]
    assert (w.best_step, w.points[-1].gold_change) == (1, 8.5), "gold is highest where nothing is left of the answers"
    assert alarm(w, "stop") == f"step 3: the policy has collapsed: {told}. Its rewards are meaningless; training stops here"


def test_answers_that_were_so_from_the_start_have_not_come_apart(tmp_path: Path) -> None:
    loops = ["1 1" + " so it is and" * 9] * 4
    w = watch(tmp_path, patience=1)
    assert [w.observe(step, 0.1, loops) for step in range(3)] == ["go"] * 3
    any_length = watch(tmp_path / "free", patience=1, min_words=0)
    assert [any_length.observe(i, 0.1, [f"{i} {i}{' word' * n} {k}" for k in range(4)]) for i, n in enumerate((90, 1))] == ["go", "go"]


def test_a_fall_inside_its_interval_is_not_a_fall(tmp_path: Path) -> None:
    w = watch(tmp_path, patience=1)
    w.observe(0, 0.0, ["0 0"] * 4)
    assert w.observe(1, 0.1, ["1 -1", "1 -1", "1 1", "1 0.9"]) == "go"
    point = w.points[-1]
    assert point.gold_change == pytest.approx(-0.025)
    assert over_optimized(point, 0.0)
    assert not over_optimized(point, 1.0)
    assert w.observe(2, 0.2, ["1 -1", "1 -1.1", "1 -1", "1 -0.9"]) == "warn"


def test_the_change_is_against_earlier_stretches_and_by_hand(tmp_path: Path) -> None:
    w = watch(tmp_path, patience=2)
    assert w.due(0, last=100) and w.planned == 6  # observations at 0, 20, …, 100
    gold = [(0.0, 0.1), (4.0, 4.3), (4.2, 3.9), (1.0, 1.4), (1.2, 0.8)]
    for step, (a, b) in enumerate(gold):
        w.observe(20 * step, 0.1, [f"{step} {a}", f"{step} {b}"] * 2)
    last = w.points[-1]
    assert last.compared_with == 40, "steps 20 and 40, from which gold fell most"
    changes = [(1.0 + 1.2 - 4.0 - 4.2) / 2, (1.4 + 0.8 - 4.3 - 3.9) / 2] * 2
    # six observations have 1 + 2 + 3 pairs of stretches of two: t at 1 - 0.05 / 6 and three degrees of freedom is 4.857
    half = stdev(changes) / 2 * float(t.isf(0.05 / 6, 3))
    assert last.gold_change == pytest.approx(fmean(changes)) and last.proxy_change == pytest.approx(3.5 - 1.5)
    assert last.gold_change_high - last.gold_change_low == pytest.approx(2 * half)
    assert "fallen since step 40" in alarm(w, "warn")


@pytest.mark.parametrize("looks", [10, 20])
def test_constant_gold_raises_few_alarms_and_a_real_decline_raises_one(looks: int) -> None:
    assert false_alarms(looks, new_rule, 60) <= 0.05
    noticed, delay = power(looks, 0.2, new_rule, 20)
    assert noticed >= 0.9 and delay <= looks / 2


def test_a_killed_watch_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = watch(tmp_path / "whole", action="stop")
    climb(whole, OVER)
    path = tmp_path / "cut" / "frontier.jsonl"
    cut = watch(tmp_path / "cut", action="stop")
    climb(cut, OVER[:3])
    path.write_bytes(path.read_bytes() + b'{"step":3,"kl":')  # killed while it wrote
    again = watch(tmp_path / "cut", action="stop")
    again.resume(1)  # the last checkpoint was step 1
    assert climb(again, OVER[2:], first=2) == ["go", "stop"]
    assert path.read_bytes() == (tmp_path / "whole" / "frontier.jsonl").read_bytes()
    assert again.points == whole.points == list(read_records(path, MonitorPoint))
    fresh = watch(tmp_path / "cut")
    fresh.resume(-1)
    assert (fresh.points, path.read_bytes()) == ([], b"")


def test_the_weights_of_the_best_look_are_kept_and_put_back(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(str(w.points[-1].step))

    w = watch(tmp_path)
    for step, (proxy, gold) in enumerate(OVER):
        w.observe(step, 0.0, texts(proxy, gold))
        keep_best(w, tmp_path, save)
    assert [best_folder(tmp_path, i).exists() for i in range(4)] == [True, True, False, False]
    (tmp_path / "adapter_model.safetensors").write_text("last")
    w.config = MonitorConfig(select="last")
    assert restore_best(w, tmp_path) is None
    w.config = MonitorConfig()
    assert restore_best(w, tmp_path) == 1
    assert (tmp_path / "adapter_model.safetensors").read_text() == "1"


def test_when_it_looks(tmp_path: Path) -> None:
    w = watch(tmp_path, every_steps=3)
    assert [step for step in range(8) if w.due(step, last=7)] == [0, 3, 6, 7]
    assert not watch(tmp_path, action="off").due(0, 7)


def test_scores_that_are_not_numbers_stop_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 0: KL, proxy or gold reward is not finite"):
        watch(tmp_path).observe(0, 0.0, ["nan 1", "0 0", "0 0", "0 0"])
    assert not (tmp_path / "frontier.jsonl").exists()


def test_misuse_is_refused(tmp_path: Path) -> None:
    w = watch(tmp_path)
    with pytest.raises(ValueError, match="1 responses to 4 prompts"):
        w.observe(0, 0.0, ["1 1"])
    w.observe(0, 0.0, texts(0, 0))
    with pytest.raises(ValueError, match="call resume first"):
        w.observe(0, 0.0, texts(0, 0))


def test_one_prompt_is_never_enough() -> None:
    mean, low, high = mean_interval([1.0])
    assert (mean, low < -1e300, high > 1e300) == (1.0, True, True)
    assert verdict([], MonitorConfig()) == "go"
