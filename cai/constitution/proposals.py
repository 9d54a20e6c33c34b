"""From a narrative document to a constitution, with a person in between: principles are proposed, each tied to its passage, and only
those that somebody accepts become part of one.

    document ─▶ `propose` ─▶ review file (YAML, `accepted: false`) ─▶ a person ─▶ `accept` ─▶ constitution

The wording of requests and questions is made by fixed rules out of the sentence; each principle's `source` quotes it, with file and line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from cai.constitution.importers import dump_blocks, kebab, principle_row, problems_of, with_unique_ids
from cai.constitution.lint import STATEMENT_ALIKE, lint
from cai.constitution.narrative import MAX_WORDS, Norm, Sentence, demands, name_of_assistant, sentences_of, without_connective
from cai.constitution.wording import FUNCTION_WORDS, claim, cosine, opposed, vectors, words
from cai.core.yaml_source import load_yaml
from cai.errors import ConstitutionError
from cai.records import Constitution, Principle

DOCUMENTS = (".md", ".markdown", ".txt", ".rst")
MAX_BYTES = 4 * 1024 * 1024
_QUOTE_LENGTH = 600
_PRONOUN = re.compile(r"^(?:it|you|we)(?= (?:should|must|shall|may|ought|needs?|has|have|never|always|can))", re.IGNORECASE)
_SAYS_LITTLE = FUNCTION_WORDS | {"assistant", "response", "model", "never", "not"}


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
    """Passages further on that say nearly the same."""


class LeftOutSentence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sentence that demands something, and is no proposal."""

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
    left_out: tuple[LeftOutSentence, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    sentence: Sentence
    where: str
    principle: Principle


def propose(path: Path) -> Review:
    """Read a document and propose principles, in its order; a sentence that nearly repeats an earlier one is put beside that.

    Raises:
        ConstitutionError: it can't be read, or demands nothing of an assistant.
    """
    text = _read(path)
    name = name_of_assistant(text)
    found: list[_Found] = []
    left_out: list[LeftOutSentence] = []
    for s in sentences_of(text):
        where = f"{path.name}:{s.line}" if s.line == s.end_line else f"{path.name}:{s.line}-{s.end_line}"
        demand = demands(s.text, name)
        made = _clean(where, s.text, demand, name) if isinstance(demand, Norm) else demand
        if isinstance(made, Principle):
            found.append(_Found(s, where, made))
        elif made is not None:
            left_out.append(LeftOutSentence(where, s.text, made))
    if not found:
        raise ConstitutionError(
            f"{path}: no sentence says what an assistant should or must not do ({len(left_out)} say it of others). Write such sentences, "
            "for example 'The assistant should name its sources.'"
        )
    kept = list(_without_repeats(found))
    principles = with_unique_ids(f.principle for f, _ in kept)
    return Review(
        path.name,
        kebab(path.stem)[:64].strip("-") or "imported",
        f"Proposed from {path.name}"[:120],
        f"Accepted from what was proposed out of {path.name}. The wording of requests and questions was made by rule; write better ones.",
        tuple(
            Proposal(i, f.where, f.sentence.text, p, False, f.sentence.section, tuple(also))
            for i, ((f, also), p) in enumerate(zip(kept, principles, strict=True), 1)
        ),
        tuple(left_out),
    )


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
        f"# Proposed from {review.document}: nothing here is in force. Mend the wording, set `accepted: true` where it is wanted, then:\n"
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


def worded(principle_id: str, statement: str, norm: Norm, where: str, quote: str) -> Principle:
    """Make a principle by rule. What can't be taken apart is quoted whole, in a rule that is followed or broken.

    >>> worded("x", "The assistant must not guess.", Norm(True, "guess"), "a.md:1", "…").ask_positive
    'In the response, does the assistant take care not to guess?'
    """
    short = quote if len(quote) <= _QUOTE_LENGTH else quote[: _QUOTE_LENGTH - 1] + "…"
    source = f"{where}: “{short}” (made by rule: critique, revision, ask_positive, ask_negative, compare)"
    texts = _from_action(norm) if norm.action else _from_whole(statement)
    critique, revision, positive, negative, compare = map(_sentence, texts)
    return Principle(principle_id, statement, critique, revision, positive, negative, compare, source=source)


def _from_whole(statement: str) -> tuple[str, str, str, str, str]:
    rule = f"“{statement}”"
    asked = f"One rule is: {rule}"
    return (
        f"Say where your last response breaks this rule, and how: {rule}",
        f"Rewrite your last response so that it follows this rule: {rule}",
        f"{asked} Does the response follow it?",
        f"{asked} Does the response break it?",
        f"{asked} Which response follows it better?",
    )


def _from_action(norm: Norm) -> tuple[str, str, str, str, str]:
    """Return critique, revision, positive and negative question, and comparison."""
    when = f"{norm.condition}, " if norm.condition else ""
    who = "the response" if norm.about_text else "the assistant"
    lead = when if norm.about_text else f"In the response, {when[:1].lower()}{when[1:]}"
    action, avoided = norm.action, re.match(r"(?:avoid|refrain from) (.+)", norm.action, re.DOTALL)
    is_state = re.match(r"be (.+)", action, re.DOTALL)
    if avoided and not norm.negative:
        thing = avoided[1]
        doing = thing.split()[0].endswith("ing")
        breaks = f"does {who} go wrong by {thing}" if doing else f"does {who} resort to {thing}"
        found = f"goes wrong by {thing}" if doing else f"resorts to {thing}"
        return (
            f"{when}point out every place in your last response that {found}. Quote it",
            f"{when}rewrite your last response so as to avoid {thing}",
            f"{lead}does {who} {action}?",
            f"{lead}{breaks}?",
            f"{when}which response does more to {action}?",
        )
    plainly = f"is {who} {is_state[1]}" if is_state else f"does {who} {action}"
    if norm.negative:
        return (
            f"{when}say where your last response happens to {action}. Quote the words",
            f"{when}rewrite your last response so as not to {action}",
            f"{lead}does {who} take care not to {action}?",
            f"{lead}{plainly}?",
            f"{when}which response does less to {action}?",
        )
    return (
        f"{when}say where your last response fails to {action}, or only half does it",
        f"{when}rewrite your last response so as to {action}",
        f"{lead}{plainly}?",
        f"{lead}does {who} fail to {action}?",
        f"{when}which response does more to {action}?",
    )


def _clean(where: str, quote: str, norm: Norm, name: str) -> Principle | str:
    """Word a demand so that lint finds no error in it: taken apart, else quoted whole; else return why not."""
    if len(words(quote)) > MAX_WORDS:
        return f"it has more than {MAX_WORDS} words; split it"
    faults: list[str] = []
    for tried in (norm, Norm(norm.negative, "")):
        principle = worded(_id(norm, quote), _statement(quote, norm, name), tried, where, quote)
        faults = [f.message for f in lint(Constitution("alone", "Alone", "One principle.", (principle,))) if f.severity == "error"]
        if not faults:
            return principle
    return f"no wording of it passes lint: {faults[0]}"


def _without_repeats(found: Sequence[_Found]) -> Iterator[tuple[_Found, list[str]]]:
    """Yield what says something new, with the places of what repeats it. Items of one list are compared without what they share."""
    alike = vectors([f.sentence.own for f in found])
    claims = [claim(f.sentence.text) for f in found]
    kept: dict[int, list[str]] = {}
    for i, f in enumerate(found):
        same = [j for j in kept if cosine(alike[i], alike[j]) >= STATEMENT_ALIKE and not opposed(claims[i], claims[j])]
        if same:
            kept[max(same, key=lambda j: cosine(alike[i], alike[j]))].append(f"{f.where}: {f.sentence.text}")
        else:
            kept[i] = []
    for i, also in kept.items():
        yield found[i], also


def _statement(quote: str, norm: Norm, name: str) -> str:
    """Return the sentence as it can stand alone: "It" and "You" at its start, or after its condition, become "the assistant"."""
    who = name or "the assistant"
    text = without_connective(quote).rstrip(";:")
    head = f"{norm.condition}, " if norm.condition and text.startswith(norm.condition) else ""
    rest = re.sub(
        r"^(?:it|you|we)(?= (?:should|must|shall|may|ought|needs?|has|have|never|always|can))", who, text[len(head) :], flags=re.I
    )
    return _sentence(head + rest)


def _sentence(text: str) -> str:
    """Return a text with a capital at its start and a full stop, or what else it has, at its end."""
    text = " ".join(text.split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!", "”", '"')) else f"{text}."


def _id(norm: Norm, quote: str) -> str:
    """Return an id out of the first words that carry meaning."""
    carrying = [
        w for w in words(norm.action or quote) if w not in FUNCTION_WORDS and w not in ("assistant", "response", "model", "never", "not")
    ]
    stem = kebab(" ".join(w.replace("'", "") for w in carrying[:4])) or "principle"
    return f"no-{stem}" if norm.negative and norm.action else stem


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise ConstitutionError(f"{path}: larger than {MAX_BYTES // 2**20} MiB")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConstitutionError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start})") from e
    except OSError as e:
        raise ConstitutionError(f"{path}: can't be read ({e.strerror or e})") from e


def reworded(review: Review, number: int, **texts: str) -> Review:
    """Return a review in which one proposal's principle has other texts."""
    return msgspec.structs.replace(
        review,
        proposals=tuple(
            msgspec.structs.replace(p, principle=replace(p.principle, **texts)) if p.number == number else p  # type: ignore[arg-type]
            for p in review.proposals
        ),
    )


def is_document(files: Sequence[Path]) -> bool:
    """Whether this is one document, or one review file, and not the JSON of another project."""
    return len(files) == 1 and files[0].suffix.lower() in (*DOCUMENTS, ".yaml", ".yml")


def import_document(path: Path, accepted: str | None) -> Review | Constitution:
    """Propose principles out of a document, or take those that somebody accepted, out of a document or a review file.

    Args:
        path: a document (Markdown or text), or a review file (YAML).
        accepted: `all` or numbers; None: what a review file marks, and of a document nothing yet.

    Raises:
        ConstitutionError: it can't be read, or nothing is accepted.
    """
    if path.suffix.lower() in DOCUMENTS:
        review = propose(path)
        return review if accepted is None else accept(review, accepted, path)
    return accept(load_review(path), accepted, path)
