"""What is known of one principle: its text, its adherence in runs, the prompts that draw it, example answers, and its last change."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

from cai.constitution.diff import ConstitutionDiff, PrincipleChange, diff_constitutions
from cai.constitution.load import parse_constitution
from cai.core.jsonl import read_existing
from cai.core.manifest import read_manifest
from cai.core.workspace import PAIR_FILES, RunDirectory
from cai.errors import CaiError, ConstitutionError, DataError
from cai.evaluate.adherence_table import adherence_rows, trained_model
from cai.evaluate.policies import AGAINST, MODELS
from cai.records import (
    LABELLED_KINDS,
    Constitution,
    EvalResult,
    Judgment,
    Principle,
    Prompt,
    PromptKind,
    ResponseCheck,
    ResponsePair,
    RevisionTrace,
    Sample,
    SFTExample,
)
from cai.report.adherence import COLUMNS, AdherenceView, adherence_view
from cai.studio.browsing import follows_check
from cai.studio.drafts import Drafts

R = TypeVar("R")
PROMPTS_SHOWN = 8
EXAMPLES_SHOWN = 3
"""Number of examples on each side."""


@dataclass(frozen=True, slots=True)
class RunAdherence:
    """Adherence to the principle in one run."""

    run: str
    row: AdherenceView | None
    """None if the run has no measurement of it."""
    reworded: bool
    """Whether the run used another statement or check than the editor holds."""


@dataclass(frozen=True, slots=True)
class KindRow:
    """How often prompts of one kind draw the principle."""

    kind: PromptKind
    share: float
    """Probability in [0, 1] that it is drawn first."""
    prompts: int
    """Number of the run's prompts of this kind."""
    drew: int
    """Number of them that drew it."""
    examples: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class CheckedSample:
    """Answers of the base model and of the trained model to one prompt, by the principle's check."""

    sample: Sample
    columns: tuple[tuple[str, str, bool | None], ...]
    """Model, answer, and whether it follows the check; None if that can't be decided."""


@dataclass(frozen=True, slots=True)
class ExampleAnswers:
    """Example answers of one run."""

    model: str
    """Name of the model whose answers are shown; empty for pairs."""
    best: tuple[CheckedSample, ...] = ()
    """Answers that follow the check, by falling reward."""
    worst: tuple[CheckedSample, ...] = ()
    """Answers that break it, by rising reward."""
    followed: int = 0
    decided: int = 0
    pairs: tuple[tuple[ResponsePair, float], ...] = ()
    """Without a check: pairs that were judged by this principle alone, the better response first, with its probability; surest first."""


@dataclass(frozen=True, slots=True)
class PrinciplePage:
    """All that the page shows."""

    principle: Principle
    index: int
    conditions: tuple[tuple[str, ...], ...]
    """Conditions of each block of the check, in words."""
    since: str
    """What the change is measured from; empty if nothing has changed."""
    change: PrincipleChange | None
    measured: tuple[RunAdherence, ...]
    run: str
    """Run of the prompts and examples; empty without one."""
    kinds: tuple[KindRow, ...]
    examples: ExampleAnswers | None
    problems: tuple[str, ...]
    """Runs that can't be read."""


def principle_page(drafts: Drafts, name: str, principle_id: str, runs: Sequence[RunDirectory], chosen: str = "") -> PrinciplePage:
    """Collect what is known of a principle.

    Args:
        drafts: the constitutions.
        name: the constitution.
        principle_id: id of the principle in the text in the editor.
        runs: all runs, latest first.
        chosen: run whose prompts and answers are shown; empty: the latest that used the constitution.

    Raises:
        ConstitutionError: the text is not a valid constitution.
        DataError: it has no such principle.
    """
    saved, draft = drafts.versions(name)
    index = next((i for i, p in enumerate(draft.principles) if p.id == principle_id), None)
    if index is None:
        raise DataError(f"{name} has no principle {principle_id[:64]!r}")
    principle, measured, problems = draft.principles[index], [], []
    used: dict[str, RunDirectory] = {}
    for run in runs:
        try:
            if (found := _measured(run, draft.id, principle)) is not None:
                used[run.path.name] = run
                measured.append(found)
        except CaiError as e:
            problems.append(f"{run.path.name}: {e}")
    shown = used.get(chosen) or next(iter(used.values()), None)
    kinds, examples = _kinds(draft, principle, ()), None
    if shown is not None:
        try:
            kinds = _kinds(draft, principle, _drawing(shown, principle_id), _all(shown, "prompts", Prompt))
            examples = _by_check(principle, _all(shown, "samples", Sample)) if principle.check else _by_judge(principle, shown)
        except CaiError as e:
            problems.append(f"{shown.path.name}: {e}")
    since, change = _change(drafts, name, saved, draft, principle_id)
    conditions = tuple(tuple(_conditions(check)) for check in principle.check)
    where = "" if shown is None else shown.path.name
    return PrinciplePage(principle, index, conditions, since, change, tuple(measured), where, kinds, examples, tuple(problems))


def _measured(run: RunDirectory, constitution_id: str, principle: Principle) -> RunAdherence | None:
    """Return a run's measurement; None if the run did not use the principle."""
    manifest = read_manifest(run.manifest)
    if manifest is None or manifest.constitution is None or manifest.constitution.id != constitution_id:
        return None
    then = next((p for p in manifest.constitution.principles if p.id == principle.id), None)
    if then is None:
        return None
    rows = adherence_rows(list(_all(run, "evaluation", EvalResult)))
    row = next((r for r in rows if r.id == principle.id and not r.control), None)
    reworded = (then.statement, then.check) != (principle.statement, principle.check)
    return RunAdherence(
        run.path.name, None if row is None else adherence_view(row, "", (*COLUMNS[:3], trained_model(row) or "policy")), reworded
    )


def _all(run: RunDirectory, name: str, record_type: type[R]) -> Iterator[R]:
    return read_existing(run.data(name), record_type)


def _drawing(run: RunDirectory, principle_id: str) -> Iterator[Prompt]:
    """Return the prompts whose critique, distilled response or label used the principle, each once."""
    seen = set[str]()

    def every() -> Iterator[Prompt]:
        for trace in _all(run, "traces", RevisionTrace):
            if any(r.critique.principle_id == principle_id for r in trace.rounds):
                yield trace.prompt
        yield from (e.prompt for e in _all(run, "distilled", SFTExample) if principle_id in e.principle_ids)
        judged = {j.pair_id for j in _all(run, "judgments", Judgment) if principle_id in j.principle_ids}
        for name in PAIR_FILES:
            yield from (pair.prompt for pair in _all(run, name, ResponsePair) if pair.id in judged)

    for prompt in every():
        if prompt.id not in seen:
            seen.add(prompt.id)
            yield prompt


def _kinds(
    constitution: Constitution, principle: Principle, drawing: Iterator[Prompt] | tuple[()], prompts: Iterator[Prompt] | tuple[()] = ()
) -> tuple[KindRow, ...]:
    shares = constitution.draw_shares(principle)
    totals = Counter(p.kind for p in prompts)
    drew = Counter[PromptKind]()
    examples: dict[PromptKind, list[Prompt]] = {}
    for prompt in drawing:
        drew[prompt.kind] += 1
        if drew[prompt.kind] <= PROMPTS_SHOWN:
            examples.setdefault(prompt.kind, []).append(prompt)
    return tuple(KindRow(k, shares[k], totals[k], drew[k], tuple(examples.get(k, ()))) for k in LABELLED_KINDS)


def _by_check(principle: Principle, samples: Iterator[Sample]) -> ExampleAnswers | None:
    """Return answers that follow and that break the check, of the last trained model; None if there are none to decide."""
    found: list[tuple[float, bool, CheckedSample]] = []
    model = ""
    for sample in samples:
        model = model or next((m for m in reversed(MODELS) if m in sample.responses), "") or next(reversed(sample.responses), "")
        verdict = None if model not in sample.responses else follows_check(principle, sample.prompt.kind, sample.responses[model])
        if verdict is not None:
            shown = [m for m in dict.fromkeys((AGAINST, model)) if m in sample.responses]
            columns = tuple((m, sample.responses[m], follows_check(principle, sample.prompt.kind, sample.responses[m])) for m in shown)
            found.append((sample.scores.get(model, 0.0), verdict, CheckedSample(sample, columns)))
    if not found:
        return None
    best = [s for _, good, s in sorted(found, key=lambda f: -f[0]) if good]
    worst = [s for _, good, s in sorted(found, key=lambda f: f[0]) if not good]
    return ExampleAnswers(model, tuple(best[:EXAMPLES_SHOWN]), tuple(worst[:EXAMPLES_SHOWN]), len(best), len(found))


def _by_judge(principle: Principle, run: RunDirectory) -> ExampleAnswers | None:
    """Return the pairs of which a judge is surest under this principle alone; None if there are none."""
    judged = {j.pair_id: j.p_a for j in _all(run, "judgments", Judgment) if j.principle_ids == (principle.id,) and j.p_a is not None}
    surest = sorted((i for i in judged if judged[i] != 0.5), key=lambda i: (-abs(judged[i] - 0.5), i))[: 2 * EXAMPLES_SHOWN]
    pairs: dict[str, tuple[ResponsePair, float]] = {}
    for name in PAIR_FILES:
        for pair in _all(run, name, ResponsePair):
            if pair.id in surest:
                p_a = judged[pair.id]
                pairs[pair.id] = (pair, p_a) if p_a > 0.5 else (pair.swapped(), 1 - p_a)
    return ExampleAnswers("", pairs=tuple(pairs[i] for i in surest if i in pairs)) if pairs else None


def _change(drafts: Drafts, name: str, saved: Constitution, draft: Constitution, principle_id: str) -> tuple[str, PrincipleChange | None]:
    """Return the principle's change since the last version that had it otherwise, and what that version is."""
    if (found := _of(diff_constitutions(saved, draft), principle_id)) is not None:
        return "the saved file", found
    for version in drafts.history(name):
        try:
            earlier = parse_constitution(version.text, drafts.path(name))
        except ConstitutionError:  # saved by another program before it was valid
            continue
        if (found := _of(diff_constitutions(earlier, draft), principle_id)) is not None:
            return f"the version until {version.saved}", found
    return "", None


def _of(diff: ConstitutionDiff, principle_id: str) -> PrincipleChange | None:
    return next((change for change in diff.principles if change.id == principle_id and change.kind != "removed"), None)


def _conditions(check: ResponseCheck) -> Iterator[str]:
    """Yield the conditions of a block as a constitution's file writes them."""
    for f in fields(check):
        value = getattr(check, f.name)
        if value not in (None, (), False) or (f.name == "refuses" and value is False):
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
            yield f"{f.name}: {text}"
