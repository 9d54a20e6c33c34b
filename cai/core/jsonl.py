"""JSONL files of typed records: errors name the line, writes are atomic.

Files with a `.gz` suffix are decompressed when read. An incomplete last line is an error, because `cai` writes files atomically. The
exceptions are `failures.jsonl` and `metrics.jsonl`, which are appended to; their readers pass `torn_tail="drop"`.
"""

import contextlib
import errno
import gzip
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, overload

import msgspec

from cai.errors import CaiError, DataError, StoreError

T = TypeVar("T")
MAX_LINE_BYTES = 32 * 1024 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024
"""Of a file that is read whole."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
"""Name of a file that `atomic_file` is writing."""
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Exceptions that `msgspec` raises for bytes that are not the expected JSON."""


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes. A pipe or a device is refused: one in a folder from someone else would be waited for without end.

    Those under /dev are not, because shells put what a command reads from another there. Raises `OSError`.
    """
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind) and Path("/dev") not in path.absolute().parents:
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def read_file(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """Return a file's bytes. Raises `OSError` as `open_file` does, and if there are more than `most`."""
    with open_file(path) as f:
        content = f.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most // 1024} KiB", str(path))
    return content


@overload
def read_lines(path: Path) -> Iterator[tuple[int, bytes]]: ...
@overload
def read_lines(path: Path, *, blank: bool, too_long: Literal["skip"]) -> Iterator[tuple[int, bytes | None]]: ...
def read_lines(path: Path, *, blank: bool = False, too_long: Literal["error", "skip"] = "error") -> Iterator[tuple[int, bytes | None]]:
    """Yield the number (from 1) and the bytes of each line of a plain or gzip file.

    Args:
        path: the file.
        blank: whether to yield blank lines too.
        too_long: what to do with a line over 32 MiB; `skip` yields None for it.

    Raises:
        DataError: the file is missing, unreadable, not valid gzip, or has a line over 32 MiB.
    """
    with _reading(path) as f:
        number = 0
        while line := f.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                if too_long == "error":
                    raise DataError(f"{path}:{number}: line is longer than {MAX_LINE_BYTES // 2**20} MiB")
                while line and not line.endswith(b"\n"):
                    line = f.readline(MAX_LINE_BYTES)
                yield number, None
            elif blank or line.strip():
                yield number, line


def read_start(path: Path, most: int) -> bytes:
    """Return the first bytes of a plain or gzip file, at most `most`. Raises `DataError` as `read_lines` does."""
    with _reading(path) as f:
        return f.read(most)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[gzip.GzipFile | BinaryIO]:
    try:
        with open_file(path) as raw, gzip.open(raw) if path.suffix == ".gz" else contextlib.nullcontext(raw) as f:
            yield f
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise DataError(f"{path}: not a whole gzip file ({e})") from e
    except OSError as e:
        raise DataError(f"{path}: can't be read ({e.strerror or e})") from e


def read_records(path: Path, record_type: type[T], torn_tail: Literal["error", "drop"] = "error") -> Iterator[T]:
    """Yield the records of a JSONL file.

    Args:
        path: plain or `.gz` file.
        record_type: type of every record; each field is validated.
        torn_tail: what to do with a last line that has no newline and doesn't parse.

    Raises:
        DataError: a line is not such a record. The message names file, line and field.
    """
    decoder = msgspec.json.Decoder(record_type)
    for number, line in read_lines(path):
        try:
            yield decoder.decode(line)
        except NOT_JSON as e:
            if torn_tail == "drop" and not line.endswith(b"\n"):
                return
            raise DataError(f"{path}:{number}: not a {record_type.__name__} record: {e}") from e


def read_existing(path: Path, record_type: type[T], torn_tail: Literal["error", "drop"] = "error") -> Iterator[T]:
    """Yield the records of a JSONL file as `read_records` does, and none where there is no such file."""
    return read_records(path, record_type, torn_tail) if path.is_file() else iter(())


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. If the block succeeds, sync it and rename it to `path`; otherwise delete it.

    The file gets the mode of the one that it replaces; a new one gets what the umask leaves.

    Raises:
        StoreError: the disk is full or the folder can't be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # less the umask, as for any new file
        mode = (path.stat().st_mode if path.exists() else os.fstat(fd).st_mode) & 0o777
        os.fchmod(fd, mode | stat.S_IRUSR | stat.S_IWUSR)
        os.close(fd)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(e, path) from e
    try:
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except CaiError:
        raise  # raised by the block; a `StoreError` is also an `OSError`
    except OSError as e:
        raise disk_error(e, path) from e
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`. If the block succeeds, rename it to `path`; otherwise delete it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary
        apply_umask(temporary)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def apply_umask(folder: Path) -> None:
    """Give the files of a folder the mode that the umask leaves: safetensors makes files that only their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def refuse_overwriting(outs: Iterable[Path | None], inputs: Iterable[Path]) -> None:
    """Refuse output paths that are also inputs: the original could not be restored.

    Args:
        outs: every file that will be written or removed; None is skipped.
        inputs: files, or folders of them, that are read.

    Raises:
        DataError: an output is one of the inputs, possibly under another name, or lies in one.
    """
    sources = [path for path in inputs if path.exists()]
    for out in outs:
        if out is None or not out.exists():
            continue
        around = {p.resolve() for p in (out, *out.absolute().parents)}
        if any(out.samefile(path) or (path.is_dir() and path.resolve() in around) for path in sources):
            raise DataError(f"{out}: is an input file and would be overwritten. Choose another output, or move it away.")


def refuse_replacing(path: Path | None, read: Callable[[Path], object]) -> None:
    """Refuse to replace or remove a file that an earlier call of the same command can't have written.

    Args:
        path: a file that will be written or removed; None, or no file: nothing to refuse.
        read: reads such a file, and raises `CaiError` if it is another.

    Raises:
        DataError: it is another.
    """
    try:
        if path is not None and path.exists():
            read(path)
    except CaiError as e:
        raise DataError(f"{path}: would be replaced, and is not a file of `cai`. Move it away, or choose another output name.") from e


def first_record(record_type: type[T]) -> Callable[[Path], T | None]:
    """Return a function that reads the first record of a JSONL file, for `refuse_replacing`."""
    return lambda path: next(iter(read_records(path, record_type)), None)


@contextlib.contextmanager
def record_writer(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes one record to a JSONL file. The file appears only if the block succeeds.

    Raises:
        StoreError: the disk is full or the folder can't be written.
    """
    encoder = msgspec.json.Encoder()
    with atomic_file(path) as temporary, temporary.open("wb") as f:

        def write(record: Any) -> None:
            f.write(encoder.encode(record) + b"\n")

        yield write


def write_records(path: Path, records: Iterable[Any]) -> int:
    """Write records to a JSONL file atomically; return their number.

    Raises:
        StoreError: the disk is full or the folder can't be written.
    """
    count = 0
    with record_writer(path) as write:
        for record in records:
            write(record)
            count += 1
    return count


def count_records(path: Path) -> int:
    """Return the number of records in a JSONL file, without decoding them. Raises `DataError` as `read_lines` does."""
    return sum(1 for _ in read_lines(path))


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder. Call it only if no other process is writing there."""
    for left in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(left.name) and left.is_file():
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises `StoreError` as `write_records` does."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a record or mapping as an indented JSON file, atomically. Raises `StoreError` as `write_records` does."""
    write_text(path, msgspec.json.format(msgspec.json.encode(value), indent=indent).decode() + "\n")


def append_record(path: Path, record: Any) -> None:
    """Append one record to a log file in one write, so that a killed process leaves at most the last line incomplete.

    An incomplete last line is removed first; otherwise the new record would become part of it.

    Raises:
        StoreError: the disk is full or the folder can't be written.
    """
    line = msgspec.json.encode(record) + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", opener=no_link) as f:
            _cut_torn_tail(f)
            f.write(line)
    except OSError as e:
        raise disk_error(e, path) from e


def no_link(path: str, flags: int) -> int:
    """Open a file that is changed in place, for `open(…, opener=no_link)`: not through a link, which would change another file."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _cut_torn_tail(f: BinaryIO) -> None:
    size = end = f.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        f.seek(start)
        newline = f.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        f.truncate(end)


def disk_error(e: OSError, path: Path) -> StoreError:
    """Convert an operating-system error on a write into a `StoreError` that says how to fix it."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{path}: the disk is full. Free some space and run the same command again: finished calls are kept.")
    if e.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return StoreError(f"{path}: not writable ({e.strerror}). Give the folder write permission, or use another workspace.")
    if e.errno == errno.ELOOP:
        return StoreError(f"{path}: is a link, and what it names would be changed. Remove the link, or put the file itself in its place.")
    if e.errno == errno.EFBIG:
        return StoreError(
            f"{path}: exceeds the file size limit. Raise the limit (ulimit -f) and run the same command again: finished calls are kept."
        )
    return StoreError(f"{path}: can't be written ({e.strerror or e})")
