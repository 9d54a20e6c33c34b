"""Reads rows of data files and Hub datasets, each with its file and line.

Formats: JSON Lines, a JSON array, CSV and TSV, plain text (one row per line) and Parquet; all except Parquet also gzipped. An unreadable
row has a `fault`; an unreadable file raises `DataError`.
"""

import csv
import glob
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec

from cai.core.console import printable
from cai.core.jsonl import MAX_LINE_BYTES, NOT_JSON, open_file, read_lines
from cai.data.conversations import decoded_turns
from cai.data.encodings import not_utf8, refuse_other_encodings
from cai.errors import DataError

HUB = "hub:"
"""Prefix of a dataset on the Hub: `hub:OWNER/NAME`."""
MAX_ARRAY_BYTES = 256 * 1024 * 1024
MAX_BATCH_BYTES = 256 * 1024 * 1024
MAX_EXPANSION, _SMALL_BYTES = 200, 64 * 1024 * 1024
"""A column of a Parquet file is refused if it unpacks to more than so many times its size, unless it stays small."""
FileKind = Literal["json", "csv", "text", "parquet"]
_KINDS: dict[str, FileKind] = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".txt", ".text"), "text"),
    ".parquet": "parquet",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: its value, or why it can't be read."""

    where: str
    """FILE:LINE; for arrays and Parquet FILE:ROW."""
    value: Any
    fault: str = ""
    """Why the row can't be read; empty for readable rows."""


def source_files(pattern: str, root: Path) -> list[Path]:
    """Return the files or the folder that a path in a recipe refers to, sorted by name.

    Args:
        pattern: path or glob, absolute or relative to the workspace. A relative path must stay inside the workspace.
        root: folder of the workspace.

    Raises:
        DataError: nothing matches, or a relative path leaves the workspace.
    """
    try:
        path = Path(pattern).expanduser()
        (root / path).exists()
    except (RuntimeError, ValueError, OSError) as e:  # no such user; a NUL; too long
        raise DataError(f"{pattern[:200]}: not a valid path ({getattr(e, 'strerror', None) or e})") from e
    if not path.is_absolute() and ".." in path.parts:
        raise DataError(f"{pattern}: leaves the workspace {root}. Move the file into the workspace, or give its absolute path.")
    full = root / path
    if full.exists():
        return [full]
    escaped = str(path) if path.is_absolute() else f"{glob.escape(str(root))}/{path}"
    found = sorted(Path(p) for p in glob.glob(escaped, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = [p for p in found if p.is_file()]
    if not files:
        what = "no file matches this pattern" if glob.has_magic(pattern) else "no such file"
        raise DataError(f"{full}: {what}. Paths in a recipe are relative to the workspace, {root}.")
    return files


def file_kind(path: Path) -> FileKind:
    """Return the format of a file, by its suffix, or by its first line if the suffix is unknown.

    Raises:
        DataError: the file is missing, or its format can't be detected.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind := _KINDS.get(suffix.lower()):
        return kind
    for _, line in read_lines(path):
        if line.lstrip()[:1] in (b"{", b"["):
            return "json"
        break
    raise DataError(f"{path}: unknown file format. Name the file .jsonl, .json, .csv, .tsv, .txt or .parquet (or .gz of these).")


def read_rows(path: Path, kind: FileKind | None = None) -> Iterator[Row]:
    """Yield a file's rows in order: mappings for JSON, CSV and Parquet, strings for text.

    Raises:
        DataError: the file can't be read in its format.
    """
    kind = kind or file_kind(path)
    if kind != "parquet":
        refuse_other_encodings(path, prose=kind == "text")
    reader = {"json": _json_rows, "csv": _csv_rows, "text": _text_rows, "parquet": _parquet_rows}[kind]
    if str(path).isprintable():
        return reader(path)
    return (replace(row, where=printable(row.where)) for row in reader(path))  # records can't hold a name that isn't UTF-8


def dataset_rows(name: str, split: str, shown: str | None = None) -> Iterator[Row]:
    """Yield the rows of one split of a Hub dataset, or of a local folder with the same layout.

    Args:
        name: OWNER/NAME, or the folder's path.
        split: name of the split.
        shown: name of the dataset in messages; None: `name`.

    Raises:
        DataError: the dataset can't be found, downloaded or read.
    """
    import datasets

    local = Path(name).is_dir()
    shown = shown or name
    try:
        # Stream a local folder, which avoids a second copy in the cache.
        for number, value in enumerate(datasets.load_dataset(name, split=split, streaming=local), 1):
            yield Row(f"{shown}[{split}]:{number}", value)
    except Exception as e:
        # The library raises dozens of exception types for missing, unreachable or malformed data.
        fix = "Check the folder's files and `split`." if local else "Check the name, `split`, the network and your Hub login."
        raise DataError(f"{shown}: can't be loaded as a dataset: {type(e).__name__}: {e}. {fix}") from e


def _json_rows(path: Path) -> Iterator[Row]:
    lines = read_lines(path)
    decoder = msgspec.json.Decoder()
    for n, (number, raw) in enumerate(lines):
        line = raw.removeprefix(b"\xef\xbb\xbf")
        if n == 0 and line.strip() == b"{" and next(lines, None):
            raise DataError(
                f"{path}: a JSON object over several lines. Write each row in one line (JSON Lines), or all in an array: [{{…}}, {{…}}]."
            )
        if n == 0 and line.lstrip().startswith(b"["):
            yield from _json_array(path, chain([line], _at_most(path, lines)))
            return
        try:
            yield Row(f"{path}:{number}", decoder.decode(line))
        except NOT_JSON as e:
            yield Row(f"{path}:{number}", None, f"not valid JSON ({e})" if (wrong := _decode_error(line)) is None else not_utf8(wrong))


def _decode_error(line: bytes) -> UnicodeDecodeError | None:
    try:
        line.decode()
    except UnicodeDecodeError as e:
        return e
    return None


def _at_most(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield lines, and stop with an error at a size limit: a small gzipped file may expand to gigabytes."""
    size = 0
    for _, line in lines:
        size += len(line)
        if size > MAX_ARRAY_BYTES:
            raise DataError(
                f"{path}: a JSON array is read into memory and may have at most {MAX_ARRAY_BYTES // 2**20} MiB. Write JSON Lines instead."
            )
        yield line


def _json_array(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield the items one by one: a small gzipped array may hold a hundred million of them."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    whole = bytearray()  # a list of short lines takes ten times their bytes
    for line in lines:
        whole += line
    try:
        text = whole.decode()
        whole.clear()
        at, number = _skip(text, text.index("[") + 1), 0
        while not (number == 0 and text[at : at + 1] == "]"):
            start = at
            item, at = decoder.raw_decode(text, at)
            broken = _HALF_CHARACTER.search(text, start, at) is not None and not _is_text(item)
            number, at = number + 1, _skip(text, at)
            yield (
                Row(f"{path}:{number}", None, "half of a UTF-16 surrogate pair, which is no text")
                if broken
                else Row(f"{path}:{number}", item)
            )
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
        if text[at : at + 1] != "]" or text[at + 1 :].strip():
            raise ValueError(f"expected , or ] at character {at}")
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not a valid JSON array ({e})") from e


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _skip(text: str, at: int) -> int:
    found = _NOT_SPACE.search(text, at)
    return found.start() if found else len(text)


_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def _is_text(item: Any) -> bool:
    """Whether all texts of a decoded value can be written: JSON may escape half a surrogate pair."""
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_rows(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        try:
            yield Row(f"{path}:{number}", line.decode("utf-8-sig").strip())
        except UnicodeDecodeError as e:
            yield Row(f"{path}:{number}", None, not_utf8(e))


def _csv_rows(path: Path) -> Iterator[Row]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _csv_lines(path)
    header, start = None, 0
    for start, text, fault in lines:
        if fault:
            raise DataError(f"{path}:{start}: the header is {fault}")
        if text.strip():
            header = _cells([text.lstrip("\ufeff")], delimiter)
            break
    if header is None:
        return
    if isinstance(header, str):
        raise DataError(f"{path}:{start}: the header can't be read as CSV ({header})")
    header = [name.strip() for name in header]
    _check_header(path, header, delimiter)
    waiting: deque[_Line] = deque()
    while record := _csv_record(waiting, lines, delimiter, len(header)):
        number, cells = record
        if isinstance(cells, str):
            yield Row(f"{path}:{number}", None, cells)
        elif cells and (name := next((n for n, cell in zip(header, cells, strict=True) if _PYTHON_TURNS.match(cell)), None)) is not None:
            yield Row(f"{path}:{number}", None, f"{name} is a list of messages as Python writes it. Save the rows as JSON Lines or Parquet")
        elif cells:
            yield Row(f"{path}:{number}", dict(zip(header, map(decoded_turns, cells), strict=True)))


_PYTHON_TURNS = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from)'\s*:")
_RETURN = re.compile(r"(?<=\r)(?!\n)")
"""After a carriage return that ends a line by itself, as in files of old Macs."""
_Line = tuple[int, str, str]
"""Number and text of a line of a CSV file, and why it can't be read (empty if it can)."""


def _csv_record(waiting: "deque[_Line]", lines: Iterator[_Line], delimiter: str, columns: int) -> tuple[int, list[str] | str] | None:
    """Read one record, which may go over several lines. If it is faulty, only its first line is lost: the others are read again.

    Args:
        waiting: lines to be read again; those of a faulty record are put back.
        lines: the other lines.
        delimiter: the character between cells.
        columns: number of cells in the header.

    Returns:
        The number of the record's first line, and its cells or why they can't be read; no cells for a blank line. None at the end.
    """
    taken: list[_Line] = []
    size, fault = 0, ""
    while line := waiting.popleft() if waiting else next(lines, None):
        taken.append(line)
        _, text, fault = line
        size += len(text)
        if not fault and size > MAX_LINE_BYTES:
            fault = f"a cell is longer than {MAX_LINE_BYTES // 2**20} MiB, or its quotes are not closed"
        if not fault and len(taken) > 1 and text.count('"') % 2 == 0:
            continue  # inside quotes, and they are not closed here, or others are opened
        cells = [] if fault else _cells([text for _, text, _ in taken], delimiter)
        if cells is None:
            continue
        if isinstance(cells, str):
            fault = f"not valid CSV ({cells}): a quote inside a quoted cell must be doubled"
        elif cells and len(cells) != columns:
            fault = f"expected {columns} cells as in the header, found {len(cells)}"
        if not fault:
            return taken[0][0], cells
        break
    if not taken:
        return None
    waiting.extendleft(reversed(taken[1:]))
    return taken[0][0], fault or "a quoted cell is not closed"


def _cells(lines: list[str], delimiter: str) -> list[str] | str | None:
    """Return the cells of one record; None if it isn't complete; the error's text if it isn't valid."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        return next(reader, [])
    except csv.Error as e:
        return None if "unexpected end of data" in str(e) else str(e)


def _csv_lines(path: Path) -> Iterator[_Line]:
    number = 0
    for _, line in read_lines(path, blank=True, too_long="skip"):
        try:
            texts = [""] if line is None else _RETURN.split(line.decode())
        except UnicodeDecodeError as e:
            raise DataError(f"{path}:{number + 1}: {not_utf8(e)}") from e
        for text in filter(None, texts) if line is not None else texts:
            number += 1
            fault = f"longer than {MAX_LINE_BYTES // 2**20} MiB" if line is None else "broken by a NUL byte" if "\0" in text else ""
            yield number, text, fault


def _check_header(path: Path, header: list[str], delimiter: str) -> None:
    """Raise `DataError` if a header was read with the wrong delimiter, or names a column twice."""
    if header and header[0].casefold().startswith("sep="):
        raise DataError(f"{path}: the first line, {header[0][:20]!r}, is Excel's note of the delimiter. Remove it: the header comes first.")
    if found := next((d for d in ",;\t|" if d != delimiter and sum(name.count(d) for name in header) >= len(header)), None):
        shown = {"\t": "tabs", ",": "commas"}.get(found, repr(found))
        want = {"\t": "Name it .tsv", ",": "Name it .csv"}.get(found, "Save it with commas (.csv) or tabs (.tsv)")
        columns = "one column" if len(header) == 1 else f"{len(header)} columns"
        raise DataError(f"{path}: the header is {columns}, {delimiter.join(header)[:100]!r}; its cells are separated by {shown}. {want}.")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"{path}: the header has {', '.join(map(repr, twice))} more than once. Give every column a name of its own.")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with open_file(path) as raw, pyarrow.parquet.ParquetFile(raw) as file:
            for batch in file.iter_batches(_batch_size(path, file.metadata)):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:{number}", value)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, OverflowError, MemoryError, pyarrow.ArrowException) as e:
        if isinstance(e, DataError):
            raise
        refuse_other_encodings(path)
        raise DataError(f"{path}: can't be read as Parquet ({e})") from e


def _batch_size(path: Path, metadata: Any) -> int:
    """Return how many rows to unpack at a time. One row may hold as much as a whole column, because equal cells are stored once.

    Raises:
        DataError: a column unpacks to far more than its size.
    """
    largest = 1
    for group in range(metadata.num_row_groups):
        row_bytes = 0
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            unpacked, packed = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if unpacked > _SMALL_BYTES and unpacked / packed > MAX_EXPANSION:
                raise DataError(
                    f"{path}: column {column.path_in_schema!r} unpacks to {unpacked:,} bytes, {unpacked // packed:,} times its size"
                )
            row_bytes += unpacked
        largest = max(largest, row_bytes)
    return max(1, min(1024, MAX_BATCH_BYTES // largest))
