"""What changed between two constitutions, as text: principles added, removed, renamed and edited, field by field and word by word.

What the change does to revisions and labels is for a floor where models are asked (`cai.workbench.consequences`).
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
    """One field before and after; empty where it isn't there."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PrincipleChange:
    """What happened to one principle. `id` is the new one, and the old one where it was removed."""

    kind: ChangeKind
    id: str
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True)
class ConstitutionDiff:
    """Every change, in the order of the new constitution; removed principles come last."""

    header: tuple[FieldChange, ...]
    """Of `id`, `name` and `description`."""
    principles: tuple[PrincipleChange, ...]
    unchanged: int
    reordered: bool
    """The principles that both have stand in another order, which no run can tell."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing that can be read has changed."""
        return not (self.header or self.principles or self.reordered)


def diff_constitutions(before: Constitution, after: Constitution) -> ConstitutionDiff:
    """Compare two constitutions by their principles' ids.

    A principle that only got another id is `renamed`: nothing it asks has changed, but it will be drawn for other prompts.
    """
    old = {p.id: p for p in before.principles}
    new = {p.id: p for p in after.principles}
    gone = [p for p in before.principles if p.id not in new]
    changes: list[PrincipleChange] = []
    for p in after.principles:
        if p.id in old:
            if edited := field_changes(old[p.id], p):
                changes.append(PrincipleChange("edited", p.id, edited))
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
    """Return the fields that differ, in their order; for a principle that only one side has, those that hold something of its own."""
    found = []
    for f in fields(Principle):
        if f.name == "id":
            continue
        old, new = ("" if p is None else _shown(getattr(p, f.name)) for p in (before, after))
        alone = before is None or after is None
        if old != new and not (alone and getattr(after or before, f.name) == f.default):
            found.append(FieldChange(f.name, old, new))
    return tuple(found)


def word_diff(before: str, after: str) -> list[tuple[WordOp, str]]:
    """Return two texts as runs of words that both have, that only the first has, and that only the second has.

    Joining the runs that aren't `added` gives the first text, and those that aren't `removed` the second. A lone space or comma between
    two changes is changed with them, so that a rewritten phrase reads as one.

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
    """Yield alternating stretches, the same or not, as (same, old text, new text)."""
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
