"""Rows of a data file or a Hub dataset, each with the file and line it came from. What a row means is its caller's business.

Reads JSON Lines, a JSON array, CSV and TSV, plain text (a row per line) and Parquet; all but Parquet also gzipped. A row that can't be
read is a row with a `fault`; a file that can't be read is a `DataError`.
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
"""Opens the path of a dataset on the Hub: `hub:OWNER/NAME`."""
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
    """One row of a file: its value, or what is wrong with it."""

    where: str
    """FILE:LINE; for arrays and Parquet FILE:ROW."""
    value: Any
    fault: str = ""


def source_files(pattern: str, root: Path) -> list[Path]:
    """Return the files or the folder that a path in a recipe means, in name order.

    Args:
        pattern: a path or glob from the workspace, or an absolute one. A relative path must stay inside the workspace.
        root: the workspace.

    Raises:
        DataError: nothing is there, or a relative path leaves the workspace.
    """
    try:
        path = Path(pattern).expanduser()
        (root / path).exists()
    except (RuntimeError, ValueError, OSError) as e:  # no such user; a NUL; too long
        raise DataError(f"{pattern[:200]}: not a path here ({getattr(e, 'strerror', None) or e})") from e
    if not path.is_absolute() and ".." in path.parts:
        raise DataError(f"{pattern}: leaves the workspace {root}. Put the file into it, or give its absolute path.")
    full = root / path
    if full.exists():
        return [full]
    escaped = str(path) if path.is_absolute() else f"{glob.escape(str(root))}/{path}"
    found = sorted(Path(p) for p in glob.glob(escaped, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = [p for p in found if p.is_file()]
    if not files:
        what = "no file matches this pattern" if glob.has_magic(pattern) else "no such file"
        raise DataError(f"{full}: {what}. Paths in a recipe start at the workspace, {root}.")
    return files


def file_kind(path: Path) -> FileKind:
    """Return how to read a file, from its name; a name that doesn't say is looked into.

    Raises:
        DataError: the file is missing, or neither its name nor its content says.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind := _KINDS.get(suffix.lower()):
        return kind
    for _, line in read_lines(path):
        if line.lstrip()[:1] in (b"{", b"["):
            return "json"
        break
    raise DataError(f"{path}: can't tell what this is. Name it .jsonl, .json, .csv, .tsv, .txt or .parquet (or .gz of these).")


def read_rows(path: Path, kind: FileKind | None = None) -> Iterator[Row]:
    """Yield a file's rows in order: mappings for JSON, CSV and Parquet, strings for text.

    Raises:
        DataError: the file can't be read as what it is.
    """
    kind = kind or file_kind(path)
    reader = {"json": _json_rows, "csv": _csv_rows, "text": _text_rows, "parquet": _parquet_rows}[kind]
    return reader(path)


def dataset_rows(name: str, split: str, shown: str | None = None) -> Iterator[Row]:
    """Yield the rows of one split of a Hub dataset, or of a local folder laid out like one.

    Args:
        name: OWNER/NAME, or the folder's path.
        split: which split.
        shown: what messages call it; the name if None.

    Raises:
        DataError: it can't be found, reached or read.
    """
    import datasets

    local = Path(name).is_dir()
    shown = shown or name
    try:
        # A local folder is streamed: no second copy of it in the cache.
        for number, value in enumerate(datasets.load_dataset(name, split=split, streaming=local), 1):
            yield Row(f"{shown}[{split}]:{number}", value)
    except Exception as e:
        # The library raises dozens of types for what is absent, unreachable or malformed; all of them are the user's to fix.
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
    """Yield lines, and give up on a file that a few packed megabytes may have become."""
    size = 0
    for _, line in lines:
        size += len(line)
        if size > MAX_ARRAY_BYTES:
            raise DataError(
                f"{path}: a JSON array of more than {MAX_ARRAY_BYTES // 2**20} MiB, which is read whole. Write JSON Lines instead."
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
