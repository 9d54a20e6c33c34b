"""Collect the report's data from a run directory. Large files are streamed: counts cover all records, texts are a sample.

A missing file means that its stage has not run. A file that can't be read is listed in the report, so that a broken run still gets one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cai.core.jsonl import NOT_JSON, read_file, read_records
from cai.core.manifest import Manifest, read_manifest
from cai.core.status import stages_of
from cai.core.workspace import RunDirectory
from cai.data.balance import SourceBalance
from cai.errors import CaiError
from cai.judge.bench import ProtocolResult
from cai.records import (
    AuditFinding,
    BlendPoint,
    EvalResult,
    Failure,
    Judgment,
    MonitorPoint,
    Preference,
    Principle,
    ResponsePair,
    RevisionTrace,
    Sample,
    ScoredPair,
    SFTExample,
)
from cai.report.formatting import leaves
from cai.train.reward.metrics import RewardMeasure

T = TypeVar("T")
TRACES_SHOWN = 60
SAMPLES_SHOWN = 60
LABELS_PER_TRAIL = 4
EXAMPLES_PER_REASON = 3
BINS = 20
_Points = dict[tuple[str, str, str], list[tuple[float, float]]]
"""Points (step, value) by stage, ensemble member and metric."""
_MODEL_FILES = ("training.json", "metrics.json")


@dataclass(frozen=True)
class LabelSource:
    """Preferences of one source."""

    source: str
    n: int
    mean_p: float
    near_even: int
    """Number of preferences with a probability within 0.05 of 0.5, which carry almost no training signal."""
    bins: tuple[int, ...]
    """Histogram of `p_chosen` over [0, 1]."""


@dataclass(frozen=True)
class Labels:
    """Judgments, and the preferences made from them."""

    judgments: int = 0
    judge_bins: tuple[int, ...] = ()
    """Histogram of `p_a` over [0, 1]."""
    both_orders: int = 0
    flipped: int = 0
    """Number of judgments made in both orders whose winner depends on the order."""
    sources: tuple[LabelSource, ...] = ()
    held_out: int | None = None


@dataclass(frozen=True)
class PrincipleUse:
    """Number of critiques and of labels under one principle."""

    id: str
    statement: str
    critiques: int
    labels: int


@dataclass(frozen=True)
class Trail:
    """One prompt from first response to label."""

    trace: RevisionTrace
    labels: tuple[Preference, ...]
    """The first few preferences about the same prompt."""
    label_count: int


@dataclass(frozen=True)
class FailureGroup:
    """Failed items of one stage with the same reason, with a few examples."""

    stage: str
    reason: str
    count: int
    examples: tuple[Failure, ...]


@dataclass(frozen=True)
class Curve:
    """One metric of one training stage, by step."""

    stage: str
    metric: str
    points: tuple[tuple[float, float], ...]
    member: str = ""
    """Ensemble member; empty if the stage trains one model."""


@dataclass(frozen=True)
class Dispute:
    """Disagreement of the reward models about one pair, and whether the ensemble is right (None if not known)."""

    disagreement: float
    right: bool | None
    conversation: str
    """What pairs share that are not independent."""


@dataclass(frozen=True)
class ReportData:
    """All data of the report."""

    name: str
    path: str
    manifest: Manifest
    """Without a version of `cai` where the run has none that can be read."""
    stages: tuple[str, ...]
    """Stages that the recipe has."""
    recipe_text: str
    evaluation: tuple[EvalResult, ...] | None
    """None if the stage has not run; the same holds for the fields below."""
    audit: tuple[AuditFinding, ...] | None
    samples: tuple[Sample, ...] | None
    trails: tuple[Trail, ...] | None
    distilled: tuple[ResponsePair, ...] | None
    """The first responses under principles in context (`response_a`), beside those without (`response_b`)."""
    distilled_count: int
    traces: int
    dropped: tuple[tuple[str, int], ...]
    """Rules that left traces out of the training data, with the number of traces for each."""
    pairs: tuple[tuple[str, int], ...] | None
    """Number of response pairs by source."""
    principles: tuple[PrincipleUse, ...]
    labels: Labels | None
    bench: tuple[ProtocolResult, ...] | None
    balance: tuple[SourceBalance, ...]
    """Each source's share of the mixture of preferences."""
    curves: tuple[Curve, ...]
    model_metrics: dict[str, dict[str, float | str]]
    """Metrics of each trained model from the files in `models/*/`, with dotted names (`metrics.eval_accuracy`)."""
    blends: tuple[BlendPoint, ...]
    """Blends of SFT model and policy that were tried; empty without `blend`."""
    frontier: tuple[MonitorPoint, ...]
    """Observations of the over-optimization monitor during policy training; empty without a monitor."""
    reward_measures: tuple[RewardMeasure, ...]
    disputes: tuple[Dispute, ...]
    failures: tuple[FailureGroup, ...]
    imitated: frozenset[str] = frozenset()
    """What the model thought, of the trails shown, where training imitates it (`sft.thinking`)."""
    problems: tuple[str, ...] = ()
    """Files that can't be read, with the reasons."""


@dataclass
class _Reader:
    """Reads the files of one run directory and collects the read errors."""

    run_dir: Path
    problems: list[str] = field(default_factory=list)

    def attempt(self, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (CaiError, OSError, msgspec.DecodeError, UnicodeDecodeError) as e:
            self.problems.append(str(e))
            return otherwise

    def stream(self, name: str, record_type: type[T], log: bool = False) -> Iterator[T]:
        path = self.run_dir / name
        if not path.exists():
            return
        try:
            yield from read_records(path, record_type, torn_tail="drop" if log else "error")
        except CaiError as e:
            self.problems.append(str(e))

    def has(self, name: str) -> bool:
        return (self.run_dir / name).exists()

    def all(self, name: str, record_type: type[T]) -> tuple[T, ...] | None:
        return tuple(self.stream(name, record_type)) if self.has(name) else None

    def json(self, name: str) -> dict[str, Any]:
        path = self.run_dir / name
        if not path.exists():
            return {}
        try:
            return msgspec.json.decode(read_file(path), type=dict[str, Any])
        except (OSError, *NOT_JSON) as e:
            self.problems.append(f"{path}: {e}")
            return {}


def collect_report(run_dir: Path) -> ReportData:
    """Collect the report's data from a run directory. The run need not be finished.

    Args:
        run_dir: `runs/NAME`.

    Returns:
        Data of the report; missing parts are None or empty, and read errors are in `problems`.
    """
    reader = _Reader(run_dir)
    manifest = reader.attempt(lambda: read_manifest(run_dir / "manifest.json"), None) or Manifest(run_dir.name, cai_version="")
    recipe = run_dir / "recipe.yaml"
    traces, dropped, critiques, shown = _read_traces(reader)
    shown_ids = {t.prompt.id for t in shown}
    labels, label_use, by_prompt, label_counts = _read_labels(reader, shown_ids)
    samples = reader.all("data/samples.jsonl", Sample)
    models = {
        p.name: {k: v for f in _MODEL_FILES for k, v in reader.json(f"models/{p.name}/{f}").items()}
        for p in sorted(run_dir.glob("models/*"))
    }
    distilled, distilled_count = [], 0
    for pair in reader.stream("data/distilled_pairs.jsonl", ResponsePair):
        distilled_count += 1
        if distilled_count <= SAMPLES_SHOWN:
            distilled.append(pair)
    pair_sources = Counter(p.source for p in reader.stream("data/pairs.jsonl", ResponsePair))
    return ReportData(
        name=manifest.name,
        path=str(run_dir),
        manifest=manifest,
        stages=tuple(stages_of(run_dir)),
        recipe_text=reader.attempt(lambda: recipe.read_text(encoding="utf-8"), "") if recipe.exists() else "",
        evaluation=reader.all("data/evaluation.jsonl", EvalResult),
        audit=reader.all("data/audit.jsonl", AuditFinding),
        samples=None if samples is None else samples[:SAMPLES_SHOWN],
        trails=tuple(Trail(t, tuple(by_prompt[t.prompt.id]), label_counts[t.prompt.id]) for t in shown)
        if reader.has("data/traces.jsonl")
        else None,
        distilled=tuple(distilled) if reader.has("data/distilled_pairs.jsonl") else None,
        distilled_count=distilled_count,
        traces=traces,
        dropped=tuple(dropped.most_common()),
        pairs=tuple(pair_sources.most_common()) if reader.has("data/pairs.jsonl") else None,
        principles=_principle_uses(manifest.principles, critiques, label_use),
        labels=labels,
        bench=reader.all("data/judge_bench.jsonl", ProtocolResult),
        balance=reader.all("data/balance.jsonl", SourceBalance) or (),
        curves=_read_curves(reader),
        model_metrics={name: found for name in models if (found := _flat({k: v for k, v in models[name].items() if k != "reliability"}))},
        blends=reader.all("data/blend.jsonl", BlendPoint) or (),
        frontier=reader.all("models/policy/frontier.jsonl", MonitorPoint) or (),
        reward_measures=reader.all("data/reward_measures.jsonl", RewardMeasure) or (),
        disputes=tuple(_dispute(p) for p in reader.stream("data/reward_scores.jsonl", ScoredPair)),
        failures=_read_failures(reader),
        imitated=frozenset(e.reasoning for e in reader.stream("data/sft.jsonl", SFTExample) if e.reasoning and e.prompt.id in shown_ids),
        problems=tuple(reader.problems),
    )


def _read_traces(reader: _Reader) -> tuple[int, Counter[str], Counter[str], list[RevisionTrace]]:
    """Count all traces, and keep some for each principle."""
    count, dropped, critiques = 0, Counter[str](), Counter[str]()
    kept: dict[str, list[RevisionTrace]] = defaultdict(list)
    for trace in reader.stream("data/traces.jsonl", RevisionTrace):
        count += 1
        critiques.update(r.critique.principle_id for r in trace.rounds)
        if trace.dropped is not None and not trace.stands:
            dropped[trace.dropped] += 1
        group = kept[trace.rounds[0].critique.principle_id if trace.rounds else ""]
        if len(group) < TRACES_SHOWN:
            group.append(trace)
    deepest = max((len(g) for g in kept.values()), default=0)
    spread = [kept[key][i] for i in range(deepest) for key in sorted(kept) if i < len(kept[key])]
    return count, dropped, critiques, spread[:TRACES_SHOWN]


def _read_labels(reader: _Reader, prompt_ids: set[str]) -> tuple[Labels | None, Counter[str], dict[str, list[Preference]], Counter[str]]:
    """Count judgments and preferences; for the given prompts, keep a few preferences and count them."""
    use, judge_bins = Counter[str](), [0] * BINS
    judgments = both = flipped = 0
    for j in reader.stream("data/judgments.jsonl", Judgment):
        judgments += 1
        if j.p_a is None:
            continue
        use.update(j.principle_ids)
        judge_bins[_bin(j.p_a)] += 1
        if j.p_a_first is not None and j.p_a_second is not None:
            both += 1
            flipped += (j.p_a_first - 0.5) * (j.p_a_second - 0.5) < 0
    by_prompt: dict[str, list[Preference]] = defaultdict(list)
    label_counts = Counter[str]()
    groups: dict[str, list[float]] = {}
    bins: dict[str, list[int]] = {}
    counts = Counter[str]()
    for name in ("data/preferences.jsonl", "data/preferences_heldout.jsonl"):
        for p in reader.stream(name, Preference):
            counts[name] += 1
            n_total_near = groups.setdefault(p.source, [0, 0.0, 0])
            n_total_near[0] += 1
            n_total_near[1] += p.p_chosen
            n_total_near[2] += abs(p.p_chosen - 0.5) <= 0.05
            bins.setdefault(p.source, [0] * BINS)[_bin(p.p_chosen)] += 1
            if p.prompt.id in prompt_ids:
                label_counts[p.prompt.id] += 1
                if label_counts[p.prompt.id] <= LABELS_PER_TRAIL:
                    by_prompt[p.prompt.id].append(p)
    if not any(reader.has(f"data/{n}.jsonl") for n in ("judgments", "preferences")):
        return None, use, by_prompt, label_counts
    held_out = counts[name] if reader.has(name) else None
    sources = [LabelSource(s, int(n), total / n, int(near), tuple(bins[s])) for s, (n, total, near) in groups.items()]
    sources.sort(key=lambda s: (-s.n, s.source))
    return Labels(judgments, tuple(judge_bins) if judgments else (), both, flipped, tuple(sources), held_out), use, by_prompt, label_counts


def _read_failures(reader: _Reader) -> tuple[FailureGroup, ...]:
    counts, examples = Counter[tuple[str, str]](), defaultdict[tuple[str, str], list[Failure]](list)
    for f in reader.stream("failures.jsonl", Failure, log=True):
        key = (f.stage, f.reason)
        counts[key] += 1
        if len(examples[key]) < EXAMPLES_PER_REASON:
            examples[key].append(f)
    return tuple(FailureGroup(stage, reason, n, tuple(examples[stage, reason])) for (stage, reason), n in counts.most_common())


def read_curves(run_dir: Path) -> tuple[Curve, ...]:
    """Read the training metrics of a run by step, with the steps so far of a training that is under way."""
    reader = _Reader(run_dir)
    live: dict[tuple[str, str, str], dict[float, float]] = defaultdict(dict)
    for row in reader.stream(str(RunDirectory(run_dir).live.relative_to(run_dir)), dict[str, Any], log=True):
        points: _Points = defaultdict(list)
        _add_points(points, str(row.get("stage", "")), str(row.get("member", "")), row)
        for key, found in points.items():
            live[key].update(found)
    under_way = {stage for stage, _, _ in live}
    done = [curve for curve in _read_curves(reader) if curve.stage not in under_way]
    return (*done, *(Curve(stage, metric, tuple(sorted(by_step.items())), member) for (stage, member, metric), by_step in live.items()))


def _read_curves(reader: _Reader) -> tuple[Curve, ...]:
    """Read all training metrics by step, from the run's log or else from the log in a model's folder."""
    points: _Points = defaultdict(list)
    for row in reader.stream("metrics.jsonl", dict[str, Any], log=True):
        _add_points(points, str(row.get("stage", "")), str(row.get("member", "")), row)
    logged = {stage for stage, _, _ in points}
    for path in sorted(reader.run_dir.glob("models/*/training_log.jsonl")):
        stage, _, member = path.parent.name.partition("-")
        if stage not in logged:
            for row in reader.stream(str(path.relative_to(reader.run_dir)), dict[str, Any], log=True):
                _add_points(points, stage, path.parent.name if member else "", row)
    return tuple(Curve(stage, metric, tuple(sorted(found)), member) for (stage, member, metric), found in points.items())


def _add_points(points: _Points, stage: str, member: str, row: dict[str, Any]) -> None:
    step = row.get("step")
    if isinstance(step, int | float):
        for key, value in _flat(row).items():
            if key not in ("step", "stage", "member") and isinstance(value, float):
                points[stage, member, key.rpartition(".")[2]].append((float(step), value))


def _dispute(pair: ScoredPair) -> Dispute:
    known = pair.held_out and pair.p_chosen != 0.5
    return Dispute(pair.disagreement, pair.margin * (pair.p_chosen - 0.5) > 0 if known else None, pair.cluster)


def _flat(values: dict[str, Any]) -> dict[str, float | str]:
    """Return nested numbers and strings by their dotted names; lists and empty values are left out."""
    known = {k: v for k, v in leaves(values) if v != "" and isinstance(v, int | float | str) and not isinstance(v, bool)}
    return {k: v if isinstance(v, str) else float(v) for k, v in known.items()}


def _principle_uses(known: tuple[Principle, ...], critiques: Counter[str], labels: Counter[str]) -> tuple[PrincipleUse, ...]:
    """Return the use of each principle: those of the constitution in its order, then ids that are no longer in it."""
    statements = {p.id: p.statement for p in known}
    unknown = sorted((critiques.keys() | labels.keys()) - statements.keys())
    return tuple(PrincipleUse(i, statements.get(i, ""), critiques[i], labels[i]) for i in (*statements, *unknown))


def _bin(p: float) -> int:
    return min(BINS - 1, max(0, int(p * BINS)))
