"""Reads rows of data files and Hub datasets, each with its file and line.

Formats: JSON Lines, a JSON array, CSV and TSV, plain text (one row per line) and Parquet; all except Parquet also gzipped. An unreadable
row has a `fault`; an unreadable file raises `DataError`.
"""

import csv
import glob
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from cai.core.jsonl import NOT_JSON, read_lines
from cai.errors import DataError

HUB = "hub:"
"""Prefix of a dataset on the Hub: `hub:OWNER/NAME`."""
MAX_ARRAY_BYTES = 1024 * 1024 * 1024
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
    reader = {"json": _json_rows, "csv": _csv_rows, "text": _text_rows, "parquet": _parquet_rows}[kind]
    return reader(path)


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
        if n == 0 and line.lstrip().startswith(b"["):
            yield from _json_array(path, [line, *_at_most(path, lines)])
            return
        try:
            yield Row(f"{path}:{number}", decoder.decode(line))
        except NOT_JSON as e:
            yield Row(f"{path}:{number}", None, f"not valid JSON ({e})")


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


def _json_array(path: Path, lines: list[bytes]) -> Iterator[Row]:
    try:
        items = msgspec.json.decode(b"".join(lines), type=list[Any])
    except NOT_JSON as e:
        raise DataError(f"{path}: not a valid JSON array ({e})") from e
    for number, item in enumerate(items, 1):
        yield Row(f"{path}:{number}", item)


def _text_rows(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        try:
            yield Row(f"{path}:{number}", line.decode("utf-8-sig").strip())
        except UnicodeDecodeError as e:
            yield Row(f"{path}:{number}", None, f"not UTF-8 text ({e.reason})")


def _csv_rows(path: Path) -> Iterator[Row]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as raw:
            reader = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True)
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    yield Row(where, None, f"expected {len(reader.fieldnames or ())} cells as in the header, found another number")
                else:
                    yield Row(where, row)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: can't be read as UTF-8 CSV ({e})") from e


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for value in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:{number}", value)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, pyarrow.ArrowException) as e:
        raise DataError(f"{path}: can't be read as Parquet ({e})") from e
