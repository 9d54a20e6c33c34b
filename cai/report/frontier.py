"""Over-optimization plots: proxy and gold reward over the KL to the reference model, and properties of the responses by step."""

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from cai.records import MonitorPoint
from cai.report.formatting import number, signed
from cai.report.plots import Series, line_plot
from cai.train.monitor import best_step, collapse_words, mean_interval

_TONES = (("policy", "human"), ("sft", "base"))
"""Colours of proxy and gold reward, by arm."""


def frontier_plot(arms: Mapping[str, Sequence[MonitorPoint]]) -> Markup:
    """Plot the change of proxy and gold reward since the first observation over √KL, with 95 % intervals.

    Proxy and gold have different scales, so each is divided by its standard deviation over prompts at the first observation. A band is the
    95 % interval of the mean change per prompt. The axis is √KL as in Gao et al. 2022 (arXiv 2210.10760).

    Args:
        arms: observations in order, by name of the policy; at most two. An empty name is not shown in the legend.
    """
    series = []
    for (name, points), tones in zip(arms.items(), _TONES, strict=False):
        for label, tone, scores in (
            ("proxy", tones[0], [p.proxy_scores for p in points]),
            ("gold", tones[1], [p.gold_scores for p in points]),
        ):
            series.append(_changes(f"{label}, {name}" if name else label, tone, points, scores))
    caption = (
        "Change since the first observation, in standard deviations over prompts. Bands: 95 % intervals of the mean change per prompt. If "
        "the proxy rises and gold falls, the policy is over-optimized. If both rise and the policy collapses (empty, identical or looping "
        "responses), both rewards are wrong."
    )
    return line_plot("Reward over distance from the reference", series, "√KL, in √nats per response", caption)


def along_the_way(arms: Mapping[str, Sequence[MonitorPoint]]) -> list[Markup]:
    """Plot KL, length, refusals, repetition, diversity and, for ensembles, disagreement over training steps."""
    shown: list[tuple[str, Callable[[MonitorPoint], float | None], str]] = [
        ("KL to the reference", lambda p: p.kl, "Nats per response."),
        ("Words per response", lambda p: p.words, "Neither direction is better: it shows whether reward comes from length."),
        ("Refusals", lambda p: p.refusal_rate, "Share of responses that open with a refusal, by rule."),
        ("Repetition", lambda p: p.repetition, "Share of repeated 4-grams within a response. Lower is better."),
        ("Diversity", lambda p: p.distinct, "Distinct-2 over all responses. Low: the same answer to every prompt."),
        ("Disagreement of the reward models", lambda p: p.disagreement, "Mean standard deviation over members. High: they are uncertain."),
    ]
    plots = []
    for title, value, caption in shown:
        series = [
            Series(name or "policy", [(p.step, v) for p in points if (v := value(p)) is not None], tones[0])
            for (name, points), tones in zip(arms.items(), _TONES, strict=False)
        ]
        if any(s.points for s in series):
            plots.append(line_plot(title, series, "step", caption))
    return plots


def frontier_words(points: Sequence[MonitorPoint]) -> str:
    """Summarise the monitor's observations, and name the best step by gold reward."""
    first, last = points[0], points[-1]
    best = next(p for p in points if p.step == best_step(points))
    alarm = next((p for p in points if p.verdict != "go"), None)
    collapsed = next((p for p in points if p.collapse), None)
    action = "stopped training" if alarm and alarm.verdict == "stop" else "warned"
    if alarm and alarm.collapse:
        verdict = f"Collapsed: at step {alarm.step} the monitor {action}, because {collapse_words(first, alarm)}."
    elif alarm:
        since = "from its best" if alarm.compared_with is None else f"since step {alarm.compared_with}"
        verdict = f"Over-optimized: at step {alarm.step} the monitor {action}: gold changed by {signed(alarm.gold_change)} {since}."
    elif collapsed:
        verdict = f"The monitor did not warn, but at step {collapsed.step} {collapse_words(first, collapsed)}."
    else:
        verdict = "The monitor found no over-optimization."
    return (
        f"{verdict} From step {first.step} to {last.step} the proxy went from {number(first.proxy)} to {number(last.proxy)} and gold from "
        f"{number(first.gold)} to {number(last.gold)}, at a KL of {number(last.kl)} nats to the reference (n = {last.n} held-out prompts). "
        f"Best by gold{' without collapse' if collapsed else ''}: step {best.step}, at {number(best.gold)}."
    )


def _changes(label: str, tone: str, points: Sequence[MonitorPoint], scores: Sequence[Sequence[float]]) -> Series:
    """Return the mean change of a reward since the first observation by √KL, in standard deviations over prompts at the first one."""
    start = scores[0]
    mean = sum(start) / len(start)
    spread = math.sqrt(sum((x - mean) ** 2 for x in start) / len(start)) or 1.0
    line, band = [], []
    for point, now in sorted(zip(points, scores, strict=True), key=lambda pair: pair[0].kl):
        x = math.sqrt(max(0.0, point.kl))
        change, low, high = (v / spread for v in mean_interval([b - a for a, b in zip(start, now, strict=True)]))
        line.append((x, change))
        if len(now) > 1:
            band.append((x, low, high))
    return Series(label, line, tone, band)
