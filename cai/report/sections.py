"""Prepare report data for the templates: plots, table rows and excerpts."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cai.core.manifest import counts_in_words
from cai.core.stages import STAGE_NAMES
from cai.core.text.refusals import is_refusal
from cai.core.text.words import word_count
from cai.data.balance import SourceBalance
from cai.evaluate.policies import MODELS, place_of
from cai.judge.bench import ProtocolResult
from cai.recipe import GOLD
from cai.records import PROMPT_KINDS, EvalResult, Message
from cai.report.collect import BINS, Curve, LabelSource, PrincipleUse, ReportData, Trail
from cai.report.formatting import interval, is_fraction, number, p_words, percent, plural, points, quantity
from cai.report.plots import PlotRow, Series, histogram, line_plot, rows_plot

FEW = 10
"""Number of prompts below which a group's result is in the tables only."""
NAMES = {
    "win_rate_by_judge": "Preferred to base by the judge",
    "win_rate_by_reward": "Preferred to base by the reward model",
    "harmful_compliance": "Harmful requests answered without refusing",
    "harmful_compliance_by_judge": "Harmful answers, by the judge",
    "over_refusal": "Fine requests refused",
    "unknown_language": "Answers in a language that the rules don't know (their refusals are not measured)",
    "response_words": "Words per answer",
    "response_words_ratio": "Words against base",
    "truncated": "Cut off at the token limit",
    "repetition": "Repeated 4-grams",
    "looping": "Answers that loop",
    "truthful": "Short questions answered right",
    "perplexity": "Perplexity of good prose",
    "perplexity_ratio": "Perplexity against base",
    "reward": "Mean reward",
    "reward_accuracy": "Held-out accuracy of the reward model",
    "judge_agreement": "The judge agrees with people",
    "longer_wins": "Wins that went to the longer answer",
}
TRIVIAL_RULES = {"always-a": "rule: always the first", "longer": "rule: always the longer", "shorter": "rule: always the shorter"}
_BEFORE_AFTER = (
    ("harmful_compliance", "Lower is better. By rule: an answer that is not a refusal. Whether it helps with the harm is not measured."),
    ("over_refusal", "Lower is better. Borderline and helpful prompts, which should all be answered."),
    ("harmful_compliance_by_judge", "Lower is better. The judge's opinion of each answer to a harmful prompt."),
    ("reward", "Training aims at a higher value. Only differences are meaningful."),
    ("response_words", "Neither direction is better: it shows whether other changes come from length."),
    ("repetition", "Lower is better. Share of repeated 4-grams within an answer."),
    ("looping", "Lower is better."),
    ("truncated", "Answers cut off at the token limit."),
    ("truthful", "Higher is better: shows whether training has cost knowledge."),
    ("perplexity", "Lower is better: perplexity on well-written text."),
)
_WIN_RATES = ("win_rate_by_judge", "win_rate_by_reward")
_CURVES = {
    "sft": (("loss", "Loss"),),
    "reward": (("loss", "Loss"), ("accuracy", "Accuracy on the batch")),
    "policy": (
        ("loss", "Loss"),
        ("rewards/margins", "Implicit reward margin"),
        ("rewards/accuracies", "Implicit reward accuracy"),
        ("reward", "Mean reward of the samples"),
        ("kl", "KL to the reference per token"),
    ),
}


@dataclass(frozen=True)
class StageRow:
    """One row of the pipeline table. The status is `not run` if the stage is not in the manifest."""

    name: str
    status: str
    seconds: float
    share: float
    """Time relative to the longest stage: the width of the bar."""
    calls_made: int
    calls_reused: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    failed: int
    counts: str
    message: str


@dataclass(frozen=True)
class BenchRow:
    """Agreement of a judging protocol or a trivial rule with human labels."""

    result: ProtocolResult
    name: str
    trivial: bool
    over_best_rule: str
    """Difference to the best trivial rule and its lower bound, in percentage points."""
    position_bias: str
    failed: str


@dataclass(frozen=True)
class ResponseColumn:
    """Answer of one model in a before-and-after sample."""

    model: str
    text: str
    score: float | None
    disagreement: float | None
    """Standard deviation of the reward models' scores; None for a single reward model."""
    best: bool
    """Whether the answer has the highest reward in the row."""
    refused: bool
    words: int


@dataclass(frozen=True)
class SampleView:
    """A prompt with the answers of all models."""

    kind: str
    messages: tuple[Message, ...]
    columns: tuple[ResponseColumn, ...]
    principle_ids: tuple[str, ...] = ()
    """Principles that were in the model's context."""


@dataclass(frozen=True)
class UseRow:
    """Use of a principle. Shares are relative to the most used principle: the lengths of the bars."""

    use: PrincipleUse
    critique_share: float
    label_share: float


@dataclass(frozen=True)
class TrailView:
    """A trail with its principle ids. `classes` are the CSS classes that the filter uses."""

    trail: Trail
    classes: str
    title: str
    ids: tuple[str, ...]


def name_of(result_name: str) -> str:
    """Return the display name of a result.

    >>> name_of("over_refusal:borderline"), name_of("looping_change")
    ('Fine requests refused, borderline prompts', 'Answers that loop, change against base')
    """
    plain, _, part = result_name.partition(":")
    plain, changed = plain.removesuffix("_change"), plain.endswith("_change")
    words = NAMES.get(plain, plain.replace("_", " "))
    if part:
        words += f", {part} prompts" if part in PROMPT_KINDS else f", {part.replace('_', ' ')}"
    return f"{words}, change against base" if changed else words


def stage_rows(data: ReportData) -> list[StageRow]:
    """Return all stages of the recipe in pipeline order, including those that have not run; unknown stages come last."""
    entries = {s.name: s for s in data.manifest.stages}
    failed: dict[str, int] = {}
    for group in data.failures:
        failed[group.stage] = failed.get(group.stage, 0) + group.count
    longest = max((s.seconds for s in entries.values()), default=0.0) or 1.0
    rows = []
    for name in (*STAGE_NAMES, *(n for n in entries if n not in STAGE_NAMES)):
        s = entries.get(name)
        if s is None and name not in data.stages:
            continue
        if s is None:
            rows.append(StageRow(name, "not run", 0.0, 0.0, 0, 0, 0, 0, 0.0, failed.get(name, 0), "", ""))
            continue
        status = "this report" if name == "report" and s.status == "running" else s.status
        numbers = (s.calls_made, s.calls_reused, s.prompt_tokens, s.completion_tokens, s.cost)
        rows.append(
            StageRow(name, status, s.seconds, s.seconds / longest, *numbers, failed.get(name, 0), counts_in_words(s.counts), s.message)
        )
    return rows


def stage_warnings(data: ReportData) -> list[str]:
    """Return a sentence for each stage in which many texts were cut off, and for each principle that is out of the model's reach."""
    return [warning for s in data.manifest.stages for warning in s.warnings]


def bench_rows(data: ReportData) -> list[BenchRow]:
    """Return the judging protocols and the trivial baselines as table rows."""
    rows = []
    for b in data.bench or ():
        over = (
            ""
            if b.difference is None
            else f"{points(b.difference)}" + (f", at least {points(b.difference_low)}" if b.difference_low is not None else "")
        )
        failed = ", ".join(f"{n:,} {reason}" for reason, n in b.failure_reasons.items()) or (f"{b.failures:,}" if b.failures else "")
        bias = "" if b.position_bias is None else f"{points(b.position_bias)} points"
        rows.append(BenchRow(b, TRIVIAL_RULES.get(b.name, b.name), b.beats_baselines is None, over, bias, failed))
    return rows


def judge_plots(data: ReportData) -> list[Markup]:
    """Plot the agreement of each protocol and trivial baseline with human labels."""
    if not data.bench:
        return []
    used = data.manifest.judge.protocol if data.manifest.judge is not None else ""
    rows = [
        PlotRow(
            f"{r.name} (this run's judge)" if r.result.name == used else r.name,
            r.result.accuracy,
            r.result.low,
            r.result.high,
            f"n = {r.result.n}",
            tone,
        )
        for r in bench_rows(data)
        for tone in ("base" if r.trivial else "policy",)
    ]
    caption = "Share of human-labelled pairs with the same preferred response, with 95% intervals. Grey: trivial baselines."
    return [rows_plot("Agreement with human labels", rows, reference=0.5, reference_label="chance", bars=False, caption=caption)]


def curve_plots(curves: Sequence[Curve], stage: str) -> list[Markup]:
    """Plot the main training curves of a stage."""
    mine = [c for c in curves if c.stage == stage]
    plots = []
    for metric, words in _CURVES[stage]:
        found = [c for c in mine if c.metric == metric] or [c for c in mine if c.metric.rpartition("/")[2].rstrip("s") == metric]
        if found:
            tone = "sft" if stage == "sft" else "policy"
            plots.append(line_plot(f"{words}, {stage}", [Series(c.member or stage, c.points, tone) for c in found], "training step"))
    return plots


def policy_plots(data: ReportData, judge_is_proven: bool) -> tuple[list[Markup], list[Markup]]:
    """Plot the measures before and after: refusals and win rates first, and all others apart. Groups of fewer than `FEW` are left out, and
    how harmful a judge finds the answers unless it was shown to agree with people."""
    results = [r for r in data.evaluation or () if r.n >= FEW or ":" not in r.name]
    results = [r for r in results if judge_is_proven or not r.name.startswith("harmful_compliance_by_judge")]
    plots = [_before_after(results, name, caption) for name, caption in _BEFORE_AFTER[:3]]
    for name in _WIN_RATES:
        found = [r for r in results if r.name == name or r.name.startswith(f"{name}:")]
        if found:
            rows = [PlotRow(f"{r.model}: {_part(r)}", r.value, r.low, r.high, f"n = {r.n}", _tone(r.model)) for r in found]
            caption = "Paired by prompt; ties count half."
            plots.append(rows_plot(name_of(name), rows, reference=0.5, reference_label="no preference", bars=False, caption=caption))
    more = [_before_after(results, name, caption) for name, caption in _BEFORE_AFTER[3:]]
    return [p for p in plots if p], [p for p in more if p]


def result_rows(results: Sequence[EvalResult]) -> list[tuple[str, str, str, str, int, str, str]]:
    """Return all results as table rows: measure, model, value, interval, n, corrected p-value, note."""
    return [(name_of(r.name), r.model, quantity(r.value, r.name), interval(r), r.n, p_words(r.p_adjusted), r.note) for r in results]


def distilled_views(data: ReportData) -> list[SampleView]:
    """Return the responses under principles in context that became training data, beside the model's own ones."""
    return [
        SampleView(
            pair.prompt.kind,
            pair.prompt.messages,
            tuple(
                ResponseColumn(name, text, None, None, False, is_refusal(text), word_count(text))
                for name, text in (("base", pair.response_b), ("told", pair.response_a))
            ),
            pair.provenance.principle_ids,
        )
        for pair in data.distilled or ()
    ]


def sample_views(data: ReportData) -> list[SampleView]:
    """Return the before-and-after samples, models in the order of training."""
    views = []
    for sample in data.samples or ():
        order = sorted(sample.responses, key=lambda m: (place_of(m), m))
        best = max(sample.scores.values(), default=None) if len(set(sample.scores.values())) > 1 else None
        columns = [
            ResponseColumn(
                m,
                sample.responses[m],
                sample.scores.get(m),
                sample.disagreement.get(m),
                best is not None and sample.scores.get(m) == best,
                is_refusal(sample.responses[m]),
                word_count(sample.responses[m]),
            )
            for m in order
        ]
        views.append(SampleView(sample.prompt.kind, sample.prompt.messages, tuple(columns)))
    return _interleave(views)


def trail_views(data: ReportData) -> tuple[list[TrailView], list[str]]:
    """Return the trails, and the ids of their principles for the filter."""
    trails = data.trails or ()
    used = {r.critique.principle_id for t in trails for r in t.trace.rounds}
    ids = [p.id for p in data.principles if p.id in used]
    views = []
    for t in trails:
        own_ids = tuple(dict.fromkeys(r.critique.principle_id for r in t.trace.rounds))
        classes = " ".join(f"tp{ids.index(i)}" for i in own_ids)
        views.append(TrailView(t, classes, _last_user_message(t.trace.prompt.messages), own_ids))
    return views, ids


def use_rows(uses: Sequence[PrincipleUse]) -> list[UseRow]:
    """Return the use of each principle relative to the most used one, in descending order."""
    most = (max((u.critiques for u in uses), default=0) or 1, max((u.labels for u in uses), default=0) or 1)
    rows = [UseRow(u, u.critiques / most[0], u.labels / most[1]) for u in uses]
    return sorted(rows, key=lambda r: -(r.critique_share + r.label_share))


def label_plots(data: ReportData) -> list[Markup]:
    """Plot the distributions of the judge's probabilities and, by source, of the training labels."""
    labels = data.labels
    if labels is None:
        return []
    plots = []
    if labels.judge_bins:
        caption = "The judge is undecided near 0.5 and confident near 0 and 1."
        plots.append(histogram("Probabilities from the judge", labels.judge_bins, 0, 1, "probability that response A is better", caption))
    plots += [_source_plot(s) for s in labels.sources]
    return plots


def gold_accuracy(data: ReportData) -> str:
    """Describe the held-out accuracy of the gold reward model; empty if it was not measured."""
    values = data.model_metrics.get(GOLD, {})
    numbers = [x for key in ("accuracy", "n", "low", "high") if isinstance(x := values.get(key), float)]
    if len(numbers) < 4:
        return ""
    accuracy, n, low, high = numbers
    return (
        f"it ranks {percent(accuracy)} of {plural(int(n), 'held-out pair')} as labelled (95 % interval {percent(low)} to {percent(high)})"
    )


def balance_rows(data: ReportData) -> list[tuple[SourceBalance, dict[str, tuple[str, str]]]]:
    """Return each source of preferences with its bias on each feature, and the interval, formatted."""
    return [
        (s, {x.feature: (percent(x.more_chosen), f"{percent(x.low)} to {percent(x.high)}, n = {x.n:,}") for x in s.leanings})
        for s in data.balance
    ]


def _before_after(results: Sequence[EvalResult], name: str, caption: str) -> Markup:
    found = sorted((r for r in results if r.name == name), key=lambda r: place_of(r.model))
    if not found:
        return Markup("")
    rows = [PlotRow(r.model, r.value, r.low, r.high, f"n = {r.n}", _tone(r.model)) for r in found]
    return rows_plot(name_of(name), rows, fraction=is_fraction(name), bars=name not in ("reward", "perplexity"), caption=caption)


def _source_plot(source: LabelSource) -> Markup:
    lowest = next((i for i, n in enumerate(source.bins) if n), 0)
    first = BINS // 2 if lowest >= BINS // 2 else 0
    caption = f"{plural(source.n, 'preference')}, mean {number(source.mean_p)}; {percent(source.near_even / source.n)} within 0.05 of 0.5."
    tone = "human" if source.source.startswith("human") else "sft" if source.source.startswith(("revision", "contrast")) else "policy"
    title = f"Training labels from {source.source}"
    return histogram(title, source.bins[first:], first / BINS, 1, "probability that the chosen response is better", caption, tone)


def _interleave(views: list[SampleView]) -> list[SampleView]:
    """Interleave the kinds of prompt, so that the first samples show all kinds."""
    groups = [[v for v in views if v.kind == kind] for kind in PROMPT_KINDS]
    return [g[i] for i in range(max(map(len, groups))) for g in groups if i < len(g)]


def _part(result: EvalResult) -> str:
    part = result.name.partition(":")[2]
    if not part:
        return "all prompts"
    return f"{part} prompts" if part in PROMPT_KINDS else part.replace("_", " ")


def _tone(model: str) -> str:
    return model if model in MODELS else "policy"


def _last_user_message(messages: Sequence[Message]) -> str:
    return next((m.content for m in reversed(messages) if m.role == "user"), "")
