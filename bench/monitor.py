"""How often the over-optimisation monitor raises a false alarm, and how soon it notices a real decline.

python -m bench.monitor [--trainings 400]

Simulated trainings: gold rewards of 64 prompts, each with a level of its own and noise of one standard deviation per observation, while the
proxy rises. Constant gold must raise an alarm in at most 5 % of trainings. In a decline, gold rises for the first half of the training and
then falls by `fall` standard deviations per observation. `old` is the rule before November 2026: against the best observation so far, at
95 %, in two observations in a row.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.table import Row
from cai.recipe import MonitorConfig
from cai.records import MonitorPoint
from cai.train.monitor import mean_interval, verdict, with_change

PROMPTS = 64
LOOKS = (10, 20, 40)
FALLS = (0.05, 0.1, 0.2)
Rule = Callable[[list[MonitorPoint], int], bool]


def new_rule(points: list[MonitorPoint], planned: int) -> bool:
    """Whether the monitor raises an alarm after the last point. Fills in the point's changes."""
    config = MonitorConfig()
    points[-1] = with_change(points, config.patience, planned)
    return verdict(points, config) != "go"


def old_rule(points: list[MonitorPoint], planned: int) -> bool:
    """Whether gold was below its best so far by a half-width of the 95 % interval in two observations in a row."""

    def fallen(upto: int) -> bool:
        best = max(points[:upto], key=lambda p: p.gold)
        mean, low, high = mean_interval([b - a for a, b in zip(best.gold_scores, points[upto].gold_scores, strict=True)])
        return mean < 0 and -mean >= (high - low) / 2

    return len(points) > 2 and fallen(len(points) - 1) and fallen(len(points) - 2)


def first_alarm(means: np.ndarray, rule: Rule, generator: np.random.Generator) -> int | None:
    """Return the index of the observation at which a rule raises its first alarm in one training; None if it raises none."""
    levels = generator.normal(0.0, 2.0, PROMPTS)
    points: list[MonitorPoint] = []
    for i, mean in enumerate(means):
        gold = tuple(map(float, mean + levels + generator.normal(0.0, 1.0, PROMPTS)))
        average = sum(gold) / PROMPTS
        points.append(
            MonitorPoint(i, 0.0, float(i), 0.0, None, average, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, PROMPTS, gold_scores=gold)
        )
        if rule(points, len(means)):
            return i
    return None


def false_alarms(looks: int, rule: Rule, trainings: int, seed: int = 0) -> float:
    """Return the fraction of trainings with constant gold that end with an alarm."""
    generator = np.random.default_rng(seed)
    return sum(first_alarm(np.zeros(looks), rule, generator) is not None for _ in range(trainings)) / trainings


def power(looks: int, fall: float, rule: Rule, trainings: int, seed: int = 1) -> tuple[float, float]:
    """Return the fraction of declines that are noticed, and the median number of observations from the peak until then."""
    generator = np.random.default_rng(seed)
    peak = looks // 2
    steps = np.arange(looks)
    means = np.where(steps <= peak, 0.1 * steps, 0.1 * peak - fall * (steps - peak))
    alarms = [first_alarm(means, rule, generator) for _ in range(trainings)]
    noticed = [a - peak for a in alarms if a is not None and a > peak]
    return len(noticed) / trainings, float(np.median(noticed)) if noticed else float("nan")


def rows(quick: bool) -> list[Row]:
    """Return the false alarms of both rules, and the power of the new one."""
    trainings = 100 if quick else 400
    found = []
    for looks in LOOKS:
        for name, rule in (("new", new_rule), ("old", old_rule)):
            share = false_alarms(looks, rule, trainings)
            found.append(Row("monitor", f"false alarms at {looks} observations, {name} rule", "", share, share, share, trainings, ""))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=400)
    parser.add_argument("--out", type=Path, default=None, help="write the result to this file, too")
    options = parser.parse_args()
    result = {
        "false_alarms": {
            name: {looks: false_alarms(looks, rule, options.trainings) for looks in LOOKS}
            for name, rule in (("new", new_rule), ("old", old_rule))
        },
        "noticed_and_observations_after_the_peak": {
            f"{looks} observations, {fall} a look": power(looks, fall, new_rule, max(1, options.trainings // 5))
            for looks in LOOKS
            for fall in FALLS
        },
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
