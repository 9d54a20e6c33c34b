"""Results of a stage that isn't done, in the order of its items: with them a million items are taken up again in seconds.

A shortcut and no second truth. The call store has the calls behind every result and would give the same ones, at a tenth of a millisecond
a call; so whatever can't be read here (a torn line, the file of other settings) is simply made again from there.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec

from cai.core.jsonl import NOT_JSON, disk_error

R = TypeVar("R")


class Journal(Generic[R]):
    """A file of results: a first line that says of what, then a line for each item, `null` where it failed and is to be tried again.

    Args:
        path: the file. Only one process may use it.
        of: what decides the results; a file of anything else is begun anew.
        result_type: of a result.
    """

    def __init__(self, path: Path, of: str, result_type: Any) -> None:
        self.path = path
        self._head = msgspec.json.encode(of) + b"\n"
        self._decoder = msgspec.json.Decoder(result_type | None)
        self._encoder = msgspec.json.Encoder()
        self._known = self._added = 0
        self._file: BinaryIO | None = None

    def known(self) -> Iterator[R | None]:
        """Yield what is there, up to the first line that can't be read; cut off that line and what follows.

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
        """Add the next item's result, or `None` for one that failed; those that `known` has given are there already.

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
        """Write out what is held back. If the disk is full by now, nothing is lost: the call store has it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
