"""Finds repeated texts among many: the same text (`Seen`), or nearly the same (`NearRepeats`).

A set of hashes is enough for the first. The second keeps every text's shingles, which fit in memory for few texts only: they are in a
private SQLite file in the folder for temporary files, which goes when it is closed or the process dies.
"""

import hashlib
import math
import re
import sqlite3
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from typing import TypeVar

from cai.core.text.words import mostly_unspaced, words
from cai.data.filters import normalise
from cai.errors import StoreError

T = TypeVar("T")
SHINGLE_WORDS = 5
SHINGLE_CHARACTERS = 2
"""Length of a run in scripts without spaces between words."""
_APOSTROPHE = re.compile(r"(?<=[^\W\d])['’ʼ`](?=[^\W\d])")
_MARK = re.compile(r"[^\w\s]|_")
_IN_NUMBER = re.compile(r"(?<=\d)\S(?=\d)|(?<=\d\s)[-*/:](?=\s\d)|(?<![^\s(])-(?=\d)")
"""A mark as in 1.5, 3 - 2 and -1."""
_NAMING = frozenset("#%&@")
"""Punctuation that makes another word: C#."""
_CACHE_KIB = 16 * 1024
_TABLES = (
    "CREATE TABLE texts (number INTEGER PRIMARY KEY, name TEXT NOT NULL, shingles BLOB NOT NULL)",
    "CREATE TABLE lowest (shingle INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (shingle, number)) WITHOUT ROWID",
)
_SHARING = "SELECT number, name, shingles FROM lowest JOIN texts USING (number) WHERE shingle = ? ORDER BY number"


class Seen:
    """A set of texts that only grows. Of each it keeps a 64-bit hash: among ten million, two that differ are taken for one with p < 1e-5.

    Ten million short texts took 714 MiB and 3.0 µs of processor time each, of which hashing is 1.8 µs; a table of SQLite took 16 MiB,
    room on the disk and 8 µs each (at a million).

    >>> seen = Seen()
    >>> [seen.add("a"), "a" in seen, "b" in seen, seen.add("a")]
    [True, True, False, False]
    """

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def add(self, text: str) -> bool:
        """Put a text in; return whether it is new."""
        before = len(self._hashes)
        self._hashes.add(_hash(text))
        return len(self._hashes) > before

    def __contains__(self, text: str) -> bool:
        return _hash(text) in self._hashes


class NearRepeats:
    """Texts that share less than `threshold` of their five-word runs with one another, each under a name.

    Exact Jaccard similarity on shingles. Candidates come from an index of the lowest shingles of every kept text: two sets that share
    a fraction s of their members must share one of their first (1-s)·size + 1 in any common order (prefix filtering, Chaudhuri et al.
    2006), so none is missed and nothing is random. The time grows with the length of the texts, and, where many share some wording but
    too little to be repeats, with the square of their number: each is compared with all of those.

    Args:
        threshold: Jaccard similarity in (0, 1] from which two texts are near-duplicates; 1 finds only the same set of runs.

    Raises:
        StoreError: the disk is full.
    """

    def __init__(self, threshold: float) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (f"PRAGMA cache_size=-{_CACHE_KIB}", "BEGIN", *_TABLES):  # one transaction that never ends
            self._db.execute(statement)
        self.threshold = threshold
        self.comparisons = 0
        self._kept = 0

    def twin(self, text: str, name: str) -> str | None:
        """Return the name of an earlier text that this one nearly repeats; where there is none, keep it under its own and return None."""
        found = next(iter(self.twins(text)), None)
        if found is None:
            self.keep(text, name)
        return found

    def twins(self, text: str) -> Iterator[str]:
        """Yield the names of all kept texts that this one nearly repeats."""
        mine = shingles(text)
        looked_at: set[int] = set()
        for shingle in self._lowest(mine):
            for number, name_of_theirs, packed in self._run(_SHARING, (_signed(shingle),)).fetchall():
                if number in looked_at:
                    continue
                looked_at.add(number)
                self.comparisons += 1
                theirs = array("Q", packed)
                shared = len(mine.intersection(theirs))
                if shared >= self.threshold * (len(mine) + len(theirs) - shared):
                    yield str(name_of_theirs)

    def keep(self, text: str, name: str) -> None:
        """Keep a text under a name."""
        mine = shingles(text)
        self._run("INSERT INTO texts VALUES (?, ?, ?)", (self._kept, name, array("Q", sorted(mine)).tobytes()))
        for shingle in self._lowest(mine):
            self._run("INSERT INTO lowest VALUES (?, ?)", (_signed(shingle), self._kept))
        self._kept += 1

    def _lowest(self, mine: frozenset[int]) -> list[int]:
        return sorted(mine)[: len(mine) - _at_least(self.threshold, len(mine)) + 1]

    def _run(self, statement: str, values: tuple[int | str | bytes, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as e:
            raise StoreError(
                f"what is needed to find repeated prompts can't be kept in the folder for temporary files ({e}). "
                "Free some space there, or name another folder with SQLITE_TMPDIR."
            ) from e

    def close(self) -> None:
        """Remove the file."""
        self._db.close()

    def __enter__(self) -> "NearRepeats":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def drop_near_duplicates(items: Sequence[T], texts: Sequence[str], threshold: float = 0.8) -> tuple[list[T], list[tuple[T, T]]]:
    """Keep the first of every group of items whose texts share most of their five-word runs, as `NearRepeats` finds them.

    Args:
        items: in order of preference.
        texts: one per item.
        threshold: similarity from which two texts are near-duplicates.

    Returns:
        The kept items in order, and each dropped item with the kept one that it repeats.
    """
    kept: list[T] = []
    dropped: list[tuple[T, T]] = []
    with NearRepeats(threshold) as met:
        for number, (item, text) in enumerate(zip(items, texts, strict=True)):
            twin = met.twin(text, str(number))
            if twin is None:
                kept.append(item)
            else:
                dropped.append((item, items[int(twin)]))
    return kept, dropped


def shingles(text: str) -> frozenset[int]:
    """Return 64-bit hashes of all runs of five words of a text as `unpunctuated`; of the whole text where it is shorter.

    In a script without spaces a run is two characters: one changed character then changes as small a share as a changed word does.
    """
    plain = unpunctuated(text)
    tokens = words(plain)
    size = SHINGLE_CHARACTERS if mostly_unspaced(tokens) else SHINGLE_WORDS
    if size == SHINGLE_WORDS:
        tokens = plain.split()
    runs = [tokens[i : i + size] for i in range(max(1, len(tokens) - size + 1))]
    return frozenset(int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest(), "big") for run in runs)


def unpunctuated(text: str) -> str:
    """Normalise a text, and leave its punctuation out, unless that is all it is, or belongs to a number. Of short texts that differ in
    nothing else, most five-word runs would differ.

    >>> unpunctuated("Don't stop: e-mail Bob (in C#) 3-2, -1 or 1.5!")
    'dont stop e mail bob in c# 3-2 -1 or 1.5'
    """
    normal = normalise(text)
    return " ".join(_MARK.sub(_space_for, _APOSTROPHE.sub("", normal)).split()) or normal


def _space_for(mark: re.Match[str]) -> str:
    """Return a space for punctuation that is no part of a number or a name; any other mark as it is."""
    punctuation = mark[0] == "`" or (unicodedata.category(mark[0])[0] == "P" and mark[0] not in _NAMING)
    return " " if punctuation and not _IN_NUMBER.match(mark.string, mark.start()) else mark[0]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _signed(number: int) -> int:
    """Return an unsigned 64-bit number as one that SQLite holds, in the same order."""
    return number - 2**63


def _at_least(threshold: float, size: int) -> int:
    """Members that a set of this size shares with any set of at least this similarity: the least integer ≥ threshold × size."""
    return math.ceil(threshold * size - 1e-9)
