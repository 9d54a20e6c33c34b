"""Over-optimization monitor: observes proxy and gold reward, KL, length, refusals and repetition on held-out prompts during training.

A policy is trained on a *proxy* reward. A *gold* reward model, trained on other data and never used for the policy's training, stands in
for human preferences. The proxy keeps rising, while gold rises, levels off and falls; both are smooth functions of √KL (Gao, Schulman &
Hilton 2022, arXiv 2210.10760, eq. 1 and fig. 1). Each observation is one line of `frontier.jsonl`, and decisions depend only on this file,
so a resumed training decides the same as an uninterrupted one.

The rule. The last `patience` observations together are compared with every earlier stretch of `patience` observations, prompt by prompt.
The policy is over-optimized if, since one of them, the proxy has risen and gold has fallen by at least `min_drop` half-widths of the
confidence interval of that change. It is collapsed, whatever the rewards, if responses were empty, identical across prompts, or looping in
the last `patience` observations, compared with the first one. A collapsed observation is never the best, and no stretch that contains one
is compared with. Then the verdict is `warn` or `stop`, as the recipe says.

The interval holds over all comparisons of a training at once: each is a paired t interval at 1 − 5 % / number of comparisons (Bonferroni).
A training whose gold reward is constant therefore ends with a false alarm in at most 5 % of cases, however often it is observed. Why the
best observation is no fair reference: docs/decisions/0010.

Departures from the paper:

1. Gold is another small model of human labels, not the source of the labels, so it can be over-optimized too. The checks for collapse
   exist because of this.
2. Observations are few and noisy, so that a fall must be significant before it counts.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from cai.core.jsonl import append_record, read_existing, write_records
from cai.core.text.refusals import can_tell, is_refusal
from cai.core.text.repetition import distinct_fraction, repeated_fraction
from cai.core.text.words import word_count
from cai.errors import TrainingError
from cai.recipe import MonitorConfig
from cai.records import Message, MonitorPoint, Prompt
from cai.train.checkpoints import checkpoint_folder

Verdict = Literal["go", "warn", "stop"]
Collapse = Literal["", "vanish", "alike", "loop"]
"""Kind of collapse: responses are empty (`vanish`), identical across prompts (`alike`) or looping (`loop`); "" if none."""
Items = Sequence[tuple[Sequence[Message], str]]
"""Conversations up to the response, with their responses."""
FALSE_ALARMS = 0.05
"""Largest probability of a false alarm over a whole training."""
FRONTIER = "frontier.jsonl"
"""File of the observations, in the policy's folder."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Proxy rewards of responses."""

    values: Sequence[float]
    """Rewards, one per response."""
    disagreement: Sequence[float] = ()
    """Standard deviations over the members of an ensemble, one per response; empty for a single reward model."""


@dataclass
class Monitor:
    """Observes a policy repeatedly on the same held-out prompts.

    A trainer calls `resume` once before its first step, then `observe` at step 0 and at every step for which `due` is true.
    """

    prompts: Sequence[Prompt]
    config: MonitorConfig
    proxy: Callable[[Items], Scores]
    """The reward that the policy is trained on."""
    gold: Callable[[Items], Sequence[float]]
    """The gold reward, which the policy is not trained on."""
    path: Path
    """File of the observations."""
    on_observation: Callable[[MonitorPoint], None] = lambda point: None
    """Called with each observation after it is written."""
    points: list[MonitorPoint] = field(default_factory=list)
    planned: int = 1
    """Number of observations that the interval has to hold over; set by `due`."""

    def due(self, step: int, last: int) -> bool:
        """Whether to observe the policy after `step` of `last` steps: at 0, every `every_steps`, and at the end."""
        self.planned = 1 + math.ceil(last / self.config.every_steps)
        return self.config.action != "off" and (step % self.config.every_steps == 0 or step == last)

    def resume(self, step: int) -> None:
        """Load the observations up to `step`, and delete later ones, which will be made again. Call it before training.

        Args:
            step: step of the checkpoint to resume from; -1 at the start of a training deletes all observations.
        """
        stored = list(read_existing(self.path, MonitorPoint, torn_tail="drop"))
        self.points = [p for p in stored if p.step <= step]
        if self.path.exists():
            write_records(self.path, self.points)

    def observe(self, step: int, kl: float, responses: Sequence[str]) -> Verdict:
        """Score the policy's responses, write the observation, and return the verdict.

        Args:
            step: optimizer steps so far; above the last observed step.
            kl: KL to the reference in nats per sequence, at least 0 up to sampling noise.
            responses: the policy's responses, one to each of `prompts`, in order, sampled at temperature 1.
        """
        if len(responses) != len(self.prompts) or not responses:
            raise ValueError(f"{len(responses)} responses to {len(self.prompts)} prompts")
        if self.points and step <= self.points[-1].step:
            raise ValueError(f"step {step} is not after the last observed step {self.points[-1].step}; call resume first")
        items = [(p.messages, text) for p, text in zip(self.prompts, responses, strict=True)]
        proxy, gold = self.proxy(items), tuple(map(float, self.gold(items)))
        values = tuple(map(float, proxy.values))
        if not all(map(math.isfinite, (kl, *values, *gold))):
            raise TrainingError(f"step {step}: KL, proxy or gold reward is not finite, so the policy or a reward model has diverged")
        mean, low, high = mean_interval(gold)
        point = MonitorPoint(
            step=step,
            kl=float(kl),
            proxy=fmean(values),
            proxy_std=stdev(values) if len(values) > 1 else 0.0,
            disagreement=fmean(proxy.disagreement) if proxy.disagreement else None,
            gold=mean,
            gold_low=low,
            gold_high=high,
            gold_change=0.0,
            gold_change_low=0.0,
            gold_change_high=0.0,
            proxy_change=0.0,
            words=fmean(word_count(text) for text in responses),
            refusal_rate=refusal_rate(responses),
            repetition=fmean(map(repeated_fraction, responses)),
            n=len(responses),
            proxy_scores=values,
            gold_scores=gold,
            distinct=distinct_fraction(responses),
        )
        point = replace(point, collapse=collapse(point, self.points[0], self.config) if self.points else "")
        point = with_change([*self.points, point], self.config.patience, self.planned)
        point = replace(point, verdict=verdict([*self.points, point], self.config))
        append_record(self.path, point)
        self.points.append(point)
        self.on_observation(point)
        return point.verdict

    @property
    def best_step(self) -> int | None:
        """The best observed step so far, by gold reward."""
        return best_step(self.points)


@dataclass(frozen=True, slots=True)
class MonitorSpec:
    """The monitor of a training that doesn't sample by itself, such as DPO."""

    load: Callable[[], Monitor]
    """Loads the monitor. Called after all checks, because it loads models."""
    identity: Any
    """Identifies its reward models and prompts in the training's fingerprint."""
    warn: Callable[[str], None] = lambda text: None
    """Called with a warning for the user."""


def best_step(points: Sequence[MonitorPoint]) -> int | None:
    """Return the step with the highest mean gold reward (the earliest on ties) among those without collapse; None without observations."""
    return max((p for p in points if not p.collapse), key=lambda p: (p.gold, -p.step)).step if points else None


def collapse(point: MonitorPoint, first: MonitorPoint, config: MonitorConfig) -> Collapse:
    """Return the kind of collapse since the first observation, by the recipe's thresholds; "" if there is none."""
    if point.words < config.min_words * first.words:
        return "vanish"
    if point.repetition > config.max_repetition >= first.repetition:
        return "loop"
    return "alike" if point.distinct < config.min_distinct * first.distinct else ""


def verdict(points: Sequence[MonitorPoint], config: MonitorConfig) -> Verdict:
    """Return the verdict of the rule after the last of the observations, which are in order."""
    recent = points[-config.patience :]
    if config.action == "off" or len(recent) < config.patience:
        return "go"
    return config.action if all(p.collapse for p in recent) or over_optimized(recent[-1], config.min_drop) else "go"


def with_change(points: Sequence[MonitorPoint], patience: int, planned: int) -> MonitorPoint:
    """Return the last observation with its changes of gold and proxy, against the earlier stretch from which gold fell most significantly.

    Args:
        points: the observations in order; the changes of the last one are not used.
        patience: observations in a stretch, at least 1. The last stretch and an earlier one don't overlap.
        planned: number of observations of the whole training; a larger number of `points` counts instead.

    Returns:
        The last observation; unchanged if there is no earlier stretch without a collapse. With one prompt the interval is ±1e308.
    """
    point, comparisons = points[-1], _comparisons(max(planned, len(points)), patience)
    now = _stretch(points[-patience:])
    found: list[tuple[float, MonitorPoint]] = []
    for end in range(patience, len(points) - patience + 1):
        before = points[end - patience : end]
        if any(p.collapse for p in before):
            continue
        gold, proxy = _stretch(before)
        changes = [b - a for a, b in zip(gold, now[0], strict=True)]
        mean, low, high = mean_interval(changes, FALSE_ALARMS / comparisons)
        significance = mean / (high - low) if high > low else math.copysign(math.inf, mean) if mean else 0.0
        changed = replace(
            point, gold_change=mean, gold_change_low=low, gold_change_high=high, proxy_change=now[1] - proxy, compared_with=before[-1].step
        )
        found.append((significance, changed))
    return min(found, key=lambda f: f[0])[1] if found else point


def _stretch(points: Sequence[MonitorPoint]) -> tuple[list[float], float]:
    """Return the gold reward of each prompt and the proxy, averaged over some observations."""
    return [fmean(scores) for scores in zip(*(p.gold_scores for p in points), strict=True)], fmean(p.proxy for p in points)


def _comparisons(observations: int, patience: int) -> int:
    """Return the number of pairs of stretches that don't overlap, at least 1."""
    last = observations - 2 * patience + 1
    return max(1, last * (last + 1) // 2)


def over_optimized(point: MonitorPoint, min_drop: float) -> bool:
    """Whether, since the earlier observations, the proxy rose and gold fell by `min_drop` half-widths of its confidence interval."""
    half_width = (point.gold_change_high - point.gold_change_low) / 2
    return point.proxy_change > 0 and point.gold_change < 0 and -point.gold_change >= min_drop * half_width


def mean_interval(values: Sequence[float], error: float = 0.025) -> tuple[float, float, float]:
    """Return a mean and its confidence interval by Student's t, 95 % by default. The interval of a single value is ±1e308.

    Args:
        values: one per prompt.
        error: probability that the mean is beyond one end, in (0, ½).

    >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])  # standard error 1/√3, t at two degrees of freedom 4.303
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    from scipy.stats import t

    mean = fmean(values)
    if len(values) < 2:
        return mean, -1e308, 1e308
    half = float(t.isf(error, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def alarm(monitor: Monitor, verdict: Verdict) -> str:
    """Return the warning for the user after a verdict other than `go`."""
    ends = "training stops here" if verdict == "stop" else "training goes on"
    last = monitor.points[-1]
    if last.collapse:
        return f"step {last.step}: the policy has collapsed: {collapse_words(monitor.points[0], last)}. Its rewards are meaningless; {ends}"
    return (
        f"step {last.step}: the policy is over-optimized: gold reward has fallen since step {last.compared_with} while the reward that the "
        f"policy is trained on has risen; {ends}"
    )


def refusal_rate(responses: Sequence[str]) -> float | None:
    """Return the fraction of refusals among the responses whose language the rules know; None if there is none."""
    told = [is_refusal(text) for text in responses if can_tell(text)]
    return fmean(told) if told else None


def collapse_words(first: MonitorPoint, point: MonitorPoint) -> str:
    """Describe the collapse of an observation, with the measurement at the first one."""
    if point.collapse == "vanish":
        return f"responses are almost empty: {point.words:.1f} words on average, {first.words:.1f} at the start"
    if point.collapse == "alike":
        return f"responses are almost identical: {point.distinct:.0%} of their word pairs are distinct, {first.distinct:.0%} at the start"
    return f"responses loop: {point.repetition:.0%} of their four-word runs are repeats, {first.repetition:.0%} at the start"


def best_folder(out: Path, step: int) -> Path:
    """Return the folder in which an observed step's weights are kept until the training in `out` is finished."""
    return checkpoint_folder(out) / f"best-{step}"


def keep_best(monitor: Monitor, out: Path, save: Callable[[Path], None]) -> None:
    """Save the weights of the last observed step if it is the best so far. Earlier best weights also stay until the end."""
    step = monitor.points[-1].step
    if monitor.best_step == step:
        folder = best_folder(out, step)
        shutil.rmtree(folder, ignore_errors=True)
        save(folder)


def restore_best(monitor: Monitor, out: Path) -> int | None:
    """Replace the final weights by those of the best observed step, before the training is marked as finished.

    Returns:
        The step, or None if nothing was observed or the recipe selects the last weights.
    """
    step = monitor.best_step
    if step is None or monitor.config.select == "last":
        return None
    restore_weights(best_folder(out, step), out)
    return step


def restore_weights(source: Path, out: Path) -> None:
    """Replace a training's final weights by those of an adapter's folder, atomically."""
    temporary = out / ".adapter_model.safetensors.best"
    shutil.copyfile(source / "adapter_model.safetensors", temporary)
    temporary.replace(out / "adapter_model.safetensors")
