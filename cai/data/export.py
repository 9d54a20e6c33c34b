"""Exports a run's data in a format of `cai.data.export_formats`: tables as JSON Lines and Parquet, or the format's own files."""

from dataclasses import dataclass
from pathlib import Path

from cai.core.jsonl import atomic_file, disk_error, write_records
from cai.core.plugins import did_you_mean
from cai.data.export_format import ColumnTypes, ExportFormat, Rows, RunData
from cai.data.export_formats import EXPORT_FORMATS
from cai.errors import DataError
from cai.records import Failure


def export_format(name: str) -> ExportFormat:
    """Return the format of a name. Raises `DataError` if it is unknown."""
    known = EXPORT_FORMATS.names()
    if name not in known:
        raise DataError(f"unknown export format {name!r}; expected {', '.join(known)}{did_you_mean(name, known)}")
    return EXPORT_FORMATS.get(name)


def export(data: RunData, name: str, folder: Path) -> "Exported":
    """Write a run's data in one format. Tables of an earlier export that are now empty are removed.

    Args:
        name: name of the format.
        folder: folder to write to; created if missing.

    Raises:
        DataError: the format is unknown, or the run has no data for it.
        StoreError: the folder can't be written.
    """
    format = export_format(name)
    failures: list[Failure] = []
    tables = {table: rows for table, rows in format.rows(data, failures).items() if rows}
    if not tables:
        why = f"; {len(failures)} rows don't fit it, the first: {failures[0].detail}" if failures else ""
        raise DataError(f"nothing to export as {name}: the run has no data for this format yet{why}")
    if format.write is not None:
        format.write(tables, folder)
    for table, columns in format.tables.items():
        lines, parquet = (folder / f"{table}{suffix}" for suffix in (".jsonl", ".parquet"))
        if table in tables:
            write_records(lines, tables[table])
            _write_parquet(parquet, tables[table], columns)
        else:
            _remove(lines)
            _remove(parquet)
    return Exported(format, folder, {table: len(rows) for table, rows in tables.items()}, tuple(failures))


def _write_parquet(path: Path, rows: Rows, columns: ColumnTypes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("content", pa.string()), ("role", pa.string())])
    types = {
        "text": pa.string(),
        "number": pa.float64(),
        "integer": pa.int64(),
        "flag": pa.bool_(),
        "message": message,
        "messages": pa.list_(message),
        "texts": pa.list_(pa.string()),
    }
    # An explicit schema: Arrow can't infer the type of a column of empty lists or nulls.
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, types[column]) for name, column in columns.items()]))
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise disk_error(e, path) from e


@dataclass(frozen=True)
class Exported:
    """Result of an export."""

    format: ExportFormat
    folder: Path
    tables: dict[str, int]
    """Table (path in the folder, without suffix) to its number of rows."""
    failures: tuple[Failure, ...]
