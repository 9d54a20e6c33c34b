"""Tables with one row per answer, or with several annotators' answers in a row; also Label Studio's CSV and JSON-MIN (1.23)."""

import re
from collections.abc import Iterator
from typing import Any

from cai.data.conversations import RowFault
from cai.labels.columns import CHOICES, SEVERAL, Found, Row, decoded, is_table, named_sides
from cai.labels.readings import PROMPTS, PairFormat, PairFormats, Said, number, reading
from cai.records import PromptKind

_NUMBERED = re.compile(r"(?:annotator|rater|vote|choice)[ _-]?[0-9]+")
"""Columns with one annotator's answer each."""


def read_table(row: Row, source: str, kind: PromptKind | None) -> Iterator[Found]:
    """Read a table with one row per answer: `prompt` or `messages`, two responses, `choice` or `p_a`; also Label Studio's CSV, JSON-MIN.

    Several annotators' answers may be in columns `annotator1`, `annotator2`, … or in a list `annotators`.
    """
    names, sides = named_sides(row)
    if row.get("p_a") not in (None, ""):
        yield reading(*sides, number(row, "p_a", 0.0, high=1.0), row, source, kind, as_shown=True)
        return
    candidates = [c for c in CHOICES if dict.get(row, c) not in (None, "")]
    candidates = candidates or [c for c in row if _is_pairwise(dict.get(row, c))]
    if candidates:
        said = Said(tuple((c, row[c]) for c in candidates), names)
        yield reading(*sides, said, row, source, kind, as_shown=True)
        return
    answers = several_answers(row)
    if not answers:
        found = ", ".join(str(name) for name in row if name not in PROMPTS)
        raise RowFault(
            "not_labelled", f"no answer: expected p_a or one of {', '.join(CHOICES)}; found {found}; name another with --column choice=…"
        )
    for who, value in answers:
        yield reading(*sides, Said((("annotators", value),), names), row, source, kind, as_shown=True, who={"annotator": who})


def several_answers(row: Row) -> list[tuple[str, Any]]:
    """Return annotator and answer, from numbered columns or from a list, whose n-th item is the answer of `annotatorN`."""
    numbered = [(c, row[c]) for c in row if _NUMBERED.fullmatch(c) and dict.get(row, c) not in (None, "")]
    if numbered:
        return numbered
    for name in SEVERAL:
        found = decoded(row.get(name), "[")
        if found in (None, "", []):
            continue
        if not isinstance(found, list) or any(isinstance(value, list | dict) for value in found):
            raise RowFault(
                "not_labelled",
                f'{name} is {str(row[name])[:60]!r}; expected each annotator\'s answer in a list, such as ["A", "B"], or in a column of '
                "its own: annotator1, annotator2",
            )
        return [(f"annotator{n}", value) for n, value in enumerate(found, 1) if value not in (None, "")]
    return []


def _is_pairwise(value: Any) -> bool:
    """Whether a cell holds the result of a Pairwise control of Label Studio."""
    if isinstance(value, str):
        return value.startswith('[{"selected":')
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "selected" in value[0]


FORMATS = PairFormats(
    "table", (PairFormat("table", is_table, read_table, chooses=True),), "`response_a`, `response_b` and `choice`", rank=2
)
