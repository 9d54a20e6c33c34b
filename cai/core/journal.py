"""Results of an unfinished stage, in item order, so that a stage of a million items resumes in seconds.

The journal is only a cache. The call store holds the calls behind every result and gives the same results at about 0.1 ms per call.
Unreadable lines, or a journal of other settings, are therefore discarded and rebuilt from the call store.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec

from cai.core.jsonl import NOT_JSON, disk_error

R = TypeVar("R")


class Journal(Generic[R]):
    """A file of results: a header line, then one line per item; `null` marks an item that failed and must be processed again.

    Args:
        path: path of the file. Only one process may use it at a time.
        of: header: identifies the settings that determine the results. A file with another header is started afresh.
        result_type: type of one result.
    """

    def __init__(self, path: Path, of: str, result_type: Any) -> None:
        self.path = path
        self._head = msgspec.json.encode(of) + b"\n"
        self._decoder = msgspec.json.Decoder(result_type | None)
        self._encoder = msgspec.json.Encoder()
        self._known = self._added = 0
        self._file: BinaryIO | None = None

    def known(self) -> Iterator[R | None]:
        """Yield the stored results up to the first unreadable line; truncate the file there.

        Raises:
            StoreError: the file can't be read or written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as f:
                f.seek(0)
                end = len(self._head) if f.readline() == self._head else 0
                for line in f if end else ():
                    try:
                        result: R | None = self._decoder.decode(line if line.endswith(b"\n") else b"")
                    except NOT_JSON:
                        break
                    end += len(line)
                    self._known += 1
                    yield result
                f.truncate(end)
                if not end:
                    f.write(self._head)
        except OSError as e:
            raise disk_error(e, self.path) from e

    def add(self, result: R | None) -> None:
        """Append the next item's result, or `None` if it failed. Results that `known` has yielded are not written again.

        Raises:
            StoreError: the disk is full or the file can't be written.
        """
        self._added += 1
        if self._added <= self._known:
            return
        try:
            if self._file is None:
                self._file = self.path.open("ab")
            self._file.write(self._encoder.encode(result) + b"\n")
        except OSError as e:
            raise disk_error(e, self.path) from e

    def close(self) -> None:
        """Flush and close the file. A full disk loses nothing, because the call store has the calls."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
