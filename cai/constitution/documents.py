"""Split a narrative document (Markdown or plain text) into sections with line numbers, and find quotations in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cai.constitution.wording import words
from cai.core.jsonl import read_file
from cai.core.text.languages import language
from cai.errors import ConstitutionError

SUFFIXES = (".md", ".markdown", ".txt", ".rst")
MAX_BYTES = 4 * 1024 * 1024
SECTION_CHARACTERS = 1500
"""Length from which a section is split between paragraphs or list items. Small models do not follow longer sections."""
MIN_QUOTE_WORDS = 3

_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r"^ {0,3}(?:=+|-+)\s*$")
_FENCE = re.compile(r"^\s*(?:```|~~~)")
_ITEM = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+")


@dataclass(frozen=True, slots=True)
class DocumentSection:
    """Paragraphs under one heading. `text` keeps the document's line breaks."""

    heading: str
    text: str
    line: int
    """Number of the first line, from 1."""


@dataclass(frozen=True, slots=True)
class DocumentPassage:
    """A verbatim quotation from a document, with white space collapsed."""

    quote: str
    line: int
    end_line: int


@dataclass(frozen=True, slots=True)
class Document:
    """A document split into sections."""

    path: Path
    sections: tuple[DocumentSection, ...]

    @property
    def language(self) -> str | None:
        """ISO 639-1 code of the document's language; None if it can't be told."""
        return language("\n".join(section.text for section in self.sections))


def read_document(path: Path) -> Document:
    """Read a document. Raises `ConstitutionError` if it can't be read or has no text."""
    try:
        raw = read_file(path, MAX_BYTES)
        document = Document(path, tuple(sections_of(raw.decode("utf-8-sig"))))
    except UnicodeDecodeError as e:
        raise ConstitutionError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start})") from e
    except OSError as e:
        raise ConstitutionError(f"{path}: can't be read ({e.strerror or e})") from e
    if not document.sections:
        raise ConstitutionError(f"{path}: there is no text in it")
    return document


def sections_of(text: str) -> Iterator[DocumentSection]:
    """Yield the sections of a document in order; headings are not part of the text.

    >>> [(s.heading, s.text, s.line) for s in sections_of("Hello.\\n\\n# Style\\n\\nBe brief.\\nBe kind.\\n")]
    [('', 'Hello.', 1), ('Style', 'Be brief.\\nBe kind.', 5)]
    """
    rows = text.splitlines()
    heading, fenced = "", False
    held: list[str] = []
    start = 1
    for number, row in enumerate(rows, 1):
        fenced ^= _FENCE.match(row) is not None
        found = None if fenced else _HEADING.match(row)
        opens = bool(row.strip()) and not (held and held[-1].strip())
        underlined = opens and not fenced and number < len(rows) and _UNDERLINE.match(rows[number]) is not None
        may_cut = not row.strip() or _ITEM.match(row) is not None
        if found or underlined or (may_cut and sum(map(len, held)) > SECTION_CHARACTERS):
            yield from _section(heading, held, start)
            held, start = [], number
        if found or underlined:
            heading, start = found[1] if found else row.strip(), number + 1
        elif not (_UNDERLINE.match(row) and not held):
            held.append(row)
        else:
            start = number + 1
    yield from _section(heading, held, start)


def find_quote(quote: str, section: DocumentSection) -> DocumentPassage | None:
    """Find a quotation in a section; return None if it is not there or has fewer than three words.

    The words must match exactly and in order; line breaks, punctuation and markup between them may differ. The returned quotation is the
    document's own text.

    >>> find_quote("It must never guess", Section("", "First.\\nIt must\\n**never** guess.", 7))
    Passage(quote='It must **never** guess.', line=8, end_line=9)
    """
    wanted = re.findall(r"[^\W_]+", quote)
    if len(words(quote)) < MIN_QUOTE_WORDS:
        return None
    found = re.search(r"(?<![^\W_])" + r"[\W_]+".join(map(re.escape, wanted)) + r"(?![^\W_])[.!?]?", section.text)
    if found is None:
        return None
    line, end_line = (section.line + section.text.count("\n", 0, at) for at in found.span())
    return DocumentPassage(" ".join(found[0].split()), line, end_line)


def _section(heading: str, rows: list[str], start: int) -> Iterator[DocumentSection]:
    while rows and not rows[0].strip():
        rows, start = rows[1:], start + 1
    if text := "\n".join(rows).rstrip():
        yield DocumentSection(heading, text, start)
