"""Readers of formats with individual answers: `cai`'s own labels, tables, Label Studio and Argilla exports.

A row may hold several annotators' answers. A row that has none is a fault of its own and doesn't affect the others. What the answers mean
is read for a whole column (`cai.labels.answers`). Tested with exports of Label Studio 1.23 (JSON, JSON-MIN, CSV) and Argilla 2.8 (nested
and flattened records). Argilla's 1.x datasets on the Hub follow its documentation and source.

To add a format, write its reader here and put it into `FORMATS`; a column that `--column` may name goes into `_COLUMNS`.
"""

import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from cai.data.conversations import SYSTEM, RowFault
from cai.labels.readings import (
    ATTRIBUTE_PREFIXES,
    PROMPTS,
    WHO,
    Columns,
    PairFormat,
    PairRow,
    Said,
    Side,
    asked,
    checked,
    column,
    name_of,
    number,
    reading,
    record_fields,
    side,
)
from cai.records import HumanLabel, Preference, PromptKind

Row = dict[str, Any]
Found = PairRow | RowFault
RESPONSES = (
    ("response_a", "response_b"), ("response_1", "response_2"), ("response1", "response2"), ("response-1", "response-2"),
    ("response_0", "response_1"), ("output_1", "output_2"), ("output_a", "output_b"), ("answer_a", "answer_b"), ("answer_1", "answer_2"),
    ("answer_0", "answer_1"), ("completion_a", "completion_b"),
)  # fmt: skip
CHOICES = ("choice", "better", "preference", "preferred", "winner", "better_response_id", "label", "vote")
TABLE = "table"
SEVERAL = ("annotators", "votes", "choices")
"""Columns with a list of answers, whose n-th item is the n-th annotator's."""
_NUMBERED = re.compile(r"(?:annotator|rater|vote|choice)[ _-]?[0-9]+")
"""Columns with one annotator's answer each."""
_COLUMNS = frozenset(
    (
        *(name for pair in RESPONSES for name in pair), *CHOICES, *SEVERAL, *PROMPTS, *SYSTEM, *WHO, "p_a", "kind", "category", "weight",
        "source", "principle_ids", "chosen", "rejected", "p_chosen", "score_chosen", "score_rejected", "subset", "text_correct",
        "text_incorrect", "chosen_truncated", "rejected_truncated", "truncated_a", "truncated_b",
    )
)  # fmt: skip
COLUMNS = ", ".join(sorted(_COLUMNS)) + f", and what opens with {', '.join(ATTRIBUTE_PREFIXES)}"
"""Column names that `is_column` accepts, for messages."""
NO_STATUS = "the export doesn't say which answers are drafts or were discarded, so they count as well; to_list(flatten=True) says it"
"""Doubt about labels from Argilla 2's `to_json` and nested `to_list`, which omit the status of responses."""


def read_labels(row: Row, source: str, kind: PromptKind | None) -> Iterator[Found]:
    """Read `HumanLabel` records, as `cai human import` writes them."""
    record_fields(row, HumanLabel)
    try:
        label = msgspec.convert(row, HumanLabel)
    except msgspec.ValidationError as e:
        raise RowFault("not_a_label", str(e)) from e
    if not 0.0 <= label.p_a <= 1.0:
        raise RowFault("bad_number", f"p_a is {label.p_a!r}; expected a number from 0 to 1")
    pair, by = label.pair, label.pair.provenance
    cut = (pair.truncated_a, pair.truncated_b)
    preference = Preference(pair.prompt, pair.response_a, pair.response_b, label.p_a, 1.0, label.source, (), by, *cut)
    yield checked(PairRow(preference, True, label.annotator, label.time, label.attributes, note=label.note, both_bad=label.both_bad))


def read_table(row: Row, source: str, kind: PromptKind | None) -> Iterator[Found]:
    """Read a table with one row per answer: `prompt` or `messages`, two responses, `choice` or `p_a`; also Label Studio's CSV, JSON-MIN.

    Several annotators' answers may be in columns `annotator1`, `annotator2`, … or in a list `annotators`.
    """
    names, sides = _named_sides(row)
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
        raise RowFault("not_labelled", f"no answer: expected p_a or one of {', '.join(CHOICES)}; name another with --column choice=…")
    for who, value in answers:
        yield reading(*sides, Said((("annotators", value),), names), row, source, kind, as_shown=True, who={"annotator": who})


def several_answers(row: Row) -> list[tuple[str, Any]]:
    """Return annotator and answer, from numbered columns or from a list, whose n-th item is the answer of `annotatorN`."""
    numbered = [(c, row[c]) for c in row if _NUMBERED.fullmatch(c) and dict.get(row, c) not in (None, "")]
    if numbered:
        return numbered
    for name in SEVERAL:
        found = _decoded(row.get(name), '["', "[1", "[0")
        if isinstance(found, list) and found and not any(isinstance(value, list | dict) for value in found):
            return [(f"annotator{n}", value) for n, value in enumerate(found, 1) if value not in (None, "")]
    return []


def read_label_studio(row: Row, source: str, kind: PromptKind | None) -> Iterator[Found]:
    """Read a Label Studio task with all its annotations. Skipped ones and drafts are faults."""
    data = row["data"] if isinstance(row.get("data"), dict) else {}
    names, sides = _named_sides(data)
    annotations = [a for a in _listed(row.get("annotations")) if isinstance(a, dict)]
    drafts = [d for d in _listed(row.get("drafts")) if not isinstance(d, dict) or d.get("annotation") is None]
    if not annotations and not drafts:
        raise RowFault("not_labelled", "the task has no annotation")

    def one(annotation: Row) -> PairRow:
        if annotation.get("was_cancelled"):
            raise RowFault("skipped", f"annotator {name_of(annotation.get('completed_by', ''))} skipped the task")
        results = _about_the_pair([r for r in _listed(annotation.get("result")) if isinstance(r, dict)])
        if not results:
            raise RowFault("not_labelled", "the annotation has no pairwise or single choice")
        said = Said(((str(results[0].get("from_name") or "choice"), [r.get("value") for r in results]),), names)
        who = {**{k: v for k, v in data.items() if k in ("attributes", "rater_attributes")}, **annotation}
        return reading(*sides, said, data, source, kind, as_shown=True, who=who)

    yield from _each(annotations, one)
    for draft in drafts:  # an unfinished change of an annotation leaves what was submitted
        who = name_of(draft.get("user")) if isinstance(draft, dict) else ""
        yield RowFault("not_submitted", f"a draft{f' of {who}' if who else ''} was not submitted")


def read_argilla(row: Row, source: str, kind: PromptKind | None) -> Iterator[Found]:
    """Read an Argilla record with all responses to its question about the two answers. Drafts and discarded responses are faults."""
    nested = isinstance(row.get("fields"), dict)
    fields: Row = row["fields"] if nested else row
    names, sides = _named_sides(fields)
    responses = _argilla_responses(row)
    if not responses:
        if text := next((key for key, value in row.items() if key.endswith(".responses") and isinstance(value, str) and value), None):
            raise RowFault("unreadable", f"{text} is a text here; a CSV can't hold lists, so export as JSON Lines or Parquet")
        raise RowFault("not_labelled", "the record has no response")
    about = ChainMap(row["metadata"] if isinstance(row.get("metadata"), dict) else {}, fields)

    def one(response: Row) -> PairRow:
        if response.get("status") not in (None, "submitted"):
            raise RowFault("not_submitted", f"the response of {response.get('user_id')} is {response.get('status')}")
        found = reading(*sides, _argilla_choice(response.get("value"), names), about, source, kind, as_shown=True, who=response)
        return found if "status" in response or not nested else replace(found, doubt=NO_STATUS)

    yield from _each(responses, one)


def is_column(name: str) -> bool:
    """Whether a format has a column of this name, to which a file's column may be mapped."""
    return name in _COLUMNS or name.startswith(ATTRIBUTE_PREFIXES) or ".responses" in name


def is_argilla(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of an Argilla export."""
    if isinstance(row.get("fields"), dict) and "responses" in row:
        return True
    return any(key.endswith(".responses") for key in row) or any(_is_argilla_v1(value) for value in row.values())


def is_table(row: Mapping[str, Any]) -> bool:
    """Whether a row has two response columns."""
    return any(set(pair) <= row.keys() for pair in RESPONSES)


def _each(items: list[Row], one: Callable[[Row], PairRow]) -> Iterator[Found]:
    for item in items:
        try:
            yield one(item)
        except RowFault as e:
            yield e


def _named_sides(fields: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[Side, Side]]:
    names = next((pair for pair in RESPONSES if set(pair) <= fields.keys()), None)
    if names is None:
        raise RowFault("no_column", f"expected response_a and response_b, found {', '.join(map(str, fields))}; name them with --column")
    prompt = asked(fields, PROMPTS)
    if prompt is None:
        raise RowFault("no_column", f"expected one of {', '.join(PROMPTS)}, found {', '.join(map(str, fields))}; name it with --column")
    prompt = _decoded(prompt)
    first, second = (_decoded(column(fields, name)) for name in names)
    if isinstance(fields, Columns):
        names = fields.renamed.get(names[0], names[0]), fields.renamed.get(names[1], names[1])
    return names, (side(prompt, first), side(prompt, second))


def _about_the_pair(results: list[Row]) -> list[Row]:
    """Return the results of the control that compares the two responses; an annotation may have other controls too.

    It is the control named like a column in `CHOICES`, else the pairwise one, else the only one.

    Raises:
        RowFault: there are several candidates.
    """
    choices = [r for r in results if r.get("type") in ("pairwise", "choices")]
    controls = {str(r.get("from_name")): r["type"] for r in choices}
    name = next((c for c in CHOICES if c in controls), None) or next((c for c in controls if controls[c] == "pairwise"), None)
    if name is None and len(controls) > 1:
        raise RowFault(
            "no_choice",
            f"which of {', '.join(controls)} is about the two responses? Name that control `better`, or export JSON-MIN or CSV and say "
            "--column choice=NAME",
        )
    return [r for r in choices if name is None or str(r.get("from_name")) == name]


def _is_pairwise(value: Any) -> bool:
    """Whether a cell holds the result of a Pairwise control of Label Studio."""
    if isinstance(value, str):
        return value.startswith('[{"selected":')
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "selected" in value[0]


def sides_of(fields: Mapping[str, Any]) -> tuple[Side, Side]:
    """Return prompt and response of both sides of a row or task. Raises `RowFault` if they are missing."""
    return _named_sides(fields)[1]


def _listed(value: Any) -> list[Any]:
    """Return the value if it is a list, else an empty list."""
    return value if isinstance(value, list) else []


def _decoded(value: Any, *opens: str) -> Any:
    """Decode a CSV cell that holds a list as JSON, by default one of messages; other values are returned unchanged."""
    if isinstance(value, str) and value.lstrip().startswith(opens or '[{"'):
        try:
            return msgspec.json.decode(value.encode())
        except msgspec.DecodeError:
            return value
    return value


def _is_argilla_v1(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and {"user_id", "value"} <= value[0].keys()
    return isinstance(value, dict) and {"user_id", "value"} <= value.keys()


def _argilla_responses(row: Row) -> list[Row]:
    """Return the responses to the record's question about the two answers: one named as in `CHOICES`, else the first with responses.

    Answers to other questions name no response and become faults, so name the question `preference` or put it first.
    """
    if isinstance(row.get("responses"), dict):
        asked = {name: _listed(found) for name, found in row["responses"].items()}
    elif flat := {key.removesuffix(".responses"): _listed(row[key]) for key in row if key.endswith(".responses")}:
        asked = {}
        for name, values in flat.items():
            users, status = (_listed(row.get(f"{name}.responses.{part}")) or [None] * len(values) for part in ("users", "status"))
            asked[name] = [{"value": v, "user_id": u, "status": s} for v, u, s in zip(values, users, status, strict=False)]
    else:
        asked = {name: _argilla_v1(value) for name, value in row.items() if _is_argilla_v1(value)}
    wanted = [name for name in CHOICES if asked.get(name)] + [name for name in asked if asked[name]]
    return [r for r in asked[wanted[0]] if isinstance(r, dict)] if wanted else []


def _argilla_v1(value: Any) -> list[Row]:
    if isinstance(value, list):
        return list(value)
    columns = {k: v if isinstance(v, list) else [v] for k, v in value.items()}
    return [{k: v[i] for k, v in columns.items() if i < len(v)} for i in range(len(columns["value"]))]


def _argilla_choice(value: Any, names: tuple[str, str]) -> float | Said:
    """Parse a label, or a ranking of the two responses' names."""
    if isinstance(value, dict) and isinstance(value.get("rank"), list):  # a 1.x dataset on the Hub keeps a ranking as columns
        value = [{"value": v, "rank": r} for v, r in zip(_listed(value.get("value")), value["rank"], strict=False)]
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
    return Said((("preference", value),), names)


FORMATS: tuple[PairFormat, ...] = (
    PairFormat("label-studio", lambda row: isinstance(row.get("data"), dict) and "annotations" in row, read_label_studio),
    PairFormat("labels", lambda row: isinstance(row.get("pair"), dict) and {"annotator", "p_a"} <= row.keys(), read_labels),
    PairFormat("argilla", is_argilla, read_argilla),
    PairFormat(TABLE, is_table, read_table),
)
"""The more special first: a flat record of Argilla has a table's columns too."""
