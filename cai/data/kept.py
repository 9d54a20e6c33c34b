"""Bounds what is kept in memory of a file: a small packed one may hold a hundred million rows."""

from collections.abc import Sequence

from cai.errors import DataError
from cai.records import Failure

MAX_FAULTS = 300_000
MAX_KEPT_BYTES = 3 * 1024**3
"""Memory for what is kept of one file: two million labels of a few words."""
_ITEM_BYTES = 1500
"""Of a label of a few words, with all that is made of it (measured)."""


def refuse_many(failures: Sequence[Failure]) -> None:
    """Stop reading where more rows can't be used than anyone wants to read of. Raises `DataError`."""
    if len(failures) > MAX_FAULTS:
        raise DataError(f"{failures[-1].item_id}: more than {MAX_FAULTS:,} rows can't be used, this one: {failures[-1].detail[:300]}")


class Kept:
    """Counts what is kept in memory of a file.

    Args:
        where: the file, for the message.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._items = self._bytes = 0

    def add(self, *texts: str) -> None:
        """Count an item with its texts. Raises `DataError` if all take too much."""
        self._items += 1
        self._bytes += _ITEM_BYTES + sum(map(len, texts))
        if self._bytes > MAX_KEPT_BYTES:
            raise DataError(
                f"{self._where}: its first {self._items:,} items take {MAX_KEPT_BYTES >> 20} MiB of memory, and all would be kept there.\n"
                "Fix: take a sample of its rows, or split it into several files"
            )
