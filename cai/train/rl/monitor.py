"""Over-optimisation, watched while a policy trains: proxy and gold reward, KL, length, refusals and repetition on held-out prompts.

A policy is trained on a *proxy* reward. A *gold* reward model, of another lineage, which the policy never trains on, stands in for what
people want. As the policy leaves its reference the proxy goes on rising, while gold rises, stops and falls: both are smooth functions of
√KL (Gao, Schulman & Hilton 2022, arXiv 2210.10760, eq. 1 and fig. 1). Each observation is one line in `frontier.jsonl`, which holds all
that later decisions rest on, so a training that was killed and goes on decides what it would have decided.

The rule. An observation is compared with the best one so far, by gold, prompt by prompt. It counts as over-optimised where the proxy has
risen and gold has fallen by at least `min_drop` half-widths of the 95 % interval of its own change. It counts, too, where answers came
apart since the first look, whatever the rewards say: they vanish, are alike from prompt to prompt, or loop. Such an observation is never
the best. After `patience` observations in a row that count the verdict is `warn` or `stop`, as the recipe says.

Departures from the paper: gold is one more small model on human labels, not the labeller itself, so it can be fooled too, which is what
the signs in the answers are for (a gold model that had learned that shorter is better gave its highest reward to a policy that said
nothing); the interval is of one look, and looking again and again finds chance falls more often than 2.5 %: hence `patience`.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from cai.core.jsonl import append_record, read_records, write_records
from cai.core.text.refusals import is_refusal
from cai.core.text.repetition import distinct_fraction, repeated_fraction
from cai.errors import TrainingError
from cai.recipe import MonitorConfig
from cai.records import Message, MonitorPoint, Prompt
from cai.train.checkpoints import checkpoint_folder

Verdict = Literal["go", "warn", "stop"]
Collapse = Literal["", "vanish", "alike", "loop"]
Items = Sequence[tuple[Sequence[Message], str]]
"""Conversations up to the response, and responses."""
FRONTIER = "frontier.jsonl"
"""The observations, in the policy's folder."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a proxy says of some responses."""

    values: Sequence[float]
    """One reward each: what the policy is trained on."""
    disagreement: Sequence[float] = ()
    """Standard deviation over the members of an ensemble, one each; empty for a single reward."""


@dataclass
class Monitor:
    """Observes a policy on the same held-out prompts again and again.

    A trainer calls `resume` once before its first step, then `observe` at step 0 and at every step for which `due` holds.
    """

    prompts: Sequence[Prompt]
    config: MonitorConfig
    proxy: Callable[[Items], Scores]
    """The reward that the policy is trained on."""
    gold: Callable[[Items], Sequence[float]]
    """A reward that it is not trained on."""
    path: Path
    """Where observations go."""
    on_look: Callable[[MonitorPoint], None] = lambda point: None
    """Told of each observation, once it is written down."""
    points: list[MonitorPoint] = field(default_factory=list)

    def due(self, step: int, last: int) -> bool:
        """Whether the policy is to be looked at after `step` of `last` steps: at 0, every `every_steps`, and at the end."""
        return self.config.action != "off" and (step % self.config.every_steps == 0 or step == last)

    def resume(self, step: int) -> None:
        """Take up the observations up to `step` and forget later ones, which the training will make again. Call it before training.

        Args:
            step: of the checkpoint that training goes on from; a training from its start gives -1, and loses every observation.
        """
        found = list(read_records(self.path, MonitorPoint, torn_tail="drop")) if self.path.exists() else []
        self.points = [p for p in found if p.step <= step]
        if self.path.exists():
            write_records(self.path, self.points)

    def observe(self, step: int, kl: float, responses: Sequence[str]) -> Verdict:
        """Score the policy's responses, write the observation down, and say whether training should go on.

        Args:
            step: optimizer steps so far; above the last one observed.
            kl: nats per sequence from the reference, at least 0 up to sampling noise.
            responses: the policy's, one to each of `prompts`, in order, drawn at temperature 1.

        Raises:
            TrainingError: a score or the KL is not finite.
        """
        if len(responses) != len(self.prompts) or not responses:
            raise ValueError(f"{len(responses)} responses to {len(self.prompts)} prompts")
        if self.points and step <= self.points[-1].step:
            raise ValueError(f"step {step} comes after {self.points[-1].step}, which is observed; call resume first")
        items = [(p.messages, text) for p, text in zip(self.prompts, responses, strict=True)]
        proxy, gold = self.proxy(items), tuple(map(float, self.gold(items)))
        values = tuple(map(float, proxy.values))
        if not all(map(math.isfinite, (kl, *values, *gold))):
            raise TrainingError(f"step {step}: KL, proxy or gold reward is not finite, so the policy or a reward model has come apart")
        best = next((p for p in self.points if p.step == self.best_step), None)
        change = (0.0, 0.0, 0.0) if best is None else mean_interval([b - a for a, b in zip(best.gold_scores, gold, strict=True)])
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
            gold_change=change[0],
            gold_change_low=change[1],
            gold_change_high=change[2],
            proxy_change=0.0 if best is None else fmean(values) - best.proxy,
            words=fmean(len(text.split()) for text in responses),
            refusal_rate=fmean(map(is_refusal, responses)),
            repetition=fmean(map(repeated_fraction, responses)),
            n=len(responses),
            proxy_scores=values,
            gold_scores=gold,
            distinct=distinct_fraction(responses),
        )
        point = replace(point, collapse=collapse(point, self.points[0], self.config) if self.points else "")
        point = replace(point, verdict=verdict([*self.points, point], self.config))
        append_record(self.path, point)
        self.points.append(point)
        self.on_look(point)
        return point.verdict

    @property
    def best_step(self) -> int | None:
        """The best observed step so far, by `best_step`."""
        return best_step(self.points)


@dataclass(frozen=True, slots=True)
class MonitorSpec:
    """What a training that samples nothing itself needs in order to be watched."""

    load: Callable[[], Monitor]
    """Gives the watch; called once all else is known to be right, because it loads models."""
    by: Any
    """What identifies its reward models and prompts, for the training's fingerprint."""
    max_tokens: int
    """Longest response that is sampled for a look."""
    warn: Callable[[str], None] = lambda text: None
    """Told what a person should know at once."""


def best_step(points: Sequence[MonitorPoint]) -> int | None:
    """Return the step whose mean gold reward is highest, the earliest of equals, where answers are whole; None where there is none."""
    return max((p for p in points if not p.collapse), key=lambda p: (p.gold, -p.step)).step if points else None


def collapse(point: MonitorPoint, first: MonitorPoint, config: MonitorConfig) -> Collapse:
    """Return how answers came apart since the first look: the first sign of these that the recipe's thresholds give, or nothing."""
    if point.words < config.min_words * first.words:
        return "vanish"
    if point.repetition > config.max_repetition >= first.repetition:
        return "loop"
    return "alike" if point.distinct < config.min_distinct * first.distinct else ""


def verdict(points: Sequence[MonitorPoint], config: MonitorConfig) -> Verdict:
    """Return what the rule says after the last of some observations, in order."""
    recent = points[-config.patience :]
    if config.action == "off" or len(recent) < config.patience:
        return "go"
    return config.action if all(p.collapse or over_optimised(p, config.min_drop) for p in recent) else "go"


def over_optimised(point: MonitorPoint, min_drop: float) -> bool:
    """Whether, against the best observation before it, the proxy rose and gold fell by `min_drop` half-widths of its interval."""
    half_width = (point.gold_change_high - point.gold_change_low) / 2
    return point.proxy_change > 0 and point.gold_change < 0 and -point.gold_change >= min_drop * half_width


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a mean and its 95 % interval by Student's t. One value has no width to tell, and gets the widest float.

    >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])  # standard error 1/√3, t at two degrees of freedom 4.303
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    from scipy.stats import t

    mean = fmean(values)
    if len(values) < 2:
        return mean, -1e308, 1e308
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def alarm(watch: Monitor, verdict: Verdict) -> str:
    """Return what a person is told when a verdict is not `go`."""
    ends = "training stops here" if verdict == "stop" else "training goes on"
    last = watch.points[-1]
    if last.collapse:
        return f"step {last.step}: {collapse_words(watch.points[0], last)}. No reward is to be believed of that; {ends}"
    return (
        f"step {last.step}: gold reward has fallen from its best (step {watch.best_step}) while the reward that the policy is "
        f"trained on rises: it is over-optimised; {ends}"
    )


def collapse_words(first: MonitorPoint, point: MonitorPoint) -> str:
    """Say how the answers of a look came apart."""
    if point.collapse == "vanish":
        return f"answers vanish: {point.words:.1f} words on average, and {first.words:.1f} at first"
    if point.collapse == "alike":
        return f"answers are alike: {point.distinct:.0%} of all their two-word runs differ, and {first.distinct:.0%} did at first"
    return f"answers loop: {point.repetition:.0%} of their four-word runs are repeats, and {first.repetition:.0%} were at first"


def best_folder(out: Path, step: int) -> Path:
    """Return where the weights of an observed step are kept until the training of `out` is finished."""
    return checkpoint_folder(out) / f"best-{step}"


def keep_best(watch: Monitor, out: Path, save: Callable[[Path], None]) -> None:
    """Keep the weights of the step that was just observed if it is the best so far. Adapters are small; all leaders stay until the end.

    Args:
        watch: after `observe`.
        out: the training's folder.
        save: writes the adapter into a folder.
    """
    step = watch.points[-1].step
    if watch.best_step == step:
        folder = best_folder(out, step)
        shutil.rmtree(folder, ignore_errors=True)
        save(folder)


def restore_best(watch: Monitor, out: Path) -> int | None:
    """Put the weights of the best observed step in the place of the last ones, before the training is marked as finished.

    Returns:
        The step, or None where nothing was observed or the recipe asks for the last.
    """
    step = watch.best_step
    if step is None or watch.config.select == "last":
        return None
    source = best_folder(out, step) / "adapter_model.safetensors"
    temporary = out / ".adapter_model.safetensors.best"
    shutil.copyfile(source, temporary)
    temporary.replace(out / "adapter_model.safetensors")
    return step
