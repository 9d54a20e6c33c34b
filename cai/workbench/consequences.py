"""Measure the effect of an edit to a constitution: which revisions and labels change on a sample, and how many calls that takes.

Both constitutions are applied to the same responses and pairs, and only to those that the edit can affect (`cai.workbench.reach`): prompts
that draw a changed principle are sampled first. Shared calls come from the call store, so the second constitution costs only the calls
under the changed principles. To attribute label changes, every
pair is also labelled under the old constitution with a single change applied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from cai.constitution.diff import ConstitutionDiff, PrincipleChange, diff_constitutions
from cai.core.workspace import RunDirectory
from cai.data.splits import conversation_id
from cai.errors import DataError, ReplyError
from cai.records import Constitution, Failure, Judgment, Prompt, Response, ResponsePair, RevisionTrace
from cai.session import Session
from cai.stats import clustered_share, paired_bootstrap, wilson
from cai.workbench.reach import Reach, labels, why_no_labels, why_no_revisions
from cai.workbench.sample import Calls, TrialData, calls_of, load_sample, sample_trial_data, trial_data_of_run

T = TypeVar("T", Response, ResponsePair)
DEFAULT_SAMPLE = 20


@dataclass(frozen=True, slots=True)
class RevisionChange:
    """A prompt whose revision changed, with the principles that each constitution drew for it."""

    prompt: Prompt
    principles_before: tuple[str, ...]
    principles_after: tuple[str, ...]
    before: str
    after: str
    dropped_before: str | None
    dropped_after: str | None


@dataclass(frozen=True, slots=True)
class LabelChange:
    """A pair whose label changed. `before` and `after` are probabilities that A is better, in [0, 1]."""

    pair: ResponsePair
    before: float
    after: float

    @property
    def flipped(self) -> bool:
        """Return whether the preferred response changed, including changes to or from a tie."""
        return _side(self.before) != _side(self.after)


@dataclass(frozen=True, slots=True)
class LabelShift:
    """Size of the label changes, over the pairs with a label under both constitutions."""

    cause: str
    """Id of the changed principle; `all` for all changes together."""
    n: int
    changed: int
    flipped: int
    flip_rate: float
    flip_low: float
    flip_high: float
    mean_shift: float
    """Mean |Δp| over all n pairs; its 95 % interval is below."""
    shift_low: float
    shift_high: float


@dataclass(frozen=True, slots=True)
class Consequences:
    """Differences between two constitutions on one sample."""

    text: ConstitutionDiff
    prompts: int
    """Number of sampled prompts."""
    revisions: int
    """Number of prompts that draw a changed principle and have a revision under both constitutions."""
    revision_rate: float
    """Share of them whose revision changed; its 95 % interval is below."""
    revision_low: float
    revision_high: float
    revision_changes: tuple[RevisionChange, ...]
    labels: LabelShift | None
    """Total change of the labels that the edit can affect; None if there is none."""
    label_changes: tuple[LabelChange, ...]
    causes: tuple[LabelShift, ...]
    """Label change caused by each changed principle alone."""
    uncovered: int
    """Number of prompts left out because one constitution has no principle for their kind."""
    calls: dict[str, Calls]
    """Calls by step: `sample`, `before`, `after` and, if several principles changed, `attribution`."""
    failures: tuple[Failure, ...]
    no_revisions: str = ""
    """Why the edit can't change any revision of the sample; empty if it can."""
    no_labels: str = ""
    """Why the edit can't change any label of the sample; empty if it can."""


async def compare_on_sample(
    before: Constitution,
    after: Constitution,
    session: Session,
    sample: int,
    *,
    prompts: Path | None = None,
    run: RunDirectory | None = None,
) -> Consequences:
    """Compare two constitutions on a sample of prompts, or on the responses and pairs of a run.

    Args:
        session: open session; with `run`, it has the run's settings.
        sample: number of prompts, chosen by hash.
        prompts: file of prompts; None: the recipe's training prompts.
        run: run whose responses and pairs are used instead of new ones.
    """
    reach = Reach(before, after, session.recipe)
    if run is not None:
        data = trial_data_of_run(run, sample, reach.rank)
    else:
        chosen = load_sample(prompts, session, sample, reach.rank)
        affected = [p for p in chosen if reach.rank(p) < 2]
        data = replace(await sample_trial_data(affected, session), unaffected=len(chosen) - len(affected))
    return await consequences(before, after, data, session)


async def consequences(before: Constitution, after: Constitution, data: TrialData, session: Session) -> Consequences:
    """Revise and label the texts that the edit can affect under both constitutions, and compare the results."""
    text = diff_constitutions(before, after)
    calls = {"sample": calls_of(session)}
    covered, covered_pairs = _covered(data.responses, before, after), _covered(data.pairs, before, after)
    if (data.responses or data.pairs) and not covered and not covered_pairs:
        kinds = " or ".join(sorted({*(r.prompt.kind for r in data.responses), *(p.prompt.kind for p in data.pairs)}))
        raise DataError(f"nothing to compare: one of the two constitutions has no principle for any {kinds} prompt")
    reach = Reach(before, after, session.recipe)
    responses = [r for r in covered if reach.revises(r.prompt)]
    pairs = [p for p in covered_pairs if labels(p, session.judge(before), session.judge(after))]

    start = calls_of(session)
    old_traces, old_labels = await _revisions(responses, before, session), await _labels(pairs, before, session, "labels before")
    calls["before"] = calls_of(session) - start

    start = calls_of(session)
    new_traces, new_labels = await _revisions(responses, after, session), await _labels(pairs, after, session, "labels after")
    calls["after"] = calls_of(session) - start

    start = calls_of(session)
    causes = []
    talks = {p.id: conversation_id(p.prompt) for p in pairs}
    for change in text.principles if pairs else ():
        if len(text.principles) == 1:
            only = new_labels
        else:
            hybrid = with_change(before, after, change)
            only = await _labels(_covered(pairs, hybrid), hybrid, session, f"labels with only {change.id} changed")
        if shift := label_shift(change.id, old_labels, only, session.recipe.seed, talks):
            causes.append(shift)
    if len(text.principles) > 1:
        calls["attribution"] = calls_of(session) - start

    both = [i for i in old_traces if i in new_traces]
    changed = tuple(_revision_change(old_traces[i], new_traces[i]) for i in both if _differ(old_traces[i], new_traces[i]))
    low, high = wilson(len(changed), len(both)) if both else (0.0, 1.0)
    moved = [
        LabelChange(p, old_labels[p.id], new_labels[p.id])
        for p in pairs
        if p.id in old_labels and p.id in new_labels and old_labels[p.id] != new_labels[p.id]
    ]
    prompts = {r.prompt.id for r in data.responses} | {p.prompt.id for p in data.pairs}
    sampled = len(prompts) + data.unaffected
    compared = {r.prompt.id for r in covered} | {p.prompt.id for p in covered_pairs}
    return Consequences(
        text,
        sampled,
        len(both),
        len(changed) / len(both) if both else 0.0,
        low,
        high,
        changed,
        label_shift("all", old_labels, new_labels, session.recipe.seed, talks),
        tuple(sorted(moved, key=lambda m: (not m.flipped, -abs(m.after - m.before)))),
        tuple(sorted(causes, key=lambda s: -s.mean_shift)),
        len(prompts - compared),
        calls,
        tuple(session.failures),
        "" if responses else why_no_revisions(text, sampled),
        "" if pairs else why_no_labels(text, session.recipe.feedback.protocol, sampled),
    )


def with_change(before: Constitution, after: Constitution, change: PrincipleChange) -> Constitution:
    """Return the old constitution with one change applied. The position of a principle does not affect calls or labels."""
    old_id = change.fields[0].before if change.kind == "renamed" else change.id
    kept = tuple(p for p in before.principles if p.id != old_id)
    return replace(before, principles=kept + tuple(p for p in after.principles if p.id == change.id))


def label_shift(
    cause: str, before: Mapping[str, float], after: Mapping[str, float], seed: int, talks: Mapping[str, str]
) -> LabelShift | None:
    """Measure the label changes; return None if no pair has both labels.

    Args:
        talks: conversation by pair; pairs of one are not independent.
    """
    ids = [i for i in before if i in after]
    if not ids:
        return None
    n, clusters = len(ids), [talks.get(i, i) for i in ids]
    shifts = [abs(after[i] - before[i]) for i in ids]
    flips = [float(_side(before[i]) != _side(after[i])) for i in ids]
    low, high = clustered_share(flips, clusters)
    mean, shift_low, shift_high = paired_bootstrap(shifts, seed, clusters)
    flipped = int(sum(flips))
    return LabelShift(cause, n, sum(s > 0 for s in shifts), flipped, flipped / n, low, high, mean, shift_low, shift_high)


async def _revisions(responses: Sequence[Response], constitution: Constitution, session: Session) -> dict[str, RevisionTrace]:
    """Critique and revise every response; the revisions are not judged."""
    work = partial(session.critique_and_revise, constitution=constitution)
    revised = [r for r in responses if r.prompt.kind in session.recipe.critique.kinds]
    traces = await session.each(revised, work, "revisions", lambda r: r.prompt.id)
    return {t.prompt.id: t for t in traces}


async def _labels(pairs: Sequence[ResponsePair], constitution: Constitution, session: Session, what: str) -> dict[str, float]:
    """Return the judge's probability that A is better, by pair."""
    judge = session.judge(constitution)

    async def work(pair: ResponsePair) -> Judgment:
        judgment = await judge(pair)
        if judgment.failure is not None:
            raise ReplyError(judgment.failure, judgment.detail)
        return judgment

    judgments = await session.each(pairs, work, what, lambda p: p.id)
    return {j.pair_id: j.p_a for j in judgments if j.p_a is not None}


def _covered(items: Sequence[T], *constitutions: Constitution) -> list[T]:
    """Return the items for whose kind every constitution has a principle."""
    return [item for item in items if all(c.for_kind(item.prompt.kind) for c in constitutions)]


def _differ(before: RevisionTrace, after: RevisionTrace) -> bool:
    return before.final != after.final or before.dropped != after.dropped


def _revision_change(before: RevisionTrace, after: RevisionTrace) -> RevisionChange:
    drawn = [tuple(r.critique.principle_id for r in trace.rounds) for trace in (before, after)]
    return RevisionChange(before.prompt, drawn[0], drawn[1], before.final, after.final, before.dropped, after.dropped)


def _side(p: float) -> int:
    return (p > 0.5) - (p < 0.5)
