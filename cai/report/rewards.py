"""Report section of the reward models: accuracy in total and by group, calibration, disagreement of the members, training curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cai.report.collect import Curve, Dispute, ReportData
from cai.report.formatting import number, percent, plural, signed
from cai.report.plots import PlotRow, Series, histogram, line_plot, rows_plot
from cai.report.sections import FEW
from cai.stats import clustered_share
from cai.train.reward.metrics import ENSEMBLE, HeldOutMetrics, RewardMeasure

BUCKETS = {
    "source": ("Accuracy by label source", "A reward model that is accurate only on its AI judge's labels has learned its judge."),
    "kind": ("Accuracy by kind of prompt", ""),
    "length": (
        "Accuracy by length of the better response",
        "A model that rewards length is accurate at one end and inaccurate at the other; `reward.balance_length` reduces this.",
    ),
}
CURVES = (("loss", "Loss"), ("accuracy", "Training accuracy"), ("margin", "Reward margin"))
TONES = ("policy", "sft", "human", "base")
DISPUTE_BINS = 20
FEWEST_DISPUTES = 9
"""Number of held-out pairs from which accuracy is shown by thirds of disagreement."""


@dataclass(frozen=True)
class MeasureRow:
    """Table row: one model on one group of held-out pairs."""

    model: str
    group: str
    accuracy: str
    n: int
    calibration_error: str
    overconfidence: str


def reward_plots(data: ReportData) -> list[Markup]:
    """Plot held-out accuracy, calibration and disagreement of the reward models."""
    whole = [m for m in data.reward_measures if m.by == "all"]
    plots = []
    if whole:
        rows = [_row(m.model, m.metrics, "policy" if m.model in (ENSEMBLE, whole[0].model) else "base") for m in whole]
        caption = "Share of held-out preferences where the preferred response scores higher, with 95% intervals."
        plots.append(
            rows_plot("Held-out accuracy of the reward model", rows, reference=0.5, reference_label="chance", bars=False, caption=caption)
        )
        plots += [_bucket_plot(data.reward_measures, whole[0].model, by) for by in BUCKETS]
        plots.append(_reliability_plot(whole[0]))
    plots += dispute_plots(data.disputes)
    return [p for p in plots if p]


def measure_rows(data: ReportData) -> list[MeasureRow]:
    """Return all measures of all reward models as table rows."""
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
    """Plot the disagreement of an ensemble's members, and accuracy by disagreement; nothing for a single member."""
    if not any(d.disagreement > 0 for d in disputes):
        return []
    plots = []
    judged = sorted((d for d in disputes if d.right is not None), key=lambda d: d.disagreement)
    if len(judged) >= FEWEST_DISPUTES:
        third = len(judged) // 3
        parts = {"least disagreement": judged[:third], "middle third": judged[third:-third], "most disagreement": judged[-third:]}
        rows = []
        for name, part in parts.items():
            right = [float(bool(d.right)) for d in part]
            low, high = clustered_share(right, [d.conversation for d in part])
            rows.append(PlotRow(name, sum(right) / len(part), low, high, f"n = {len(part)}"))
        caption = "If disagreement is informative, accuracy is lower where the members disagree."
        title = "Accuracy of the ensemble by disagreement of its members"
        plots.append(rows_plot(title, rows, reference=0.5, reference_label="chance", bars=False, caption=caption))
    most = max(d.disagreement for d in disputes)
    counts = [0] * DISPUTE_BINS
    for d in disputes:
        counts[min(DISPUTE_BINS - 1, int(d.disagreement / most * DISPUTE_BINS))] += 1
    caption = f"Over {plural(len(disputes), 'preference')}, including training pairs. Human labels help most for the pairs on the right."
    label = "standard deviation of the members' score differences"
    return [*plots, histogram("Disagreement about pairs", counts, 0, most, label, caption)]


def reward_curves(curves: Sequence[Curve]) -> list[Markup]:
    """Plot the training curves of all members, one plot per metric."""
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
    """Return the plot of one grouping; empty if there is only one group."""
    found = [m for m in measures if m.model == model and m.by == by and m.metrics.n >= FEW]
    title, caption = BUCKETS[by]
    if len(found) < 2:
        return Markup("")
    rows = [_row(m.group, m.metrics) for m in found]
    return rows_plot(title, rows, reference=0.5, reference_label="chance", bars=False, caption=caption)


def _reliability_plot(measure: RewardMeasure) -> Markup:
    bins, metrics = measure.metrics.reliability, measure.metrics
    points = [(b.predicted, b.observed) for b in bins]
    ends = (points[0][0], points[-1][0])
    series = [Series(measure.model, points, "policy"), Series("perfectly calibrated", [(x, x) for x in ends], "base")]
    low, high = signed(metrics.overconfidence_low), signed(metrics.overconfidence_high)
    caption = (
        f"Accuracy by predicted probability, over {plural(metrics.n, 'held-out preference')}. Calibration error "
        f"{number(metrics.calibration_error)}; overconfidence {signed(metrics.overconfidence)} [{low}, {high}]."
    )
    return line_plot("Reliability", series, "predicted probability", caption)
