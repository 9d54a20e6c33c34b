"""Over-optimisation, drawn: proxy and gold reward over the KL to the reference, and what the responses are like along the way."""

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from cai.records import MonitorPoint
from cai.report.formatting import number, signed
from cai.report.plots import Series, line_plot
from cai.train.rl.monitor import best_step, collapse_words, mean_interval

_TONES = (("policy", "human"), ("sft", "base"))
"""Colours of proxy and gold, by arm."""


def frontier_plot(arms: Mapping[str, Sequence[MonitorPoint]]) -> Markup:
    """Draw proxy and gold reward over √KL, as changes from the first look, with bands.

    The two are on scales of their own, so each is counted in its own standard deviations over prompts at the first look. A band is the
    95 % interval of the mean change per prompt. √KL is the axis on which both are smooth (Gao et al. 2022, arXiv 2210.10760).

    Args:
        arms: observations in order, by what they are of; at most two arms. One without a name needs none in the legend.
    """
    series = []
    for (name, points), tones in zip(arms.items(), _TONES, strict=False):
        for label, tone, scores in (
            ("proxy", tones[0], [p.proxy_scores for p in points]),
            ("gold", tones[1], [p.gold_scores for p in points]),
        ):
            series.append(_changes(f"{label}, {name}" if name else label, tone, points, scores))
    caption = (
        "Change from the first look, in standard deviations over prompts. Bands: 95 % intervals of the mean change per prompt. Where the "
        "proxy rises and gold falls, the policy is being over-optimised; where both rise and the answers come apart, both are fooled."
    )
    return line_plot("Reward over distance from the reference", series, "√KL, in √nats per response", caption)


def along_the_way(arms: Mapping[str, Sequence[MonitorPoint]]) -> list[Markup]:
    """Draw length, refusals, repetition, KL and, for ensembles, disagreement and variety over training steps."""
    shown: list[tuple[str, Callable[[MonitorPoint], float | None], str]] = [
        ("KL to the reference", lambda p: p.kl, "Nats per response."),
        ("Words per response", lambda p: p.words, "Neither direction is better: it shows whether reward is bought with length."),
        ("Refusals", lambda p: p.refusal_rate, "Share of responses that open by refusing, by rule."),
        ("Repetition", lambda p: p.repetition, "Share of four-word runs that were there before. Lower is better."),
        ("Variety", lambda p: p.distinct, "Share of all responses' two-word runs that are different. Low: one answer for all."),
        ("Disagreement of the reward models", lambda p: p.disagreement, "Mean standard deviation over members. It rises where they guess."),
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
    """Say in a sentence or two what was seen, and which step is best by gold."""
    first, last = points[0], points[-1]
    best = next(p for p in points if p.step == best_step(points))
    said = next((p for p in points if p.verdict != "go"), None)
    torn = next((p for p in points if p.collapse), None)
    what = "ended the training" if said and said.verdict == "stop" else "warned"
    if said and said.collapse:
        verdict = f"Collapsed: at step {said.step} the rule {what}, because {collapse_words(first, said)}."
    elif said:
        verdict = f"Over-optimised: at step {said.step} the rule {what}, gold having changed by {signed(said.gold_change)} from its best."
    elif torn:
        verdict = f"The rule did not speak, but at step {torn.step} {collapse_words(first, torn)}."
    else:
        verdict = "The rule saw no over-optimisation."
    return (
        f"{verdict} From step {first.step} to {last.step} the proxy went from {number(first.proxy)} to {number(last.proxy)}, gold from "
        f"{number(first.gold)} to {number(last.gold)}, at {number(last.kl)} nats from the reference (n = {last.n} held-out prompts). "
        f"Best by gold{' where answers are whole' if torn else ''}: step {best.step}, at {number(best.gold)}."
    )


def _changes(label: str, tone: str, points: Sequence[MonitorPoint], scores: Sequence[Sequence[float]]) -> Series:
    """Return a reward's mean change from the first look, in standard deviations over prompts there, by √KL."""
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
