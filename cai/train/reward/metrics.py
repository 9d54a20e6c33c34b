"""Accuracy and calibration of reward models on held-out pairs, in total and by group.

Computed from stored scores (`ScoredPair`). Labels are soft; pairs labelled exactly ½ favour no side and are left out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from cai.errors import TrainingError
from cai.records import ScoredPair
from cai.stats import clustered_half_width, clustered_share

CALIBRATION_BINS = 10
ENSEMBLE = "ensemble"
"""Name of the ensemble of all members, if there is more than one."""
LENGTH_BUCKETS = (
    (1 / 2, "better is under half as long"),
    (5 / 6, "better is shorter"),
    (6 / 5, "about equally long"),
    (2.0, "better is longer"),
    (float("inf"), "better is over twice as long"),
)
"""Upper edge of (characters of the better response / of the worse), and name of each bucket."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs with similar predicted probabilities."""

    predicted: float
    """Mean predicted probability of the side that the model favours, in [0.5, 1]."""
    observed: float
    """Mean label of that side, in [0, 1]."""
    n: int


@dataclass(frozen=True, slots=True)
class HeldOutMetrics:
    """Metrics of a reward model on held-out pairs."""

    accuracy: float
    """Fraction of pairs in which the side favoured by the label scores higher; equal scores count as wrong."""
    n: int
    """Number of pairs whose label favours a side."""
    low: float
    high: float
    """95 % confidence interval of the accuracy: Wilson's, at the effective number of pairs where a conversation has several."""
    calibration_error: float
    """Expected calibration error of σ(|score difference|), the predicted probability of the side that the model favours: mean
    |predicted − observed| over equal bins, weighted by their counts. Observed is the label of that side. At least 0, and above 0 by
    chance if bins hold few pairs. It has no confidence interval; see `overconfidence`."""
    overconfidence: float
    """Mean of predicted − observed, in probability. Above 0 the model is overconfident."""
    overconfidence_low: float
    overconfidence_high: float
    """95 % confidence interval of the overconfidence (Student's t over conversations); −1 to 1 for a single one."""
    mean_margin: float
    """Mean of chosen minus rejected score."""
    reliability: tuple[ReliabilityBin, ...] = ()
    """The bins with at least one pair, in order."""


@dataclass(frozen=True, slots=True)
class RewardMeasure:
    """One model's metrics on one group of held-out pairs: one line of data/reward_measures.jsonl."""

    model: str
    """A member's name, or `ensemble`."""
    by: str
    """Grouping: `all`, `source` (of the label), `kind` (of the prompt), `length` (difference in length of the responses)."""
    group: str
    metrics: HeldOutMetrics


def measure_scores(pairs: Iterable[ScoredPair], names: Sequence[str]) -> list[RewardMeasure]:
    """Return the metrics of the ensemble and of each member, on all pairs and by label source, prompt kind and difference in length.

    Args:
        names: names of the members, in the order of their scores. A single member is measured once, under its own name.
    """
    sided = [p for p in pairs if p.p_chosen != 0.5]
    groups: dict[tuple[str, str], list[ScoredPair]] = {}
    for pair in sided:
        for by, group in (("all", ""), ("source", pair.source), ("kind", pair.kind), ("length", length_bucket(pair))):
            groups.setdefault((by, group), []).append(pair)
    margins: dict[str, Callable[[ScoredPair], float]] = {ENSEMBLE: lambda p: p.margin} if len(names) > 1 else {}
    margins |= {name: lambda p, i=i: p.member_margins[i] for i, name in enumerate(names)}  # type: ignore[misc]
    return [
        RewardMeasure(name, by, group, measure_margins([margin(p) for p in found], [p.p_chosen for p in found], [p.cluster for p in found]))
        for name, margin in margins.items()
        for (by, group), found in sorted(groups.items(), key=lambda item: _order(*item[0]))
    ]


def length_bucket(pair: ScoredPair) -> str:
    """Return the name of the pair's bucket in `LENGTH_BUCKETS`."""
    better, worse = pair.chosen_characters, pair.rejected_characters
    if pair.p_chosen < 0.5:
        better, worse = worse, better
    return next(name for edge, name in LENGTH_BUCKETS if better <= edge * max(1, worse))


def _order(by: str, group: str) -> tuple[int, int, str]:
    lengths = [name for _, name in LENGTH_BUCKETS]
    return ("all", "source", "kind", "length").index(by), lengths.index(group) if by == "length" else 0, group


def measure_margins(margins: Sequence[float], p_chosen: Sequence[float], clusters: Sequence[str] | None = None) -> HeldOutMetrics:
    """Measure how well score differences predict labels.

    Args:
        margins: chosen minus rejected scores.
        p_chosen: labels in [0, 1], none of them ½.
        clusters: the conversation of each pair, for the intervals; None: each pair is independent.
    """
    from scipy.special import expit

    if not margins:
        raise TrainingError("nothing to measure on: no held-out pair has a label that favours a side")
    clusters = [str(i) for i in range(len(margins))] if clusters is None else clusters
    right = [float((m > 0) if p > 0.5 else (m < 0)) for m, p in zip(margins, p_chosen, strict=True)]
    low, high = clustered_share(right, clusters)
    predicted = [float(expit(abs(m))) for m in margins]
    observed = [p if m >= 0 else 1 - p for m, p in zip(margins, p_chosen, strict=True)]
    bins = reliability_bins(predicted, observed)
    gaps = [p - y for p, y in zip(predicted, observed, strict=True)]
    gap, half = fmean(gaps), clustered_half_width(gaps, clusters)
    return HeldOutMetrics(
        sum(right) / len(margins),
        len(margins),
        low,
        high,
        calibration_error(bins),
        gap,
        -1.0 if half is None else max(-1.0, gap - half),
        1.0 if half is None else min(1.0, gap + half),
        fmean(margins),
        bins,
    )


def reliability_bins(predicted: Sequence[float], labels: Sequence[float]) -> tuple[ReliabilityBin, ...]:
    """Group predictions into `CALIBRATION_BINS` equal bins of [0.5, 1], and compare each bin with its labels.

    Predictions and labels are for the side that the model favours. For the chosen side, hard labels would all be 1, and calibrated
    predictions would seem wrong.

    Args:
        predicted: predicted probability of the favoured side, in [0.5, 1].
        labels: label of that side, in [0, 1].
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for p, y in zip(predicted, labels, strict=True):
        bins.setdefault(min(int((2 * p - 1) * CALIBRATION_BINS), CALIBRATION_BINS - 1), []).append((p, y))
    return tuple(ReliabilityBin(sum(p for p, _ in b) / len(b), sum(y for _, y in b) / len(b), len(b)) for _, b in sorted(bins.items()))


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error: the bins' mean |predicted − observed|, weighted by their counts (Guo et al. 2017).

    >>> calibration_error(reliability_bins([0.75, 0.75, 0.75, 0.75], [1.0, 1.0, 1.0, 0.0]))
    0.0
    """
    return sum(b.n * abs(b.predicted - b.observed) for b in bins) / max(1, sum(b.n for b in bins))
