"""Reads a file of labelled pairs, in whichever format it is.

The format is detected from the first readable row and applies to all rows. Unusable rows are counted as failures. Answers in codes are read
afterwards, for the column of all files together.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from cai.core.console import printable
from cai.core.plugins import did_you_mean
from cai.data.conversations import RowFault
from cai.data.kept import Kept, refuse_many
from cai.data.rows import Row
from cai.errors import DataError
from cai.labels.answers import Choices, CodedAnswer, code_of, read_answers
from cai.labels.columns import CHOICES
from cai.labels.formats import families, pair_formats
from cai.labels.readings import ATTRIBUTE_PREFIXES, NOT_PROBABILITY, WHO, Columns, PairRow
from cai.records import Failure, PromptKind

STAGE = "human"
CSV = re.compile(r"\.[ct]sv(\.gz)?:", re.IGNORECASE)
NO_HEADER = " If the file has no header, add a first line with the names of the columns."
MOST_STRANGE = 0.1
"""Share of a file's probabilities that may be none before all are doubted."""
MOST_COLUMNS, MOST_SHOWN = 1000, 60
"""Columns that are told apart, and the characters of each: every row may have others."""
NAMELESS = "(a column without a name)"
_INNER = ("data", "fields")
"""Keys under which Label Studio tasks and Argilla records nest their columns."""


@dataclass(slots=True)
class PairFile:
    """What was read from one file."""

    where: str
    format: str
    rows: int
    readings: list[tuple[str, PairRow]]
    failures: list[Failure]
    unused: tuple[str, ...]
    """Columns that no reader asked for."""
    columns: tuple[str, ...]


def refuse_no_probabilities(file: PairFile) -> None:
    """Raise a `DataError` if many of a file's probabilities are none: then the others aren't either, but percents or a scale."""
    strange = [f for f in file.failures if f.reason == NOT_PROBABILITY]
    if len(strange) > 1 and len(strange) > MOST_STRANGE * (len(strange) + len(file.readings)):
        raise DataError(
            f"{strange[0].item_id}: {strange[0].detail}; so it is in {len(strange)} rows, and the other rows' numbers aren't probabilities "
            "either: none is read. Divide percents by 100; for a scale say which column it is and what it means: "
            "`cai human import --column choice=COLUMN --choices 1..7`"
        )


def settle_answers(files: Sequence[PairFile], stated: Choices | None) -> None:
    """Read the answers of all files of a source, a column at a time. Unreadable ones become failures.

    Raises:
        DataError: a column's values don't fit.
    """
    for file in files:
        refuse_no_probabilities(file)
    rank = {name: i for i, name in enumerate(CHOICES)}
    columns: dict[tuple[str, str], list[tuple[PairFile, int, CodedAnswer]]] = {}
    faults: list[tuple[PairFile, int, RowFault]] = []
    for format in dict.fromkeys(file.format for file in files):
        mine = [file for file in files if file.format == format]
        offered = {name for file in mine for _, one in file.readings if one.said for name, _ in one.said.answers}
        chosen = min(offered, key=lambda name: rank.get(name, len(rank)), default="") if pair_formats()[format].chooses else ""
        for file in mine:
            for i, (_, one) in enumerate(file.readings):
                if one.said is None:
                    continue
                named = [(name, value) for name, value in one.said.answers if name == (chosen or name)]
                try:
                    if not named:
                        raise RowFault("not_labelled", f"{chosen} is empty")
                    name, value = named[0]
                    answer = CodedAnswer(name, code_of(value), one.said.names, one.said.choices)
                    columns.setdefault((format, name), []).append((file, i, answer))
                except RowFault as e:
                    faults.append((file, i, e))
                except RecursionError:
                    faults.append((file, i, RowFault("unreadable", "nested too deeply")))
        for file in mine:
            file.unused = (*file.unused, *sorted(offered - {chosen})) if chosen else file.unused
    problems = []
    for items in columns.values():
        try:
            values = read_answers([answer for _, _, answer in items], stated)
        except DataError as e:
            problems.append(f"{', '.join(dict.fromkeys(file.where for file, _, _ in items))}: {e}")
            continue
        for (file, i, answer), p in zip(items, values, strict=True):
            where, one = file.readings[i]
            if p is None:
                faults.append((file, i, RowFault("no_choice", f"{answer.code!r} names neither response; expected A, B or tie")))
            else:
                file.readings[i] = where, replace(one, said=None, preference=replace(one.preference, p_chosen=p))
    if problems:
        raise DataError("\n".join(problems))
    for file, i, fault in faults:
        file.failures.append(Failure(STAGE, file.readings[i][0], fault.reason, fault.detail))
    for file in files:
        file.failures.sort(key=lambda f: int(f.item_id.rpartition(":")[2]))
        file.readings = [(where, one) for where, one in file.readings if one.said is None]


def read_file(rows: Iterable[Row], name: str, where: str, format: str, kind: PromptKind | None, columns: Mapping[str, str]) -> PairFile:
    """Read rows in one format. Answers in codes are not read yet: see `settle_answers`.

    Args:
        rows: the file's rows.
        name: becomes the labels' source, `human:NAME`.
        where: the file, for messages.
        format: name of a format, or `auto`.
        kind: kind of the prompts whose row names none.
        columns: `cai`'s column name to the file's column name.

    Raises:
        DataError: the format is unknown or not recognised, or no row has a column that was named.
    """
    known = ("auto", *pair_formats())
    if format not in known:
        raise DataError(f"{where}: unknown pair format {format!r}; expected {', '.join(known)}{did_you_mean(format, known)}")
    name, where = printable(name), printable(where)
    found = None if format == "auto" else format
    readings: list[tuple[str, PairRow]] = []
    failures: list[Failure] = []
    count, kept = 0, Kept(where)
    absent = set(columns.values())
    held: dict[str, None] = {}
    read = {*columns, *columns.values()}
    for row in rows:
        count += 1
        refuse_many(failures)
        try:
            value = _mapping(row)
            absent.difference_update(value, *(value[part] for part in _INNER if isinstance(value.get(part), dict)))
            value = _renamed(value, columns)
            found = found or _recognise(value, row.where, columns)
            inner = [part for part in _INNER if isinstance(value.get(part), dict)]
            if len(held) < MOST_COLUMNS:
                held.update(dict.fromkeys(str(key)[:MOST_SHOWN] for part in ([value[p] for p in inner] or [value]) for key in part))
            value = Columns({**value, **{part: Columns(value[part], read, columns) for part in inner}}, read, columns)
            for one in pair_formats()[found].read(value, f"human:{name}", kind):
                if isinstance(one, RowFault):
                    failures.append(Failure(STAGE, row.where, one.reason, one.detail))
                else:
                    kept.add(*_texts_of(one))
                    readings.append((row.where, one))
        except RowFault as e:
            failures.append(Failure(STAGE, row.where, e.reason, e.detail))
        except RecursionError:
            failures.append(Failure(STAGE, row.where, "unreadable", "nested too deeply"))
    if absent and count:
        raise DataError(
            f"{where}: none of its {count} rows has the column {', '.join(map(repr, sorted(absent)))} that was named for one of ours"
        )
    if not (found and pair_formats()[found].own) and not any(one.preference.source != f"human:{name}" for _, one in readings):
        read.discard("source")  # it doesn't say who labelled
    file = PairFile(
        where,
        found or "",
        count,
        readings,
        failures,
        tuple(c or NAMELESS for c in held if c not in read and not _about_people(c)),
        tuple(held),
    )
    if found is None:
        raise nothing_usable("pair", file, failures)
    return file


def _texts_of(one: PairRow) -> Iterator[str]:
    """Yield what a reading holds of its row, however long each of it is."""
    yield from (one.preference.chosen, one.preference.rejected, one.annotator, one.time, one.note)
    yield from (m.content for m in one.preference.prompt.messages)
    yield from chain.from_iterable(one.attributes.items())
    yield from (str(value) for _, value in (one.said.answers if one.said else ()))


def _about_people(column: str) -> bool:
    return column in WHO or column.startswith(ATTRIBUTE_PREFIXES)


def nothing_usable(what: str, file: PairFile, failures: Sequence[Failure]) -> DataError:
    """Return the error for a file without a usable pair or label, with its first failures."""
    first = "".join(f"\n  {f.item_id}: {f.reason}: {f.detail}" for f in failures[:5])
    return DataError(f"{file.where}: no usable {what} in {file.rows} rows{f' read as {file.format}' if file.format else ''}{first}")


def _mapping(row: Row) -> dict[str, Any]:
    if row.fault:
        raise RowFault("unreadable", row.fault)
    if not isinstance(row.value, dict):
        raise RowFault("not_a_row", f"expected a mapping, found {type(row.value).__name__}")
    return row.value


def _renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Add `cai`'s column names to a row, and to a task's `data` or a record's `fields`."""
    if not columns:
        return row
    inner = {part: _renamed(row[part], columns) for part in _INNER if isinstance(row.get(part), dict)}
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}, **inner}


def _recognise(row: dict[str, Any], where: str, columns: Mapping[str, str]) -> str:
    """Detect a file's format by a row's columns. A published data set is not recognised if the user names another column as the answer.

    Raises:
        DataError: no format matches.
    """
    for name, format in pair_formats().items():
        if format.recognise(row) and not (columns.keys() & set(CHOICES) and format.answer not in (None, *columns.values())):
            return name
    raise DataError(
        f"{where}: not recognised as labelled pairs; found columns {', '.join(map(str, row)) or 'none'}. Expected "
        f"{', or '.join(f.expected for f in reversed(families()) if f.expected)}. Name columns of yours with "
        f"`cai human import --column response_a=COLUMN`.{NO_HEADER if CSV.search(where) else ''}"
    )
