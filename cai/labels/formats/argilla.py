"""Exports of Argilla. Tested with 2.8, nested and flattened records; 1.x datasets on the Hub follow its documentation and source."""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cai.data.conversations import RowFault
from cai.labels.columns import CHOICES, Found, Row, each, listed, named_sides
from cai.labels.readings import PairFormat, PairFormats, PairRow, Said, reading
from cai.records import PromptKind

NO_STATUS = "the export doesn't say which answers are drafts or were discarded, so they count as well; to_list(flatten=True) says it"
"""Doubt about labels from Argilla 2's `to_json` and nested `to_list`, which omit the status of responses."""


def read_argilla(row: Row, source: str, kind: PromptKind | None) -> Iterator[Found]:
    """Read an Argilla record with all responses to its question about the two answers. Drafts and discarded responses are faults."""
    nested = isinstance(row.get("fields"), dict)
    fields: Row = row["fields"] if nested else row
    names, sides = named_sides(fields)
    question, responses = _argilla_responses(row)
    if not responses:
        if text := next((key for key, value in row.items() if key.endswith(".responses") and isinstance(value, str) and value), None):
            raise RowFault("unreadable", f"{text} is a text here; a CSV can't hold lists, so export as JSON Lines or Parquet")
        raise RowFault("not_labelled", "the record has no response")
    about = ChainMap(row["metadata"] if isinstance(row.get("metadata"), dict) else {}, fields)

    def one(response: Row) -> PairRow:
        if response.get("status") not in (None, "submitted"):
            raise RowFault("not_submitted", f"the response of {response.get('user_id')} is {response.get('status')}")
        found = reading(*sides, _argilla_choice(response.get("value"), question, names), about, source, kind, as_shown=True, who=response)
        return found if "status" in response or not nested else replace(found, doubt=NO_STATUS)

    yield from each(responses, one)


def is_argilla(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of an Argilla export."""
    if isinstance(row.get("fields"), dict) and "responses" in row:
        return True
    return any(key.endswith(".responses") for key in row) or any(_is_argilla_v1(value) for value in row.values())


def _is_argilla_v1(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and {"user_id", "value"} <= value[0].keys()
    return isinstance(value, dict) and {"user_id", "value"} <= value.keys()


def _argilla_responses(row: Row) -> tuple[str, list[Row]]:
    """Return the record's question about the two answers, one named as in `CHOICES`, else the first with responses, and these.

    Answers to other questions name no response and become faults, so name the question `preference` or put it first.
    """
    if isinstance(row.get("responses"), dict):
        asked = {name: listed(found) for name, found in row["responses"].items()}
    elif flat := {key.removesuffix(".responses"): listed(row[key]) for key in row if key.endswith(".responses")}:
        asked = {}
        for name, values in flat.items():
            users, status = (listed(row.get(f"{name}.responses.{part}")) or [None] * len(values) for part in ("users", "status"))
            asked[name] = [{"value": v, "user_id": u, "status": s} for v, u, s in zip(values, users, status, strict=False)]
    else:
        asked = {name: _argilla_v1(value) for name, value in row.items() if _is_argilla_v1(value)}
    wanted = [name for name in CHOICES if asked.get(name)] + [name for name in asked if asked[name]]
    return (wanted[0], [r for r in asked[wanted[0]] if isinstance(r, dict)]) if wanted else ("", [])


def _argilla_v1(value: Any) -> list[Row]:
    if isinstance(value, list):
        return list(value)
    columns = {k: v if isinstance(v, list) else [v] for k, v in value.items()}
    return [{k: v[i] for k, v in columns.items() if i < len(v)} for i in range(len(columns["value"]))]


def _argilla_choice(value: Any, question: str, names: tuple[str, str]) -> float | Said:
    """Parse a label, or a ranking of the two responses' names."""
    if isinstance(value, dict) and isinstance(value.get("rank"), list):  # a 1.x dataset on the Hub keeps a ranking as columns
        value = [{"value": v, "rank": r} for v, r in zip(listed(value.get("value")), value["rank"], strict=False)]
    if isinstance(value, list) and value and all(isinstance(v, dict) and "rank" in v for v in value):
        rank = {str(v.get("value")): v["rank"] for v in value}
        if not set(names) <= rank.keys() or not all(isinstance(rank[n], int) for n in names):
            raise RowFault("no_choice", f"the ranking names {', '.join(rank)}; expected {' and '.join(names)}")
        first, second = (rank[n] for n in names)
        return 0.5 if first == second else float(first < second)
    if isinstance(value, list) and all(isinstance(v, str) for v in value) and set(value) == set(names):
        raise RowFault(
            "no_choice",
            "a ranking without its ranks, which Argilla 2 leaves out of what it exports (its issue 5712): the order of "
            f"{', '.join(map(str, value))} says nothing. Ask with a label question",
        )
    return Said(((question, value),), names)


FORMATS = PairFormats("argilla", (PairFormat("argilla", is_argilla, read_argilla),), "an export of Argilla", rank=1)
