"""Sections of a document, and the place of what is quoted out of one."""

from pathlib import Path

import pytest

from cai.constitution.documents import SECTION_CHARACTERS, DocumentSection, find_quote, read_document, sections_of
from cai.errors import ConstitutionError

DOCUMENT = """\
---
title: Values
---

Robin is the library's assistant.

# Honesty

Robin must **never** invent a book,
an author or a quotation.

```
# not a heading
```

Manner
------

- be kind
- be brief
"""


def test_sections_have_headings_and_lines() -> None:
    found = [(s.heading, s.text.splitlines()[0], s.line) for s in sections_of(DOCUMENT)]
    assert found == [
        ("title: Values", "Robin is the library's assistant.", 5),
        ("Honesty", "Robin must **never** invent a book,", 9),
        ("Manner", "- be kind", 19),
    ]
    honesty = list(sections_of(DOCUMENT))[1]
    assert "# not a heading" in honesty.text


def test_a_long_section_is_cut_between_paragraphs_and_loses_nothing() -> None:
    paragraphs = [f"Paragraph {i} " + "word " * 60 for i in range(12)]
    text = "# Long\n\n" + "\n\n".join(paragraphs)
    found = list(sections_of(text))
    assert len(found) > 2 and all(len(s.text) < 2 * SECTION_CHARACTERS and s.heading == "Long" for s in found)
    assert "".join("".join(s.text.split()) for s in found) == "".join("".join(p.split()) for p in paragraphs)
    lines = text.splitlines()
    assert all(lines[s.line - 1].strip() == s.text.splitlines()[0].strip() for s in found)


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ("Robin must never invent a book, an author", ("Robin must **never** invent a book, an author", 9, 10)),
        ("an author or a quotation.", ("an author or a quotation.", 10, 10)),
        ("Robin must never invent a film", None),
        ("robin must never invent", None),
        ("obin must never invent", None),
        ("or a quot", None),
        ("a book", None),
        ("", None),
    ],
)
def test_a_quotation_stands_there_word_for_word_or_is_not_found(quote: str, found: tuple[str, int, int] | None) -> None:
    passage = find_quote(quote, list(sections_of(DOCUMENT))[1])
    assert (passage and (passage.quote, passage.line, passage.end_line)) == found


def test_a_quotation_is_no_pattern() -> None:
    assert find_quote("a.* b c d", DocumentSection("", "axx b c d", 1)) is None
    assert find_quote("(a) b* [c] d", DocumentSection("", "a b c d", 1)) is not None


def test_files_that_are_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.md").write_text("# Only a heading\n")
    for name, told in (("a.md", "not UTF-8"), ("b.md", "no text in it"), ("c.md", "can't be read")):
        with pytest.raises(ConstitutionError, match=told):
            read_document(tmp_path / name)
