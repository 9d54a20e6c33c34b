"""A run's texts, before and after: revisions, responses under the principles, labelled pairs, answers of the models.

Files are streamed, and only the rows of one page are kept, so a run of any size can be browsed.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from typing import Literal, TypeVar, get_args

from cai.core.jsonl import read_existing
from cai.core.manifest import read_manifest
from cai.core.text.checks import follows
from cai.core.text.words import words
from cai.core.workspace import RunDirectory
from cai.errors import ReplyError
from cai.evaluate.policies import AGAINST, MODELS
from cai.records import Critique, Preference, Principle, Prompt, PromptKind, ResponsePair, RevisionTrace, Sample, SFTExample

R = TypeVar("R")
What = Literal["revisions", "distilled", "labels", "answers"]
Order = Literal["file", "worst", "change", "disagreement"]
FILES: dict[What, tuple[str, ...]] = {
    "revisions": ("traces",),
    "distilled": ("distilled",),
    "labels": ("preferences", "preferences_heldout"),
    "answers": ("samples",),
}
"""Record files that each view reads, in the order of the pipeline."""
PER_PAGE = 20


@dataclass(frozen=True, slots=True)
class Change:
    """A text before and after, for one prompt."""

    what: What
    prompt: Prompt
    before: str
    after: str
    names: tuple[str, str]
    """What the two texts are. Equal names: there is only one text."""
    principle_ids: tuple[str, ...] = ()
    p_better: float | None = None
    """Probability that the text after is better, in [0, 1]; None if nobody judged."""
    gain: float | None = None
    """By how much it is better; for sorting. Reward points for answers, else `p_better` - 0.5."""
    disagreement: float | None = None
    """The larger, the less sure is the verdict."""
    follows: tuple[bool | None, bool | None] = (None, None)
    """Whether the texts follow the chosen principle's check."""
    note: str = ""
    critiques: tuple[Critique, ...] = ()
    """Critiques that led from one to the other."""
    steps: tuple[str, ...] = ()
    """The text after each critique."""


@dataclass(frozen=True, slots=True)
class Query:
    """What to show of a run."""

    what: What | None = None
    """None: everything about `prompt`, in the order of the pipeline."""
    search: str = ""
    kind: str = ""
    principle: str = ""
    prompt: str = ""
    """Id of a prompt: only its rows."""
    order: Order = "file"
    page: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """One page of rows."""

    rows: tuple[Change, ...]
    total: int
    """Number of rows that match the query."""
    principles: tuple[str, ...]
    """Ids to filter by."""
    kinds: tuple[PromptKind, ...]


def views_of(run: RunDirectory) -> list[What]:
    """Return the views that the run has records for."""
    return [what for what in get_args(What) if any(run.data(name).is_file() for name in FILES[what])]


def browse(run: RunDirectory, query: Query) -> Found:
    """Return the rows of a run that match a query.

    Raises:
        DataError: a file of the run can't be read.
    """
    manifest = read_manifest(run.manifest)
    known = {p.id: p for p in manifest.principles} if manifest is not None else {}
    seen, kinds = set[str](), set[PromptKind]()
    total = 0

    def matching() -> Iterator[Change]:
        nonlocal total
        for what in get_args(What) if query.what is None else (query.what,):
            for row in _READ[what](run, known.get(query.principle)):
                seen.update(row.principle_ids)
                kinds.add(row.prompt.kind)
                if _matches(row, query):
                    total += 1
                    yield row

    last = (query.page + 1) * PER_PAGE
    key = _KEYS[query.order]
    rows = nsmallest(last, enumerate(matching()), key=lambda found: (key(found[1]), found[0]))
    ids = [i for i in known if i in seen or query.what == "answers"]
    return Found(tuple(row for _, row in rows[last - PER_PAGE :]), total, (*ids, *sorted(seen - known.keys())), tuple(sorted(kinds)))


def _matches(row: Change, query: Query) -> bool:
    if query.prompt and row.prompt.id != query.prompt:
        return False
    if query.kind and row.prompt.kind != query.kind:
        return False
    if query.principle and query.principle not in row.principle_ids and row.follows == (None, None):
        return False
    wanted = query.search.casefold()
    texts = (*(m.content for m in row.prompt.messages), row.before, row.after, row.prompt.id)
    return not wanted or any(wanted in text.casefold() for text in texts)


def _revisions(run: RunDirectory, principle: Principle | None) -> Iterator[Change]:
    for t in _records(run, "revisions", RevisionTrace):
        yield Change(
            "revisions",
            t.prompt,
            t.response,
            t.final,
            ("first response", "last revision"),
            tuple(dict.fromkeys(r.critique.principle_id for r in t.rounds)),
            *_judged(t.p_revised),
            follows=_both(principle, t.prompt.kind, t.response, t.final),
            note=f"{'Revision left' if t.stands else 'Kept'} out of the training data: {t.dropped}" if t.dropped is not None else "",
            critiques=tuple(r.critique for r in t.rounds),
            steps=tuple(r.revision.text for r in t.rounds),
        )


def _distilled(run: RunDirectory, principle: Principle | None) -> Iterator[Change]:
    told = "with the principles in context"
    plain = {p.prompt.id: p.response_b for p in read_existing(run.data("distilled_pairs"), ResponsePair)}
    for e in _records(run, "distilled", SFTExample):
        before, completion = plain.get(e.prompt.id), e.completion
        names = (told, told) if before is None else ("without the principles", told)
        before = completion if before is None else before
        yield Change(
            "distilled",
            e.prompt,
            before,
            completion,
            names,
            e.principle_ids,
            follows=_both(principle, e.prompt.kind, before, completion),
        )


def _labels(run: RunDirectory, principle: Principle | None) -> Iterator[Change]:
    for p in _records(run, "labels", Preference):
        yield Change(
            "labels",
            p.prompt,
            p.rejected,
            p.chosen,
            ("rejected", "chosen"),
            p.principle_ids,
            *_judged(p.p_chosen),
            follows=_both(principle, p.prompt.kind, p.rejected, p.chosen),
            note=f"Labelled by {p.source}",
        )


def _answers(run: RunDirectory, principle: Principle | None) -> Iterator[Change]:
    for s in _records(run, "answers", Sample):
        model = next((m for m in reversed(MODELS) if m in s.responses), next(iter(s.responses), ""))
        before, after = s.responses.get(AGAINST, ""), s.responses.get(model, "")
        p_wins, gain = s.p_wins.get(model), None
        if model in s.scores and AGAINST in s.scores:
            gain = s.scores[model] - s.scores[AGAINST]
        yield Change(
            "answers",
            s.prompt,
            before,
            after,
            (AGAINST, model),
            (),
            p_wins,
            gain if gain is not None or p_wins is None else p_wins - 0.5,
            max(s.disagreement.values(), default=None),
            _both(principle, s.prompt.kind, before, after),
        )


def _judged(p: float | None) -> tuple[float | None, float | None, float | None]:
    """Return a probability with the gain and the disagreement that it means."""
    return p, None if p is None else p - 0.5, None if p is None else 0.5 - abs(p - 0.5)


def _both(principle: Principle | None, kind: PromptKind, before: str, after: str) -> tuple[bool | None, bool | None]:
    return (None, None) if principle is None else (follows_check(principle, kind, before), follows_check(principle, kind, after))


def follows_check(principle: Principle, kind: PromptKind, text: str) -> bool | None:
    """Return whether a text follows a principle's check; None if it has none for the kind, or a pattern ran out of time."""
    try:
        return follows(principle, kind, text)
    except ReplyError:
        return None


def _records(run: RunDirectory, what: What, record_type: type[R]) -> Iterator[R]:
    for name in FILES[what]:
        yield from read_existing(run.data(name), record_type)


def _kept(row: Change) -> float:
    """Return the share of the words that the two texts have in common, in [0, 1]."""
    before, after = Counter(words(row.before)), Counter(words(row.after))
    return 2 * (before & after).total() / max(before.total() + after.total(), 1)


def _worst(row: Change) -> tuple[bool, float]:
    """Return a key that puts what breaks the chosen principle first, then the smallest gain; rows without either last."""
    return row.follows[1] is not False, float("inf") if row.gain is None else row.gain


_READ: dict[What, Callable[[RunDirectory, Principle | None], Iterator[Change]]] = {
    "revisions": _revisions,
    "distilled": _distilled,
    "labels": _labels,
    "answers": _answers,
}
_KEYS: dict[Order, Callable[[Change], object]] = {
    "file": lambda row: 0,
    "worst": _worst,
    "change": _kept,
    "disagreement": lambda row: float("inf") if row.disagreement is None else -row.disagreement,
}
