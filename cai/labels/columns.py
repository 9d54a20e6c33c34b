"""Columns of formats with individual answers, and how their responses are found."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from cai.data.conversations import SYSTEM, RowFault
from cai.labels.readings import ATTRIBUTE_PREFIXES, PROMPTS, WHO, Columns, PairRow, Side, asked, column, side

Row = dict[str, Any]
Found = PairRow | RowFault
RESPONSES = (
    ("response_a", "response_b"), ("response_1", "response_2"), ("response1", "response2"), ("response-1", "response-2"),
    ("response_0", "response_1"), ("output_1", "output_2"), ("output_a", "output_b"), ("answer_a", "answer_b"), ("answer_1", "answer_2"),
    ("answer_0", "answer_1"), ("completion_a", "completion_b"),
)  # fmt: skip
CHOICES = ("choice", "better", "preference", "preferred", "winner", "better_response_id", "label", "vote")
SEVERAL = ("annotators", "votes", "choices")
"""Columns with a list of answers, whose n-th item is the n-th annotator's."""
_COLUMNS = frozenset(
    (
        *(name for pair in RESPONSES for name in pair), *CHOICES, *SEVERAL, *PROMPTS, *SYSTEM, *WHO, "p_a", "kind", "category", "weight",
        "source", "principle_ids", "chosen", "rejected", "p_chosen", "score_chosen", "score_rejected", "subset", "text_correct",
        "text_incorrect", "chosen_truncated", "rejected_truncated", "truncated_a", "truncated_b",
    )
)  # fmt: skip
COLUMNS = ", ".join(sorted(_COLUMNS)) + f", and what opens with {', '.join(ATTRIBUTE_PREFIXES)}"
"""Column names that `is_column` accepts, for messages."""


def is_column(name: str) -> bool:
    """Whether a format has a column of this name, to which a file's column may be mapped."""
    return name in _COLUMNS or name.startswith(ATTRIBUTE_PREFIXES) or ".responses" in name


def is_table(row: Mapping[str, Any]) -> bool:
    """Whether a row has two response columns."""
    return any(set(pair) <= row.keys() for pair in RESPONSES)


def named_sides(fields: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[Side, Side]]:
    """Return the names of the response columns of a row or task, and both sides' prompt and response. Raises `RowFault` without them."""
    names = next((pair for pair in RESPONSES if set(pair) <= fields.keys()), None)
    if names is None:
        raise RowFault("no_column", f"expected response_a and response_b, found {', '.join(map(str, fields))}; name them with --column")
    prompt = asked(fields, PROMPTS)
    if prompt is None:
        raise RowFault("no_column", f"expected one of {', '.join(PROMPTS)}, found {', '.join(map(str, fields))}; name it with --column")
    prompt = decoded(prompt)
    first, second = (decoded(column(fields, name)) for name in names)
    if isinstance(fields, Columns):
        names = fields.renamed.get(names[0], names[0]), fields.renamed.get(names[1], names[1])
    return names, (side(prompt, first), side(prompt, second))


def each(items: list[Row], one: Callable[[Row], PairRow]) -> Iterator[Found]:
    """Yield what is read of each item, or its fault."""
    for item in items:
        try:
            yield one(item)
        except RowFault as e:
            yield e


def listed(value: Any) -> list[Any]:
    """Return the value if it is a list, else an empty list."""
    return value if isinstance(value, list) else []


def decoded(value: Any, *opens: str) -> Any:
    """Decode a CSV cell that holds a list as JSON, by default one of messages; other values are returned unchanged."""
    if isinstance(value, str) and value.lstrip().startswith(opens or '[{"'):
        try:
            return msgspec.json.decode(value.encode())
        except msgspec.DecodeError:
            return value
    return value
