"""Loads human labels of pairs from published and exported formats, as labels or pooled into `Preference`s.

Used by `cai human import`, `cai judge bench --pairs`, human labels in a mixture, and to read back exports. The format is detected from the
first readable row and applies to all rows. Unusable rows are counted as failures.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.plugins import did_you_mean
from cai.data.conversations import RowFault
from cai.data.filters import softened
from cai.data.rows import HUB, Row, dataset_rows, read_rows, source_files
from cai.errors import DataError
from cai.ids import split_fraction
from cai.labels import pair_formats, vote_formats
from cai.labels.pooling import pool_labels
from cai.labels.readings import PairRow
from cai.labels.vote_formats import COLUMNS, is_column
from cai.recipe import HumanSource, Pooling
from cai.records import Failure, HumanLabel, Preference, PromptKind

STAGE = "human"
FORMATS = {f.name: f for f in (*vote_formats.FORMATS, *pair_formats.FORMATS)}
"""By name, in the order in which a file's first row is held against them."""
_INNER = ("data", "fields")
"""Keys under which Label Studio tasks and Argilla records nest their columns."""


def load_pairs(
    path: Path,
    format: str = "auto",
    kind: PromptKind | None = None,
    limit: int | None = None,
    seed: int = 0,
    pooling: Pooling = "votes",
    smoothing: float = 0.0,
) -> "LoadedPairs":
    """Load labelled pairs from a file.

    Labels with an annotator are pooled into one soft preference per pair; each row without an annotator becomes one preference. Ties,
    identical responses and pairs with different prompts are counted as failures.

    Args:
        path: JSONL, JSON array, CSV or Parquet, plain or `.gz`.
        format: `trl` (`chosen`, `rejected`, and `prompt` unless both share it), `hh` (transcripts), `hhh` (`text_correct`,
            `text_incorrect`), `ultrafeedback` (conversations with `score_chosen`, `score_rejected`), `label-studio` and `argilla` (their
            exports), `table` (two responses and a choice in every row), `rewardbench` (`subset` says what a prompt asks for), `labels` and
            `cai` (its own records), or `auto`.
        kind: kind of the prompts whose row names none; None: `other`.
        limit: maximum number of pairs, chosen by a hash of the seed and the pair's id; raising it only adds pairs.
        seed: see `limit`.
        pooling: how several annotators' labels of one pair are pooled.
        smoothing: see `pool_labels`.

    Raises:
        DataError: the file can't be read, its format isn't recognised, or it has no usable pair.
    """
    return _pairs(read_rows(path), path.name, str(path), format, kind, limit, seed, pooling, smoothing)


def load_labels(
    path: Path,
    format: str = "auto",
    kind: PromptKind | None = None,
    columns: Mapping[str, str] | None = None,
) -> "LoadedLabels":
    """Load all human labels from a file, ties included.

    Args:
        path: as for `load_pairs`.
        format: as for `load_pairs`.
        kind: as for `load_pairs`.
        columns: `cai`'s column name to the file's column name.

    Raises:
        DataError: the file can't be read, its format isn't recognised, it has no human label, or a column is unknown or missing.
    """
    if unknown := [ours for ours in columns or () if not is_column(ours)]:
        raise DataError(f"no format has a column {', '.join(map(repr, unknown))} that could be read from another; there are: {COLUMNS}")
    readings, failures, found, rows = _read(read_rows(path), path.name, str(path), format, kind, columns or {})
    labels = []
    for where, one in readings:
        if one.by_person:
            labels.append(one.label)
        else:
            failures.append(Failure(STAGE, where, "not_human", f"its source is {one.preference.source}: not a person's label"))
    if not labels:
        raise _nothing(str(path), "label", rows, found, failures)
    return LoadedLabels(tuple(labels), tuple(failures), found, rows, Counter(one.doubt for _, one in readings if one.doubt))


def load_texts(path: Path) -> tuple[tuple[Preference, ...], tuple[Failure, ...]]:
    """Load the pairs of a labelled file to label them again, including ties and AI labels.

    Returns:
        The pairs, of which only the texts are used, and the unusable rows.

    Raises:
        DataError: the file can't be read, or its format isn't recognised.
    """
    readings, failures, _, _ = _read(read_rows(path), path.name, str(path), "auto", None, {})
    return tuple(one.preference for _, one in readings), tuple(failures)


def load_human(sources: Sequence[HumanSource], root: Path, seed: int) -> tuple[tuple[Preference, ...], tuple[Failure, ...]]:
    """Load the human labels of a recipe, with each source's weight, temperature and noise applied.

    Returns:
        The preferences and the unusable rows.

    Raises:
        DataError: a source can't be loaded; lists all of them.
    """
    preferences: list[Preference] = []
    failures: list[Failure] = []
    problems: list[str] = []
    for source in sources:
        try:
            for rows, name, where in _source_rows(source, root):
                loaded = _pairs(rows, name, where, "auto", source.kind, source.limit, seed, source.pooling, source.smoothing)
                preferences.extend(softened(p, source) for p in loaded.preferences)
                failures.extend(loaded.failures)
        except DataError as e:
            problems.append(str(e))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(preferences), tuple(failures)


def limited(preferences: Sequence[Preference], limit: int | None, seed: int) -> tuple[Preference, ...]:
    """Keep at most `limit` preferences, chosen by a hash of the seed and their ids, in their order. Raising the limit only adds some."""
    if limit is None or limit >= len(preferences):
        return tuple(preferences)
    order = sorted(range(len(preferences)), key=lambda i: (split_fraction(preferences[i].id, f"limit:{seed}"), i))
    return tuple(preferences[i] for i in sorted(order[:limit]))


def local_sources(sources: Sequence[HumanSource]) -> list[str]:
    """Return the paths and globs of human labels that are not on the Hub."""
    return [s.path for s in sources if not s.path.startswith(HUB)]


def _source_rows(source: HumanSource, root: Path) -> Iterator[tuple[Iterable[Row], str, str]]:
    if source.path.startswith(HUB):
        yield dataset_rows(source.path.removeprefix(HUB), source.split, source.path), source.path, source.path
        return
    for path in source_files(source.path, root):
        rows = dataset_rows(str(path), source.split, source.path) if path.is_dir() else read_rows(path)
        yield rows, path.name, str(path)


def _pairs(
    rows: Iterable[Row],
    name: str,
    where: str,
    format: str,
    kind: PromptKind | None,
    limit: int | None,
    seed: int,
    pooling: Pooling,
    smoothing: float,
) -> "LoadedPairs":
    readings, failures, found, count = _read(rows, name, where, format, kind, {})
    named = [one.label for _, one in readings if one.annotator and one.by_person]
    made = [(at, one.preference) for at, one in readings if not (one.annotator and one.by_person)]
    made += [(where, p) for p in pool_labels(named, pooling, smoothing)]
    preferences: list[Preference] = []
    for at, preference in made:
        if preference.p_chosen == 0.5:
            failures.append(Failure(STAGE, at, "tie", "neither response is preferred"))
        else:
            preferences.append(preference if preference.p_chosen > 0.5 else preference.swapped())
    if not preferences:
        raise _nothing(where, "pair", count, found, failures)
    return LoadedPairs(limited(preferences, limit, seed), tuple(failures), found)


def _read(
    rows: Iterable[Row], name: str, where: str, format: str, kind: PromptKind | None, columns: Mapping[str, str]
) -> tuple[list[tuple[str, PairRow]], list[Failure], str, int]:
    """Read rows in one format; return the parsed rows with their location, the failures, the format and the number of rows."""
    if format != "auto" and format not in FORMATS:
        close = did_you_mean(format, tuple(FORMATS))
        raise DataError(f"{where}: unknown pair format {format!r}; expected auto, {', '.join(FORMATS)}{close}")
    found = None if format == "auto" else format
    readings: list[tuple[str, PairRow]] = []
    failures: list[Failure] = []
    count = 0
    absent = set(columns.values())
    for row in rows:
        count += 1
        try:
            value = _mapping(row)
            absent.difference_update(value, *(value[part] for part in _INNER if isinstance(value.get(part), dict)))
            value = _renamed(value, columns)
            found = found or _recognise(value, row.where)
            for one in FORMATS[found].read(value, f"human:{name}", kind):
                if isinstance(one, RowFault):
                    failures.append(Failure(STAGE, row.where, one.reason, one.detail))
                else:
                    readings.append((row.where, one))
        except RowFault as e:
            failures.append(Failure(STAGE, row.where, e.reason, e.detail))
        except RecursionError:
            failures.append(Failure(STAGE, row.where, "unreadable", "nested too deeply"))
    if absent and count:
        raise DataError(
            f"{where}: none of its {count} rows has the column {', '.join(map(repr, sorted(absent)))} that was named for one of ours"
        )
    if found is None:
        raise _nothing(where, "pair", count, None, failures)
    return readings, failures, found, count


def _nothing(where: str, what: str, rows: int, found: str | None, failures: Sequence[Failure]) -> DataError:
    first = "".join(f"\n  {f.item_id}: {f.reason}: {f.detail}" for f in failures[:5])
    return DataError(f"{where}: no usable {what} in {rows} rows{f' read as {found}' if found else ''}{first}")


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


def _recognise(row: dict[str, Any], where: str) -> str:
    """Detect a file's format by a row's columns.

    Raises:
        DataError: no format matches.
    """
    for name, format in FORMATS.items():
        if format.recognise(row):
            return name
    raise DataError(
        f"{where}: not recognised as labelled pairs; found columns {', '.join(map(str, row)) or 'none'}. Expected `chosen` and `rejected` "
        "(TRL, hh-rlhf, UltraFeedback-binarized, cai), `text_correct` and `text_incorrect` (HHH), `response_a`, `response_b` and `choice`, "
        "or an export of Label Studio or Argilla."
    )


@dataclass(frozen=True)
class LoadedPairs:
    """Labelled pairs and the unusable rows."""

    preferences: tuple[Preference, ...]
    failures: tuple[Failure, ...]
    """Unusable rows; `item_id` is FILE:LINE, or FILE for a pair whose pooled labels tie."""
    format: str


@dataclass(frozen=True)
class LoadedLabels:
    """Human labels and the unusable rows."""

    labels: tuple[HumanLabel, ...]
    failures: tuple[Failure, ...]
    """`item_id` is FILE:LINE."""
    format: str
    rows: int
    doubts: Mapping[str, int]
    """`PairRow.doubt` to its number of labels."""
