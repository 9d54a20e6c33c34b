"""Reads pairs to label from a queue, Label Studio tasks, records, tables, or labelled pairs.

Existing labels and the authors of the responses are dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cai.data.conversations import RowFault
from cai.data.filters import sides_by_hash, texts_key
from cai.data.kept import Kept, refuse_many
from cai.data.rows import Row, read_rows
from cai.errors import DataError
from cai.labels.columns import is_table, named_sides
from cai.labels.load import load_texts
from cai.labels.readings import BY_PEOPLE, PairRow, checked, reading
from cai.records import Failure, Preference, Prompt, ResponsePair


@dataclass(frozen=True, slots=True)
class ToLabel:
    """Unique pairs in the file's order, and the unusable rows."""

    pairs: dict[str, ResponsePair]
    """Pairs by `texts_key`. A hash of the texts orders the responses."""
    failures: tuple[Failure, ...]


def load_to_label(path: Path) -> ToLabel:
    """Read a file of pairs.

    Args:
        path: output of `cai human queue`, Label Studio tasks, `ResponsePair` or `HumanLabel` records, a table with two responses, or any
            format of `cai.labels.load`.

    Raises:
        DataError: the file can't be read, or has no usable pair.
    """
    first = next(iter(read_rows(path)), None)
    failures: list[Failure] = []
    if first is not None and _says_sides(first.value):
        found = list(_from_rows(path, failures))
    else:
        preferences, unusable = load_texts(path)
        failures += unusable
        found = [(p.prompt, p.chosen, p.rejected) for p in preferences]
    pairs = {texts_key(*texts): ResponsePair(texts[0], *sides_by_hash(*texts), "human", BY_PEOPLE) for texts in found}
    if not pairs:
        why = f": {failures[0].item_id}: {failures[0].reason}: {failures[0].detail}" if failures else ""
        raise DataError(f"{path}: no pair to label{why}")
    return ToLabel(pairs, tuple(failures))


def _says_sides(row: Any) -> bool:
    return isinstance(row, dict) and (isinstance(row.get("pair"), dict) or isinstance(row.get("data"), dict) or is_table(row))


def _from_rows(path: Path, failures: list[Failure]) -> Iterator[tuple[Prompt, str, str]]:
    kept = Kept(str(path))
    for row in read_rows(path):
        try:
            p = _preference(row, path.name)
        except RowFault as e:
            failures.append(Failure("human", row.where, e.reason, e.detail))
            refuse_many(failures)
        else:
            kept.add(p.chosen, p.rejected, *(m.content for m in p.prompt.messages))
            yield p.prompt, p.chosen, p.rejected


def _preference(row: Row, name: str) -> Preference:
    value = row.value
    if row.fault or not _says_sides(value):
        raise RowFault("unreadable" if row.fault else "not_a_pair", row.fault or "expected a pair as in the file's first row")
    record = value["pair"] if isinstance(value.get("pair"), dict) else value
    if isinstance(record.get("prompt"), dict):
        try:
            pair = msgspec.convert(record, ResponsePair)
        except msgspec.ValidationError as e:
            raise RowFault("not_a_pair", str(e)) from e
        return checked(PairRow(Preference(pair.prompt, pair.response_a, pair.response_b, 0.5, 1.0, "", (), BY_PEOPLE))).preference
    data = record["data"] if isinstance(record.get("data"), dict) else record
    return reading(*named_sides(data)[1], 0.5, data, f"human:{name}", None).preference
