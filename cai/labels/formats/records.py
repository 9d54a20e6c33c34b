"""`cai`'s own records: the labels that `cai human import` writes, and a run's preferences."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import msgspec

from cai.data.conversations import RowFault
from cai.labels.columns import Found, Row
from cai.labels.readings import PairFormat, PairFormats, PairRow, checked, record_fields, with_person
from cai.records import HumanLabel, Preference, PromptKind

T = TypeVar("T", HumanLabel, Preference)


def read_labels(row: Row, source: str, kind: PromptKind | None) -> Iterator[Found]:
    """Read `HumanLabel` records, as `cai human import` writes them."""
    label = _as_record(row, HumanLabel, "not_a_label")
    if not 0.0 <= label.p_a <= 1.0:
        raise RowFault("bad_number", f"p_a is {label.p_a!r}; expected a number from 0 to 1")
    pair, by = label.pair, label.pair.provenance
    cut = (pair.truncated_a, pair.truncated_b)
    preference = Preference(pair.prompt, pair.response_a, pair.response_b, label.p_a, 1.0, label.source, (), by, *cut)
    yield checked(PairRow(preference, True, label.annotator, label.time, label.attributes, note=label.note, both_bad=label.both_bad))


def read_cai(row: Row, source: str, kind: PromptKind | None) -> Iterator[PairRow]:
    """Read `Preference` records, with their own source."""
    p = _as_record(row, Preference, "not_a_preference")
    if p.prompt.kind == "other" and kind:
        p = replace(p, prompt=replace(p.prompt, kind=kind))
    yield checked(with_person(p, row, as_shown=False))


def _as_record(row: Row, record_type: type[T], reason: str) -> T:
    record_fields(row, record_type)
    try:
        return msgspec.convert(row, record_type)
    except msgspec.ValidationError as e:
        raise RowFault(reason, str(e)) from e


def _is_preference(row: Row) -> bool:
    return {"chosen", "rejected", "p_chosen"} <= row.keys() and isinstance(row.get("prompt"), dict)


FORMATS = PairFormats(
    "records",
    (
        PairFormat("labels", lambda row: isinstance(row.get("pair"), dict) and {"annotator", "p_a"} <= row.keys(), read_labels, own=True),
        PairFormat("cai", _is_preference, read_cai, own=True),
    ),
)
