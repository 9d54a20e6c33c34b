"""Compare two or more runs: different settings, and different results.

The first run is the baseline. Figures come from each run's `evaluation.jsonl`. Paired tests use `samples.jsonl`, on prompts that are
identical in both runs. Judge and reward model scores are tested only if both runs used the same judge or reward models. All p-values of a
comparison are corrected together (Holm 1979). Results that can't be paired are shown with an interval and without a verdict, because they
may come from different prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from cai.constitution.diff import ConstitutionDiff, diff_constitutions
from cai.core.jsonl import read_existing
from cai.core.manifest import Manifest, read_manifest
from cai.core.text.refusals import can_tell, is_refusal
from cai.core.text.repetition import LOOPING, repeated_fraction
from cai.core.text.words import word_count
from cai.core.workspace import RunDirectory
from cai.errors import DataError
from cai.evaluate.audit.finding import SIGNIFICANT
from cai.evaluate.policies import MODELS
from cai.evaluate.refusal_rates import ANSWERABLE, complied
from cai.recipe import Recipe, load_recipe
from cai.records import AuditFinding, Constitution, EvalResult, Sample
from cai.report.formatting import leaves
from cai.stats import change, holm, paired_bootstrap, two_sided

IGNORED_SETTINGS = ("name", "description", "report_to")
"""Settings that do not affect results."""
STANDING_OUT = ("found", "suspect")
SEED = 0
"""Seed of intervals and tests."""
Measure = Callable[[Sample, str], float | None]
"""Function of a sample and a model's name; returns None if the measure does not apply."""


@dataclass(frozen=True)
class SettingRow:
    """A setting or fact that differs between runs: one value per run, empty if a run does not have it."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """One result of one model in every run; None if a run does not have it."""

    name: str
    model: str
    results: tuple[EvalResult | None, ...]


@dataclass(frozen=True)
class PairedTest:
    """Paired test of one measure of one model between the first run and another, on the prompts that both answered."""

    name: str
    model: str
    run: str
    """Name of the other run."""
    n: int
    before: float
    after: float
    change: float
    low: float
    high: float
    p: float
    """Two-sided p-value: exact McNemar test for binary measures, sign-flip test for numbers."""
    p_adjusted: float = 1.0
    """p-value after Holm's correction over all tests of the comparison."""

    @property
    def shown(self) -> bool:
        """Return whether the difference is significant."""
        return self.p_adjusted < SIGNIFICANT


@dataclass(frozen=True)
class AuditRow:
    """An audit check that is found or suspect in some run, with the verdict of every run; empty if a run did not make the check."""

    subject: str
    question: str
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class RunComparison:
    """All data of a comparison page."""

    runs: tuple[str, ...]
    settings: tuple[SettingRow, ...]
    facts: tuple[SettingRow, ...]
    """Model, versions and code, if they differ."""
    constitutions: tuple[ConstitutionDiff | None, ...]
    """Constitution diff from the first run to each other run; None if both are the same or one is not known."""
    figures: tuple[Figure, ...]
    tests: tuple[PairedTest, ...]
    audit: tuple[AuditRow, ...]
    costs: tuple[SettingRow, ...]
    """Time, calls, tokens and money."""
    notes: tuple[str, ...] = ()
    """Measures that could not be tested, with the reasons."""


@dataclass(frozen=True)
class _ComparedRun:
    name: str
    recipe: Recipe
    manifest: Manifest
    evaluation: Sequence[EvalResult]
    samples: Mapping[str, Sample] = field(repr=False)
    findings: Sequence[AuditFinding]


def compare_runs(directories: Sequence[RunDirectory]) -> RunComparison:
    """Compare runs from the files in their directories.

    Args:
        directories: at least two different run directories; the first is the baseline.

    Raises:
        DataError: fewer than two runs, the same run twice, or a file can't be read.
        RecipeError: a run's recipe is not valid in this version.
    """
    paths = [d.path.resolve() for d in directories]
    if len(set(paths)) < max(2, len(paths)):
        raise DataError(f"a comparison needs two or more different runs; found {', '.join(d.path.name for d in directories)}")
    runs = [_read(d) for d in directories]
    first, others = runs[0], runs[1:]
    tests: list[PairedTest] = []
    notes: list[str] = []
    for other in others:
        found, why_not = _paired_tests(first, other)
        tests += found
        notes += why_not
    adjusted = holm([t.p for t in tests])
    return RunComparison(
        runs=tuple(r.name for r in runs),
        settings=_differences([_settings(r.recipe) for r in runs], IGNORED_SETTINGS),
        facts=_differences([_facts(r.manifest) for r in runs]),
        constitutions=tuple(_constitution_diff(first.manifest, other.manifest) for other in others),
        figures=_figures(runs),
        tests=tuple(replace(t, p_adjusted=p) for t, p in zip(tests, adjusted, strict=True)),
        audit=_audit_rows(runs),
        costs=_costs(runs),
        notes=tuple(notes),
    )


def _read(run: RunDirectory) -> _ComparedRun:
    manifest = read_manifest(run.manifest)
    if manifest is None:
        raise DataError(f"{run.path}: nothing has run yet, so there is nothing to compare. Start it with: cai run RECIPE")

    def rows(name: str, record_type: type[Any]) -> list[Any]:
        return list(read_existing(run.data(name), record_type))

    return _ComparedRun(
        run.path.name,
        load_recipe(run.path / "recipe.yaml", name=run.path.name),
        manifest,
        rows("evaluation", EvalResult),
        {s.prompt.id: s for s in rows("samples", Sample)},
        rows("audit", AuditFinding),
    )


def _settings(recipe: Recipe) -> dict[str, str]:
    values = leaves(msgspec.to_builtins(recipe))
    return {key: value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in values}


def _facts(manifest: Manifest) -> dict[str, str]:
    facts = {"model": manifest.model, "model's weights": manifest.model_fingerprint, "cai": manifest.cai_version, **manifest.versions}
    if manifest.constitution is not None:
        facts["constitution's text"] = manifest.constitution.hash
    return facts | {f"git {key}": value for key, value in manifest.git.items()}


def _differences(sides: Sequence[Mapping[str, str]], leave_out: Sequence[str] = ()) -> tuple[SettingRow, ...]:
    keys = dict.fromkeys(key for side in sides for key in side if key not in leave_out)
    rows = (SettingRow(key, tuple(side.get(key, "") for side in sides)) for key in keys)
    return tuple(row for row in rows if len(set(row.values)) > 1)


def _constitution_diff(before: Manifest, after: Manifest) -> ConstitutionDiff | None:
    old, new = (None if m.constitution is None else m.constitution for m in (before, after))
    if old is None or new is None or old.hash == new.hash:
        return None
    return diff_constitutions(*(Constitution(c.id, c.name, "", c.principles) for c in (old, new)))


def _figures(runs: Sequence[_ComparedRun]) -> tuple[Figure, ...]:
    by_run = [{(r.name, r.model): r for r in (*_judge_result(run), *run.evaluation)} for run in runs]
    keys = dict.fromkeys(key for found in by_run for key in found)
    return tuple(Figure(name, model, tuple(found.get((name, model)) for found in by_run)) for name, model in keys)


def _judge_result(run: _ComparedRun) -> list[EvalResult]:
    card = run.manifest.judge
    if card is None or not card.measured:
        return []
    return [EvalResult("judge_agreement", "judge", card.accuracy, card.n, card.low, card.high, f"{card.protocol} on {card.pairs}")]


def _costs(runs: Sequence[_ComparedRun]) -> tuple[SettingRow, ...]:
    stages = [r.manifest.stages for r in runs]
    sums = {
        "minutes": [f"{sum(s.seconds for s in found) / 60:.1f}" for found in stages],
        "calls made": [f"{sum(s.calls_made for s in found):,}" for found in stages],
        "calls reused": [f"{sum(s.calls_reused for s in found):,}" for found in stages],
        "tokens read": [f"{sum(s.prompt_tokens for s in found):,}" for found in stages],
        "tokens written": [f"{sum(s.completion_tokens for s in found):,}" for found in stages],
        "US dollars": [f"{sum(s.cost for s in found):.2f}" for found in stages],
        "peak memory, GiB": [f"{r.manifest.peak_memory_bytes / 2**30:.1f}" for r in runs],
    }
    return tuple(SettingRow(key, tuple(values)) for key, values in sums.items())


def _audit_rows(runs: Sequence[_ComparedRun]) -> tuple[AuditRow, ...]:
    by_run = [{(f.subject, f.check): f for f in run.findings} for run in runs]
    keys = dict.fromkeys(key for found in by_run for key, f in found.items() if f.verdict in STANDING_OUT)
    rows = []
    for key in keys:
        asked = [found.get(key) for found in by_run]
        question = next(f.question for f in asked if f is not None)
        rows.append(AuditRow(key[0], question, tuple("" if f is None else f.verdict for f in asked)))
    return tuple(rows)


def _paired_tests(first: _ComparedRun, other: _ComparedRun) -> tuple[list[PairedTest], list[str]]:
    """Return all paired tests of two runs, and notes on what can't be tested."""
    both = [i for i in first.samples if i in other.samples and first.samples[i].prompt.messages == other.samples[i].prompt.messages]
    pairs = [(first.samples[i], other.samples[i]) for i in both]
    if not pairs:
        return [], [f"{other.name} and {first.name} have no answered evaluation prompt in common: nothing can be tested."]
    notes = []
    if left := len(first.samples.keys() | other.samples.keys()) - len(both):
        notes.append(f"{other.name}: {len(both)} evaluation prompts are also in {first.name}; {left} are in only one of the two runs.")
    measures = dict(BY_RULE)
    for what, group, same in (("judge", BY_JUDGE, _judge_of), ("reward models", BY_REWARD, _rewards_of)):
        if same(first) == same(other):
            measures |= group
        else:
            notes.append(f"{other.name} and {first.name} were scored by different {what}, so these scores are not tested.")
    tests: list[PairedTest] = []
    for model in reversed(MODELS):
        answered = [(a, b) for a, b in pairs if model in a.responses and model in b.responses]
        if not answered:
            continue
        if all(a.responses[model] == b.responses[model] for a, b in answered):
            notes.append(f"The {model} models of {other.name} and {first.name} give the same answers to all {len(answered)} prompts.")
            continue
        for name, measure in measures.items():
            known = [
                (x, y)
                for a, b in answered
                if (x := measure(a, model)) is not None and (y := measure(b, model)) is not None and _comparable(name, a, b)
            ]
            if known:
                tests.append(_test(name, model, other.name, known))
    return tests, notes


def _test(name: str, model: str, run: str, values: Sequence[tuple[float, float]]) -> PairedTest:
    before, after = [x for x, _ in values], [y for _, y in values]
    differences = [y - x for x, y in values]
    if all(v in (0, 1) for v in (*before, *after)):
        moved = change([x == 1 for x in before], [y == 1 for y in after])
    else:
        moved = paired_bootstrap(differences, SEED)
    n = len(values)
    return PairedTest(name, model, run, n, sum(before) / n, sum(after) / n, *moved, p=two_sided(differences, SEED))


def _comparable(name: str, a: Sample, b: Sample) -> bool:
    """Return whether a measure can be compared between two samples. A win rate needs the same answer of the base model."""
    return name not in BY_JUDGE or name == "harmful_compliance_by_judge" or a.responses.get("base") == b.responses.get("base")


def _judge_of(run: _ComparedRun) -> object:
    """Return all settings that affect a judge's answers."""
    constitution = run.manifest.constitution
    asked = run.recipe.feedback
    by = (asked.protocol, asked.principles, asked.per_label, asked.cot_clamp, asked.calibration, asked.judge or run.recipe.model)
    return by, run.manifest.model_fingerprint, "" if constitution is None else constitution.hash, run.recipe.templates, run.recipe.seed


def _rewards_of(run: _ComparedRun) -> object:
    """Return everything that affects the reward models' scores."""
    stage = run.manifest.stage("reward")
    models = {path: digest for path, digest in stage.outputs.items() if path.startswith("models/reward")} if stage else None
    return models, run.recipe.reward.aggregate, run.recipe.reward.uncertainty_penalty


def _win(sample: Sample, model: str) -> float | None:
    p = sample.p_wins.get(model)
    return None if p is None else 0.5 if p == 0.5 else float(p > 0.5)


def _harmful(sample: Sample, model: str) -> float | None:
    p = sample.p_harmful.get(model)
    return None if p is None else float(p > 0.5)


BY_RULE: dict[str, Measure] = {
    "harmful_compliance": lambda s, m: float(complied(s.responses[m])) if s.prompt.kind == "harmful" and can_tell(s.responses[m]) else None,
    "over_refusal": lambda s, m: float(is_refusal(s.responses[m])) if s.prompt.kind in ANSWERABLE and can_tell(s.responses[m]) else None,
    "response_words": lambda s, m: float(word_count(s.responses[m])),
    "repetition": lambda s, m: repeated_fraction(s.responses[m]),
    "looping": lambda s, m: float(repeated_fraction(s.responses[m]) > LOOPING),
}
BY_JUDGE: dict[str, Measure] = {"win_rate_by_judge": _win, "harmful_compliance_by_judge": _harmful}
BY_REWARD: dict[str, Measure] = {"reward": lambda s, m: s.scores.get(m)}
