"""Principles proposed out of a document, for a person to accept: the review file and what becomes of it.

    document ─▶ `cai.workbench.proposing` ─▶ review file (YAML, `accepted: false`) ─▶ a person ─▶ `accept` ─▶ constitution

Nothing that a model proposes is in force before somebody accepts it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from cai.constitution.importers import dump_blocks, principle_row, problems_of
from cai.constitution.lint import lint
from cai.constitution.wording import claim, is_negated, sentences
from cai.core.yaml_source import load_yaml
from cai.errors import ConstitutionError
from cai.records import Constitution, Principle

WORDED = ("critique", "revision", "ask_positive", "ask_negative", "compare")
"""What a principle has beside its statement."""
REPEATED = 0.75
"""Share of a question's content words from which it repeats the statement."""


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A principle that a passage suggests."""

    number: int
    where: str
    """`file:line`, or `file:line-line`."""
    quote: str
    principle: Principle
    accepted: bool = False
    section: str = ""
    also: tuple[str, ...] = ()
    """Passages further on whose principle says nearly the same."""


class DroppedProposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model wrote and is no proposal, or a section that it didn't answer."""

    where: str
    quote: str
    reason: str


class Review(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person decides on."""

    document: str
    id: str
    name: str
    description: str
    proposals: tuple[Proposal, ...]
    left_out: tuple[DroppedProposal, ...] = ()


def accept(review: Review, numbers: str | None, path: Path) -> Constitution:
    """Return a constitution of the proposals that a person accepted.

    Args:
        review: what was proposed.
        numbers: `all`, or numbers with commas between; None: those marked `accepted: true`.
        path: of the review file, for messages.

    Raises:
        ConstitutionError: none was accepted, there is no such number, or the result breaks the schema.
    """
    known = {p.number: p for p in review.proposals}
    if numbers is None:
        chosen = [p for p in review.proposals if p.accepted]
    elif numbers.strip() == "all":
        chosen = list(review.proposals)
    else:
        wanted = [part.strip() for part in numbers.split(",") if part.strip()]
        if unknown := [w for w in wanted if not w.isdecimal() or int(w) not in known]:
            raise ConstitutionError(f"--accept {numbers}: no proposal {', '.join(unknown)}; expected all, or some of 1 to {max(known)}")
        chosen = [p for p in review.proposals if str(p.number) in {str(int(w)) for w in wanted}]
    if not chosen:
        raise ConstitutionError(
            f"{path}: none of {len(known)} proposals is accepted. Mark some `accepted: true`, or give --accept all or 1,3,5"
        )
    constitution = Constitution(review.id, review.name, review.description, tuple(p.principle for p in chosen))
    problems = problems_of(constitution, path)
    ids = [p.id for p in constitution.principles]
    problems += [f"{path}: id {i!r} stands twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    if problems:
        raise ConstitutionError(f"{path}: nothing accepted: {len(problems)} problems\n" + "\n".join(f"  {p}" for p in problems))
    return constitution


def dump_review(review: Review) -> str:
    """Return a review file: YAML to be edited, with how to go on at its top. `load_review` reads it back."""
    rows: list[dict[str, Any]] = []
    for p in review.proposals:
        row: dict[str, Any] = {"number": p.number, "accepted": p.accepted, "where": p.where, "section": p.section, "quote": p.quote}
        rows.append({k: v for k, v in row.items() if v != ""} | ({"also": list(p.also)} if p.also else {}))
        rows[-1]["principle"] = principle_row(p.principle)
    left_out = [{"where": x.where, "quote": x.quote, "reason": x.reason} for x in review.left_out]
    whole: dict[str, Any] = {f: getattr(review, f) for f in ("document", "id", "name", "description")} | {"proposals": rows}
    head = (
        f"# Proposed from {review.document}: nothing here is in force. Correct the wording, set `accepted: true` where wanted, then:\n"
        "#   cai constitution import THIS-FILE -o constitution/NAME.yaml        (or --accept all, --accept 1,3,5)\n"
    )
    return head + dump_blocks(whole | ({"left_out": left_out} if left_out else {}), "proposals", "left_out")


def load_review(path: Path) -> Review:
    """Read a review file. Raises `ConstitutionError` where it isn't one."""
    source = load_yaml(path, ConstitutionError)
    try:
        return msgspec.convert(source.data, Review)
    except msgspec.ValidationError as e:
        raise ConstitutionError(
            f"{path}: not a review file: {e}. Expected what `cai constitution import DOCUMENT.md` writes; a constitution needs no import."
        ) from e


def drafted(principle_id: str, statement: str) -> Principle:
    """Make a principle out of its statement alone: requests and questions are the defaults, which are asked beside the statement.

    >>> drafted("no-guess", "Never guess.").ask_negative
    'Does the response break the principle?'
    """
    return Principle(principle_id, statement)


def worded(principle: Principle, texts: dict[str, str]) -> tuple[Principle, tuple[str, ...]]:
    """Put texts in place of a principle's own, one by one, each only if it holds up.

    Returns:
        The principle, and the names of the texts that are in it now.
    """
    kept = []
    for name in WORDED:
        candidate = replace(principle, **{name: texts.get(name, "")})  # type: ignore[arg-type]
        if holds_up(candidate, name):
            principle = candidate
            kept.append(name)
    return principle, tuple(kept)


def holds_up(principle: Principle, field: str) -> bool:
    """Whether lint finds nothing against a principle with this text in it, and the text is about what the statement is about.

    `ask_positive` must be negated as the statement is, and `ask_negative` the other way round if it repeats the statement's words. Small
    models ask about "words that a reader would not understand" where the statement has "words that a reader understands".
    """
    text: str = getattr(principle, field)
    mine, stated = claim(text).content, claim(principle.statement).content
    repeats = field == "ask_positive" or (field == "ask_negative" and len(mine & stated) >= REPEATED * len(mine))
    if repeats and (is_negated(text) == (field == "ask_positive")) not in map(is_negated, sentences(principle.statement)):
        return False
    return fault_of(principle) is None and bool(mine & stated)


def fault_of(principle: Principle) -> str | None:
    """Return the first thing that lint finds against a principle on its own; None where it finds nothing."""
    alone = Constitution("alone", "Alone", "One principle.", (principle,))
    found = lint(alone, kinds=principle.applies_to)
    return next((f.message for f in found if f.rule not in ("uncovered-kind", "rarely-drawn")), None)
