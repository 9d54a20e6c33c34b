"""Finds the sentences of a narrative document that say what an assistant should or must not do, each with its place.

A document is Markdown or plain text. Code, tables, comments and front matter are passed over; a list takes its lead-in along ("The
assistant must:" and an item make one sentence). A sentence is normative if it has a modal verb (should, must, shall, ought to, may not, has
to, wants it to), or opens as an instruction (never, always, avoid, do not, be, make sure, ...), or says what the assistant never or always
does. What is asked of others (users, developers) is left out with that reason. Reads English only.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from cai.constitution.wording import words


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a document."""

    text: str
    line: int
    end_line: int
    section: str
    """The heading above it."""
    lead: str = ""
    """What of the text is a list's lead-in."""

    @property
    def own(self) -> str:
        """The text without its lead-in."""
        return self.text[len(self.lead) :].strip()


@dataclass(frozen=True, slots=True)
class Norm:
    """What a sentence demands, taken apart as far as the rules can."""

    negative: bool
    action: str
    """Verb phrase in its base form: "name a source"; empty where the sentence couldn't be taken apart."""
    condition: str = ""
    """A clause in front of it, without its comma: "If the user asks about a dose"."""
    about_text: bool = False
    """Its subject is the response and not whoever writes it."""


@dataclass(frozen=True, slots=True)
class _Block:
    kind: str
    lines: tuple[tuple[int, str], ...]
    section: str


_FENCE = re.compile(r"^\s*(```|~~~)")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r"^\s{0,3}(=+|-+)\s*$")
_ITEM = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+")
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\]\(([^()]{0,500})\)")
_NOTE = re.compile(r"\[\^[\w-]{1,60}\]|\{#[^{}]{0,300}\}\s*$")
_MARKUP = re.compile(r"(\*\*|__|`)(.{1,300}?)\1|(?<!\w)([*_])(?=\S)(.{1,300}?)(?<=\S)\3(?!\w)")
_SENTENCE = re.compile(r"(?<=[.!?])[\"”’)*_]*\s+(?=[\"“(]?[A-Z])")
_CONDITION = re.compile(
    r"^(?:if|when|whenever|where|wherever|unless|while|before|after|once|for|in|on|with|as|during|even|although|though|because|since|to|by"
    r"|at|under|given|by default)\b",
    re.IGNORECASE,
)
_SUBORDINATE = re.compile(
    r"^(?:if|when|whenever|where|wherever|unless|while|before|after|once|even|although|though|because|since)\b", re.IGNORECASE
)
_FILLER = re.compile(r"^(?:also|always|therefore|generally|normally|usually|still|then|thus|instead|simply|at all times)\s+", re.IGNORECASE)
_CONNECTIVE = re.compile(r"^(?:however|therefore|thus|also|finally|instead|similarly|likewise|above all|in general|in short)\s*,\s*", re.I)
_MODAL = re.compile(
    r"\b(?P<modal>should|must|shall|ought(?: not)? to|needs? to|ha(?:s|ve) to|(?:is|are) expected to|may not|can ?not|can't)"
    r"(?P<contracted>n't)?\s+(?=\S)",
    re.IGNORECASE,
)
_WANT = re.compile(r"\bwants?\s+(?:[\w'-]+\s+){1,4}(?:not\s+)?to\s", re.IGNORECASE)
_NOT = re.compile(r"^(?:also |generally |normally |therefore )?(?:not|never)\s+", re.IGNORECASE)
_IMPERATIVE = re.compile(
    r"^(?:please\s+)?(?P<opening>never|do not|don't|always|avoid|refrain from|be|make sure|ensure|take care)\b(?P<rest>.*)", re.I | re.S
)
_HABIT = re.compile(r"\b(?:never|always)\b", re.IGNORECASE)
_PASSIVE = re.compile(r"^(?:not |never |always |also )*be \w+(?:ed|en|wn|ld|de|ne|id|ut|pt|ft|nt)\b", re.IGNORECASE)
_AGENTS = frozenset("assistant assistants model models ai ais it we you system systems chatbot chatbots bot bots agent agents".split())
_TEXTS = frozenset("response responses answer answers reply replies output outputs".split())
_OTHERS = frozenset("user users people person persons developer developers operator operators customer customers reader readers".split())
MAX_WORDS = 70
MAX_CHARACTERS = 1000


def sentences_of(text: str) -> Iterator[Sentence]:
    """Yield a document's sentences in order, without markup. Items of a list carry its lead-in in front of them."""
    lead = ""
    for block in _blocks(text):
        found = list(_split(block))
        if block.kind == "item" and lead and found:
            first = found[0]
            found[0] = Sentence(f"{lead} {_lower_first(first.text)}", first.line, first.end_line, first.section, lead)
        elif block.kind != "item":
            lead = ""
            if found and found[-1].text.endswith(":") and demands(found[-1].text[:-1] + " x") is not None:
                lead = found.pop().text[:-1].rstrip()
        yield from found


def demands(sentence: str, name: str = "") -> Norm | str | None:
    """Say what a sentence demands of an assistant.

    Args:
        sentence: one, without markup.
        name: what the document calls the assistant, if it has a name.

    Returns:
        The demand; a reason, where it demands something of somebody else; None where it demands nothing.

    >>> demands("If a dose is asked for, the assistant must not guess it.")
    Norm(negative=True, action='guess it', condition='If a dose is asked for', about_text=False)
    >>> demands("Users must be over 18.")
    'it is about “Users”'
    """
    body = without_connective(sentence).strip('"“”').rstrip(" .!;:")
    if not body or sentence.rstrip().endswith("?"):
        return None
    if len(body) > MAX_CHARACTERS:
        return f"it is longer than {MAX_CHARACTERS} characters" if _MODAL.search(body) else None
    if found := _IMPERATIVE.match(body):
        return _imperative(found["opening"].lower(), found["rest"].strip())
    if modals := list(_MODAL.finditer(body)):
        read = [_modal(body[: m.start()].strip(), m, body[m.end() :], name) for m in modals]
        return max(read, key=lambda r: (isinstance(r, Norm), isinstance(r, Norm) and r.action != ""))  # the first of the best
    subject = _subject(body)
    if _WANT.search(body) or (_HABIT.search(body) and _is_agent(subject.split(" never ")[0].split(" always ")[0], name)):
        return Norm("never" in words(body) or "not" in words(body), "")
    return None


def name_of_assistant(text: str) -> str:
    """Return what a document calls its assistant: the name that stands before a modal verb most often, at least three times."""
    counts: dict[str, int] = {}
    for name in re.findall(r"\b([A-Z][a-z]+)\s+(?:should|must|shall|will|never|always|aims|tries)\b", text):
        if name.lower() not in _AGENTS | _TEXTS | _OTHERS | {"this", "that", "they", "there", "these", "what", "who"}:
            counts[name] = counts.get(name, 0) + 1
    best = max(counts, key=lambda n: counts[n], default="")
    return best if counts.get(best, 0) >= 3 else ""


def without_connective(sentence: str) -> str:
    """Return a sentence without a word in front that only ties it to the one before.

    >>> without_connective("However, it should wait.")
    'It should wait.'
    """
    bare = _CONNECTIVE.sub("", sentence.strip())
    return bare if bare == sentence else bare[:1].upper() + bare[1:]


def _imperative(opening: str, rest: str) -> Norm | None:
    if not rest:
        return None
    if opening in ("never", "do not", "don't"):
        return Norm(True, rest)
    return Norm(False, rest if opening == "always" else f"{opening} {rest}")


def _modal(before: str, found: "re.Match[str]", rest: str, name: str) -> Norm | str:
    condition, _, subject = before.rpartition(", ") if _CONDITION.match(before) else ("", "", before)
    if not condition and _SUBORDINATE.match(before):
        return f"it is about a condition, “{before}”"
    modal = found["modal"].lower()
    negative = bool(found["contracted"]) or "not" in modal or modal == "can't"
    while (filler := _FILLER.match(rest)) is not None:
        rest = rest[filler.end() :]
    if (inner := _NOT.match(rest)) is not None:
        negative, rest = True, rest[inner.end() :]
    about_text = bool(_TEXTS & set(words(subject)))
    if about_text or _is_agent(subject, name):
        plain = len(words(subject)) <= 3 and not re.search(r"\b(?:should|must|shall)\b", rest)
        return Norm(negative, rest if plain else "", condition, about_text)
    if _PASSIVE.match(rest) and not _OTHERS & set(words(subject)):
        return Norm(negative, "")
    return f"it is about “{subject or 'nobody'}”"


def _subject(body: str) -> str:
    return body.rpartition(", ")[2] if _CONDITION.match(body) else body


def _is_agent(subject: str, name: str) -> bool:
    found = words(subject)
    return bool(found) and not _OTHERS & {found[-1]} and (bool(_AGENTS & set(found)) or (bool(name) and name.lower() in found))


def _blocks(text: str) -> Iterator[_Block]:
    """Yield paragraphs and list items with their lines' numbers."""
    section, kind = "", "text"
    lines: list[tuple[int, str]] = []
    skipping = ""
    rows = text.splitlines()
    for number, raw in enumerate(rows, 1):
        if skipping:
            if skipping in raw and not (skipping == "---" and raw.strip() != "---"):
                skipping = ""
            continue
        fence, heading = _FENCE.match(raw), _HEADING.match(raw)
        underlined = number < len(rows) and bool(raw.strip()) and not lines and _UNDERLINE.match(rows[number]) is not None
        starts_item = _ITEM.match(raw)
        front = number == 1 and raw.strip() == "---"
        comment = raw.lstrip().startswith("<!--")
        ends = fence or heading or underlined or starts_item or front or comment or not raw.strip() or raw.lstrip().startswith("|")
        if ends and lines:
            yield _Block(kind, tuple(lines), section)
            lines, kind = [], "text"
        if fence:
            skipping = fence[1]
        elif front:
            skipping = "---"
        elif comment:
            skipping = "" if "-->" in raw else "-->"
        elif heading or underlined:
            section = _unmarked(heading[1] if heading else raw.strip())
            yield _Block("heading", (), section)
        elif starts_item:
            kind = "item"
            lines.append((number, raw[starts_item.end() :]))
        elif raw.strip() and not raw.lstrip().startswith("|") and not _UNDERLINE.match(raw):
            lines.append((number, raw.strip().removeprefix(">").strip()))
    if lines:
        yield _Block(kind, tuple(lines), section)


def _split(block: _Block) -> Iterator[Sentence]:
    """Yield a block's sentences with the lines that they stand on."""
    parts = [_unmarked(text) for _, text in block.lines]
    starts = [0, *accumulate(len(p) + 1 for p in parts)]
    joined = " ".join(parts)
    at = 0
    for end in [*(m.end() for m in _SENTENCE.finditer(joined)), len(joined)]:
        text = joined[at:end].strip()
        if text:
            first = at + len(joined[at:end]) - len(joined[at:end].lstrip())
            lines = [block.lines[min(bisect_right(starts, i) - 1, len(parts) - 1)][0] for i in (first, first + len(text) - 1)]
            yield Sentence(" ".join(text.split()), lines[0], lines[1], block.section)
        at = end


def _unmarked(text: str) -> str:
    """Return a line without Markdown's emphasis, code marks and link targets.

    >>> _unmarked("Be **very** _kind_, see [here](x), `a_b_c`")
    'Be very kind, see here, a_b_c'
    """
    text = _LINK.sub(lambda m: m[1] if re.search(r"\w", m[1]) else " ".join(re.findall(r"[^\W_]+", m[2])), _NOTE.sub("", text))
    while (plain := _MARKUP.sub(lambda m: m[2] or m[4], text)) != text:
        text = plain
    return text


def _lower_first(text: str) -> str:
    """Return a text that goes on a sentence: its first letter small, unless the word is a name or "I"."""
    first = text.split(maxsplit=1)[0] if text else ""
    return text if len(first) < 2 or first.upper() == first else text[0].lower() + text[1:]
