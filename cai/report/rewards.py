"""What the report shows of the reward models: accuracy whole and by bucket, calibration, what their members dispute, and their training."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cai.report.collect import Curve, Dispute, ReportData
from cai.report.formatting import number, percent, plural, signed
from cai.report.plots import PlotRow, Series, histogram, line_plot, rows_plot
from cai.stats import wilson
from cai.train.reward.metrics import ENSEMBLE, HeldOutMetrics, RewardMeasure

BUCKETS = {
    "source": ("Right by who labelled", "A reward model that is right about its AI judge's labels only has learned its judge."),
    "kind": ("Right by kind of prompt", ""),
    "length": (
        "Right by length of the better response",
        "A model that follows length is right at one end and wrong at the other; `reward.balance_length` weighs against that.",
    ),
}
CURVES = (("loss", "Loss"), ("accuracy", "Training accuracy"), ("margin", "Reward margin"))
TONES = ("policy", "sft", "human", "base")
DISPUTE_BINS = 20
FEWEST_DISPUTES = 9
"""Held-out pairs from which accuracy is shown by disagreement, in thirds."""


@dataclass(frozen=True)
class MeasureRow:
    """One model on one group of held-out pairs, in words."""

    model: str
    group: str
    accuracy: str
    n: int
    calibration_error: str
    overconfidence: str


def reward_plots(data: ReportData) -> list[Markup]:
    """Draw the reward models' held-out accuracy, calibration, disagreement and training."""
    whole = [m for m in data.reward_measures if m.by == "all"]
    plots = []
    if whole:
        rows = [_row(m.model, m.metrics, "policy" if m.model in (ENSEMBLE, whole[0].model) else "base") for m in whole]
        caption = "Held-out preferences where the side that the label favours scores higher, with 95% intervals."
        plots.append(
            rows_plot("Reward model right on held-out labels", rows, reference=0.5, reference_label="a coin", bars=False, caption=caption)
        )
        plots += [_bucket_plot(data.reward_measures, whole[0].model, by) for by in BUCKETS]
        plots.append(_reliability_plot(whole[0]))
    plots += dispute_plots(data.disputes)
    return [p for p in [*plots, *reward_curves(data.curves)] if p]


def measure_rows(data: ReportData) -> list[MeasureRow]:
    """Return every measure of every reward model in words."""
    return [
        MeasureRow(
            m.model,
            m.group or "all held-out pairs",
            f"{percent(m.metrics.accuracy)} [{percent(m.metrics.low)}, {percent(m.metrics.high)}]",
            m.metrics.n,
            number(m.metrics.calibration_error),
            f"{signed(m.metrics.overconfidence)} [{signed(m.metrics.overconfidence_low)}, {signed(m.metrics.overconfidence_high)}]",
        )
        for m in data.reward_measures
    ]


def dispute_plots(disputes: Sequence[Dispute]) -> list[Markup]:
    """Draw how far the members of an ensemble disagree, and how much less right they are where they do; nothing for one member."""
    if not any(d.disagreement > 0 for d in disputes):
        return []
    plots = []
    judged = sorted((d for d in disputes if d.right is not None), key=lambda d: d.disagreement)
    if len(judged) >= FEWEST_DISPUTES:
        third = len(judged) // 3
        parts = {"least disputed third": judged[:third], "middle": judged[third:-third], "most disputed third": judged[-third:]}
        rows = []
        for name, part in parts.items():
            right = sum(bool(d.right) for d in part)
            rows.append(PlotRow(name, right / len(part), *wilson(right, len(part)), f"n = {len(part)}"))
        caption = "If disagreement is worth anything, the ensemble is right less often where its members disagree."
        title = "Ensemble right, by its members' disagreement"
        plots.append(rows_plot(title, rows, reference=0.5, reference_label="a coin", bars=False, caption=caption))
    most = max(d.disagreement for d in disputes)
    counts = [0] * DISPUTE_BINS
    for d in disputes:
        counts[min(DISPUTE_BINS - 1, int(d.disagreement / most * DISPUTE_BINS))] += 1
    caption = f"Over {plural(len(disputes), 'preference')}, training pairs included. Those at the right are worth a person's label."
    label = "standard deviation of the members' score differences"
    return [*plots, histogram("Disagreement about pairs", counts, 0, most, label, caption)]


def reward_curves(curves: Sequence[Curve]) -> list[Markup]:
    """Draw the training of every member in one plot for each number."""
    plots = []
    for metric, words in CURVES:
        found = [c for c in curves if c.stage == "reward" and c.metric == metric]
        series = [Series(c.member or "reward", c.points, TONES[i % len(TONES)]) for i, c in enumerate(found)]
        if series:
            plots.append(line_plot(f"{words}, reward", series, "training step"))
    return plots


def _row(label: str, metrics: HeldOutMetrics, tone: str = "policy") -> PlotRow:
    return PlotRow(label, metrics.accuracy, metrics.low, metrics.high, f"n = {metrics.n}", tone)


def _bucket_plot(measures: Sequence[RewardMeasure], model: str, by: str) -> Markup:
    """Nothing where there is one group, which is all pairs."""
    found = [m for m in measures if m.model == model and m.by == by]
    title, caption = BUCKETS[by]
    if len(found) < 2:
        return Markup("")
    rows = [_row(m.group, m.metrics) for m in found]
    return rows_plot(title, rows, reference=0.5, reference_label="a coin", bars=False, caption=caption)


def _reliability_plot(measure: RewardMeasure) -> Markup:
    bins, metrics = measure.metrics.reliability, measure.metrics
    points = [(b.predicted, b.observed) for b in bins]
    ends = (points[0][0], points[-1][0])
    series = [Series(measure.model, points, "policy"), Series("perfectly calibrated", [(x, x) for x in ends], "base")]
    low, high = signed(metrics.overconfidence_low), signed(metrics.overconfidence_high)
    caption = (
        f"How often it was right where it was this sure, over {plural(metrics.n, 'held-out preference')}. Calibration error "
        f"{number(metrics.calibration_error)}; surer than right by {signed(metrics.overconfidence)} [{low}, {high}]."
    )
    return line_plot("Reliability", series, "predicted probability", caption)
