"""Text differences between two constitutions: principles added, removed, renamed and edited, by field and by word.

`cai.workbench.consequences` measures how a change affects revisions and labels.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from typing import Literal

from cai.records import Constitution, Principle

ChangeKind = Literal["added", "removed", "renamed", "edited"]
WordOp = Literal["same", "removed", "added"]
_PIECE = re.compile(r"\s+|\w+(?:['’]\w+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field before and after; empty on the side that lacks it."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PrincipleChange:
    """Change of one principle. `id` is the new id, or the old id of a removed principle."""

    kind: ChangeKind
    id: str
    fields: tuple[FieldChange, ...]
    outdated: tuple[str, ...] = ()
    """The principle's own requests and questions that are as they were while its statement changed: they may not fit any more."""


@dataclass(frozen=True, slots=True)
class ConstitutionDiff:
    """All changes between two constitutions."""

    header: tuple[FieldChange, ...]
    """Changes of `id`, `name` and `description`."""
    principles: tuple[PrincipleChange, ...]
    """Changed principles, in the order of the new constitution; removed principles come last."""
    unchanged: int
    """Number of unchanged principles."""
    reordered: bool
    """Whether the shared principles have another order. The order does not affect a run."""

    @property
    def is_empty(self) -> bool:
        """Whether the two constitutions are the same."""
        return not (self.header or self.principles or self.reordered)


def diff_constitutions(before: Constitution, after: Constitution) -> ConstitutionDiff:
    """Compare two constitutions, matching principles by id.

    A principle of which only the id changed is `renamed`. Its texts are the same, but it is drawn for other prompts.
    """
    old = {p.id: p for p in before.principles}
    new = {p.id: p for p in after.principles}
    gone = [p for p in before.principles if p.id not in new]
    changes: list[PrincipleChange] = []
    for p in after.principles:
        if p.id in old:
            if edited := field_changes(old[p.id], p):
                changes.append(PrincipleChange("edited", p.id, edited, outdated_wording(old[p.id], p)))
        elif twin := next((g for g in gone if replace(g, id=p.id) == p), None):
            gone.remove(twin)
            changes.append(PrincipleChange("renamed", p.id, (FieldChange("id", twin.id, p.id),)))
        else:
            changes.append(PrincipleChange("added", p.id, field_changes(None, p)))
    changes += [PrincipleChange("removed", p.id, field_changes(p, None)) for p in gone]
    shared = [i for i in old if i in new]
    header = tuple(
        FieldChange(name, getattr(before, name), getattr(after, name))
        for name in ("id", "name", "description")
        if getattr(before, name) != getattr(after, name)
    )
    unchanged = sum(old[i] == new[i] for i in shared)
    return ConstitutionDiff(header, tuple(changes), unchanged, shared != [i for i in new if i in old])


def field_changes(before: Principle | None, after: Principle | None) -> tuple[FieldChange, ...]:
    """Return the fields that differ, in order; for an added or removed principle, its fields that are not at their default."""
    found = []
    for f in fields(Principle):
        if f.name == "id":
            continue
        old, new = ("" if p is None else _shown(getattr(p, f.name)) for p in (before, after))
        alone = before is None or after is None
        if old != new and not (alone and getattr(after or before, f.name) == f.default):
            found.append(FieldChange(f.name, old, new))
    return tuple(found)


def outdated_wording(before: Principle, after: Principle) -> tuple[str, ...]:
    """Return the fields of a principle's own wording that did not change while its statement did; empty if the statement is the same.

    >>> old = Principle("a", "Be kind.", compare="Which response is kinder?")
    >>> outdated_wording(old, replace(old, statement="Be brief."))
    ('compare',)
    """
    if before.statement == after.statement:
        return ()
    return tuple(name for name, text in after.own_wording.items() if text == getattr(before, name))


def word_diff(before: str, after: str) -> list[tuple[WordOp, str]]:
    """Return a word diff of two texts: runs of words that are `same`, `removed` or `added`.

    Without the `added` runs it gives the first text, without the `removed` runs the second. A space or comma between two changes counts
    as changed, so that a rewritten phrase is one change.

    >>> word_diff("Be kind to all.", "Be fair to all.")
    [('same', 'Be '), ('removed', 'kind'), ('added', 'fair'), ('same', ' to all.')]
    """
    runs: list[tuple[WordOp, str]] = []
    for same, old, new in _steps(before, after):
        if same:
            runs.append(("same", old))
            continue
        if old:
            runs.append(("removed", old))
        if new:
            runs.append(("added", new))
    return runs


def _steps(before: str, after: str) -> Iterator[tuple[bool, str, str]]:
    """Yield alternating equal and changed stretches as (equal, old text, new text)."""
    a, b = _PIECE.findall(before), _PIECE.findall(after)
    pending_old = pending_new = ""
    for op, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        old, new = "".join(a[i:j]), "".join(b[k:m])
        if op == "equal" and not (re.search(r"\w", old) is None and (pending_old or pending_new) and j < len(a) and m < len(b)):
            if pending_old or pending_new:
                yield False, pending_old, pending_new
            pending_old = pending_new = ""
            yield True, old, new
        else:
            pending_old, pending_new = pending_old + old, pending_new + new
    if pending_old or pending_new:
        yield False, pending_old, pending_new


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
