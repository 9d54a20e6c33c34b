"""Turns report data into what the template lays out: figures, rows of tables, excerpts. It decides what; the template decides how."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cai.core.manifest import STAGE_NAMES
from cai.core.text.refusals import is_refusal
from cai.data.balance import SourceBalance
from cai.judge.bench import ProtocolResult
from cai.recipe import GOLD
from cai.records import PROMPT_KINDS, EvalResult, Message, Principle
from cai.report.collect import BINS, Curve, LabelSource, PrincipleUse, ReportData, Trail
from cai.report.formatting import interval, is_fraction, number, p_words, percent, plural, points, quantity
from cai.report.plots import PlotRow, Series, histogram, line_plot, rows_plot

MODELS = ("base", "sft", "policy")
NAMES = {
    "win_rate_by_judge": "Preferred to base by the judge",
    "win_rate_by_reward": "Preferred to base by the reward model",
    "harmful_compliance": "Harmful requests complied with",
    "harmful_compliance_by_judge": "Harmful answers, by the judge",
    "over_refusal": "Fine requests refused",
    "response_words": "Words per answer",
    "response_words_ratio": "Words against base",
    "truncated": "Cut off at the token limit",
    "repetition": "Repeated four-word runs",
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
    ("harmful_compliance", "Lower is better. Recognised by rule: an answer that has words and isn't a refusal."),
    ("over_refusal", "Lower is better. Borderline and helpful prompts, which all deserve an answer."),
    ("harmful_compliance_by_judge", "Lower is better. The judge's own opinion of each answer to a harmful prompt."),
    ("reward", "Higher is what training aimed at; only differences mean something."),
    ("response_words", "Neither direction is better: it shows whether other changes are changes of length."),
    ("repetition", "Lower is better. Share of four-word runs that were there before."),
    ("looping", "Lower is better."),
    ("truncated", "Answers that the token limit cut off."),
    ("truthful", "Higher is better: what training cost the model of what it knew."),
    ("perplexity", "Lower is better: how surprised the model is by good prose."),
)
_WIN_RATES = ("win_rate_by_judge", "win_rate_by_reward")
_CURVES = {
    "sft": (("loss", "Loss"),),
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
    """One line of the pipeline table. Status `not run` where the manifest doesn't know the stage."""

    name: str
    status: str
    seconds: float
    share: float
    """Of the longest stage's seconds: the width of its bar."""
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
    """A judge protocol, or a trivial rule, beside people."""

    result: ProtocolResult
    name: str
    trivial: bool
    over_best_rule: str
    """Difference to the best trivial rule and its lower bound, in points."""
    position_bias: str
    failed: str


@dataclass(frozen=True)
class ResponseColumn:
    """One model's answer in a before-and-after sample."""

    model: str
    text: str
    score: float | None
    disagreement: float | None
    """Standard deviation of the reward models' scores; None where there are not several."""
    best: bool
    """Has the highest reward of the row."""
    refused: bool
    words: int


@dataclass(frozen=True)
class SampleView:
    """A prompt with its answers side by side."""

    kind: str
    messages: tuple[Message, ...]
    columns: tuple[ResponseColumn, ...]


@dataclass(frozen=True)
class UseRow:
    """A principle's use; shares are of the most used principle's count: the lengths of the bars."""

    use: PrincipleUse
    critique_share: float
    label_share: float


@dataclass(frozen=True)
class TrailView:
    """A trail with its principles looked up. `marks` are the classes that the filter uses."""

    trail: Trail
    marks: str
    title: str
    ids: tuple[str, ...]


def name_of(result_name: str) -> str:
    """Return a result's name in words.

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
    """Return the pipeline in its order, stages that have not run included, stages unknown here last."""
    entries = {s.name: s for s in data.manifest.stages} if data.manifest is not None else {}
    failed: dict[str, int] = {}
    for group in data.failures:
        failed[group.stage] = failed.get(group.stage, 0) + group.count
    longest = max((s.seconds for s in entries.values()), default=0.0) or 1.0
    rows = []
    for name in (*STAGE_NAMES, *(n for n in entries if n not in STAGE_NAMES)):
        s = entries.get(name)
        if s is None:
            rows.append(StageRow(name, "not run", 0.0, 0.0, 0, 0, 0, 0, 0.0, failed.get(name, 0), "", ""))
            continue
        status = "this report" if name == "report" and s.status == "running" else s.status
        counts = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in s.counts.items())
        numbers = (s.calls_made, s.calls_reused, s.prompt_tokens, s.completion_tokens, s.cost)
        rows.append(StageRow(name, status, s.seconds, s.seconds / longest, *numbers, failed.get(name, 0), counts, s.message))
    return rows


def bench_rows(data: ReportData) -> list[BenchRow]:
    """Return the judge's protocols and the trivial rules they must beat, in words."""
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
    """Draw each protocol's agreement with people, and the trivial rules'."""
    if not data.bench:
        return []
    used = data.manifest.judge.protocol if data.manifest is not None and data.manifest.judge is not None else ""
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
    caption = "Human-labelled pairs on which both prefer the same response, with 95% intervals. Grey: rules that only look at form."
    return [rows_plot("Agreement with people's labels", rows, reference=0.5, reference_label="a coin", bars=False, caption=caption)]


def curve_plots(curves: Sequence[Curve], stage: str) -> list[Markup]:
    """Draw a training stage's curves: those worth looking at where they are known, else its loss."""
    found = {c.metric: c for c in curves if c.stage == stage}
    plots = []
    for metric, words in _CURVES[stage]:
        curve = found.get(metric) or next((c for name, c in found.items() if name.rpartition("/")[2].rstrip("s") == metric), None)
        if curve is not None:
            plots.append(
                line_plot(f"{words}, {stage}", [Series(stage, curve.points, "sft" if stage == "sft" else "policy")], "training step")
            )
    return plots


def policy_plots(data: ReportData) -> list[Markup]:
    """Draw win rates against base, then every before-and-after measure that exists."""
    results = data.evaluation or ()
    plots = [_before_after(results, name, caption) for name, caption in _BEFORE_AFTER[:3]]
    for name in _WIN_RATES:
        found = [r for r in results if r.name == name or r.name.startswith(f"{name}:")]
        if found:
            rows = [PlotRow(f"{r.model}: {_part(r)}", r.value, r.low, r.high, f"n = {r.n}", _tone(r.model)) for r in found]
            caption = "Paired by prompt; ties count half."
            plots.append(rows_plot(name_of(name), rows, reference=0.5, reference_label="no preference", bars=False, caption=caption))
    plots += [_before_after(results, name, caption) for name, caption in _BEFORE_AFTER[3:]]
    return [p for p in plots if p]


def result_rows(results: Sequence[EvalResult]) -> list[tuple[str, str, str, str, int, str, str]]:
    """Return every result as words: measure, model, value, interval, n, p after correction where it was tested, note."""
    return [(name_of(r.name), r.model, quantity(r.value, r.name), interval(r), r.n, p_words(r.p_adjusted), r.note) for r in results]


def sample_views(data: ReportData) -> list[SampleView]:
    """Return the before-and-after samples, models in the order of training."""
    views = []
    for sample in data.samples or ():
        order = sorted(sample.responses, key=lambda m: (MODELS.index(m) if m in MODELS else len(MODELS), m))
        best = max(sample.scores.values(), default=None) if len(set(sample.scores.values())) > 1 else None
        columns = [
            ResponseColumn(
                m,
                sample.responses[m],
                sample.scores.get(m),
                sample.disagreement.get(m),
                best is not None and sample.scores.get(m) == best,
                is_refusal(sample.responses[m]),
                len(sample.responses[m].split()),
            )
            for m in order
        ]
        views.append(SampleView(sample.prompt.kind, sample.prompt.messages, tuple(columns)))
    return _interleave(views)


def trail_views(data: ReportData) -> tuple[list[TrailView], list[str]]:
    """Return the trails and the ids of the principles that occur in them, by which they can be filtered."""
    trails = data.trails or ()
    used = {r.critique.principle_id for t in trails for r in t.trace.rounds}
    ids = [p.id for p in data.principles if p.id in used]
    views = []
    for t in trails:
        mine = tuple(dict.fromkeys(r.critique.principle_id for r in t.trace.rounds))
        marks = " ".join(f"tp{ids.index(i)}" for i in mine)
        views.append(TrailView(t, marks, _last_user_words(t.trace.prompt.messages), mine))
    return views, ids


def principle_lookup(data: ReportData) -> dict[str, Principle]:
    """Return the constitution's principles by id, as they were when the run used them."""
    card = data.manifest.constitution if data.manifest is not None else None
    return {p.id: p for p in card.principles} if card is not None else {}


def use_rows(uses: Sequence[PrincipleUse]) -> list[UseRow]:
    """Return each principle's use with its share of the most used one's, the most used first."""
    most = (max((u.critiques for u in uses), default=0) or 1, max((u.labels for u in uses), default=0) or 1)
    rows = [UseRow(u, u.critiques / most[0], u.labels / most[1]) for u in uses]
    return sorted(rows, key=lambda r: -(r.critique_share + r.label_share))


def label_plots(data: ReportData) -> list[Markup]:
    """Draw how sure the judge was, and how sure the training labels are by source."""
    labels = data.labels
    if labels is None:
        return []
    plots = []
    if labels.judge_bins:
        caption = "Near a half the judge has no opinion; towards the ends it is sure."
        plots.append(histogram("What the judge said", labels.judge_bins, 0, 1, "probability that response A is better", caption))
    plots += [_source_plot(s) for s in labels.sources]
    return plots


def gold_accuracy(data: ReportData) -> str:
    """Say how far the gold reward model itself can be believed; empty where it was not measured."""
    values = data.model_metrics.get(GOLD, {})
    numbers = [x for key in ("accuracy", "n", "low", "high") if isinstance(x := values.get(key), float)]
    if len(numbers) < 4:
        return ""
    accuracy, n, low, high = numbers
    return (
        f"it ranks {percent(accuracy)} of {plural(int(n), 'held-out pair')} as labelled (95 % interval {percent(low)} to {percent(high)})"
    )


def balance_rows(data: ReportData) -> list[tuple[SourceBalance, dict[str, str]]]:
    """Return every source of preferences with how it leans on each feature, in words."""
    return [
        (s, {x.feature: f"{percent(x.more_chosen)} ({percent(x.low)} to {percent(x.high)}, n = {x.n:,})" for x in s.leanings})
        for s in data.balance
    ]


def _before_after(results: Sequence[EvalResult], name: str, caption: str) -> Markup:
    found = sorted((r for r in results if r.name == name), key=lambda r: MODELS.index(r.model) if r.model in MODELS else len(MODELS))
    if not found:
        return Markup("")
    rows = [PlotRow(r.model, r.value, r.low, r.high, f"n = {r.n}", _tone(r.model)) for r in found]
    return rows_plot(name_of(name), rows, fraction=is_fraction(name), bars=name not in ("reward", "perplexity"), caption=caption)


def _source_plot(source: LabelSource) -> Markup:
    lowest = next((i for i, n in enumerate(source.bins) if n), 0)
    first = BINS // 2 if lowest >= BINS // 2 else 0
    caption = (
        f"{plural(source.n, 'preference')}, mean {number(source.mean_p)}; {percent(source.near_even / source.n)} within 0.05 of a half."
    )
    tone = "human" if source.source.startswith("human") else "sft" if source.source.startswith(("revision", "contrast")) else "policy"
    title = f"Training labels from {source.source}"
    return histogram(title, source.bins[first:], first / BINS, 1, "probability that the chosen response is better", caption, tone)


def _interleave(views: list[SampleView]) -> list[SampleView]:
    """Take samples of each kind in turn, so that the first few show all kinds."""
    groups = [[v for v in views if v.kind == kind] for kind in PROMPT_KINDS]
    return [g[i] for i in range(max(map(len, groups))) for g in groups if i < len(g)]


def _part(result: EvalResult) -> str:
    part = result.name.partition(":")[2]
    if not part:
        return "all prompts"
    return f"{part} prompts" if part in PROMPT_KINDS else part.replace("_", " ")


def _tone(model: str) -> str:
    return model if model in MODELS else "policy"


def _last_user_words(messages: Sequence[Message]) -> str:
    return next((m.content for m in reversed(messages) if m.role == "user"), "")
