"""Human labelling: the queues of pairs, the order in which each rater sees them, and the files of answers.

Each rater has one file per queue, `labels/QUEUE.RATER.jsonl`, of `HumanLabel` records, which `cai human import` and recipes read. An
answer is one line, appended under a lock and synced before it is confirmed, so a killed process loses no confirmed answer. There is no
other state: labelling resumes from the file.
"""

import contextlib
import fcntl
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec

from cai.core.jsonl import append_record, disk_error, no_link, read_existing, read_records, write_text
from cai.core.workspace import Workspace, is_text
from cai.errors import CaiError, DataError
from cai.ids import content_hash, split_fraction
from cai.labels.pooling import ADJUDICATOR, pair_key
from cai.labels.to_label import ToLabel, load_to_label
from cai.records import HumanLabel, ResponsePair

Choice = Literal["a", "a-slightly", "tie", "both-bad", "b-slightly", "b"]
P_A: dict[Choice, float] = {"a": 1.0, "a-slightly": 0.75, "tie": 0.5, "both-bad": 0.5, "b-slightly": 0.25, "b": 0.0}
"""Probability that A is better. It falls evenly over the five places, as on a scale that `cai human import --choices` reads."""
BLOCK = 10
"""Number of consecutive pairs that are shuffled for each rater. A queue starts with its most informative pairs."""
MAX_NAME = 60
GOLD = "gold.jsonl"
"""File in `labels/` with pairs whose right answer is known: attention checks, of which every block of a queue gets one."""
_SAFE = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")


class NotLastError(DataError):
    """Only a rater's last answer can be undone."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A file of pairs."""

    id: str
    path: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """The next pair for a rater, and the rater's progress."""

    done: int
    total: int
    key: str | None
    """Key of the pair; None when all pairs are labelled."""
    pair: ResponsePair | None
    """The pair, with its sides in this rater's order."""
    last: str | None
    """Key of the last answered pair, which undo removes."""


class Labelling:
    """The queues and labels of one workspace.

    Args:
        workspace: the workspace; queues are in `labels/queues/`, answers in `labels/`.
        files: additional queue files.
    """

    def __init__(self, workspace: Workspace, files: Sequence[Path] = ()) -> None:
        self.folder = workspace.root / "labels"
        self.queue_folder = self.folder / "queues"
        self._files = tuple(files)

    def queues(self) -> dict[str, Queue]:
        """Return all queues by id."""
        own = sorted(p for p in self.queue_folder.glob("*.json*") if p.suffix in (".json", ".jsonl") and p.is_file() and is_text(p.name))
        found = [Queue(self._id(p), p) for p in own]
        found += [Queue(f"{_slug(p.name.replace('.', '-'))}-{content_hash(str(p.resolve()))[:6]}", p) for p in self._files]
        return {queue.id: queue for queue in found}

    def _id(self, path: Path) -> str:
        """Return the id of a queue of this workspace. A name with dots gets a hash, unless its labels have the id of earlier versions."""
        plain = _slug(path.name.replace(".", "-"))
        if "." not in path.stem:
            return plain
        for file in sorted(self.folder.glob(f"{plain}.*.jsonl")):
            first = next(read_records(file, HumanLabel, torn_tail="drop"), None)
            if first is not None and first.source == f"human:{path.name}":
                return plain
        return f"{plain[:40]}-{content_hash(path.name)[:8]}"

    def queue(self, queue_id: str) -> Queue:
        """Return a queue. Raises `DataError` if the id is unknown."""
        try:
            return self.queues()[queue_id]
        except KeyError:
            raise DataError(f"no queue {queue_id}; there are: {', '.join(self.queues()) or 'none'}") from None

    def to_label(self, queue: Queue) -> ToLabel:
        """Return the pairs of a queue, with the attention checks among them. Raises `DataError` if it has none."""
        found = _read(queue.path)
        checks = self.checks()
        return found if checks is None else replace(found, pairs=_mixed(found.pairs, checks.pairs))

    def checks(self) -> ToLabel | None:
        """Return the attention checks; None if there is no `GOLD`. Raises `DataError` if it can't be read."""
        path = self.folder / GOLD
        return _read(path) if path.exists() else None

    def file(self, queue: Queue, rater: str) -> Path:
        """Return the path of a rater's answers."""
        return self.folder / f"{queue.id}.{_slug(rater)}.jsonl"

    def done(self, queue: Queue, rater: str) -> dict[str, HumanLabel]:
        """Return a rater's answers by key of the pair, oldest first, including pairs that are no longer in the queue."""
        return {pair_key(label): label for label in read_existing(self.file(queue, rater), HumanLabel, torn_tail="drop")}

    def progress(self, queue: Queue) -> dict[str, int]:
        """Return the number of labelled pairs by rater."""
        found: dict[str, int] = {}
        for path in sorted(self.folder.glob(f"{queue.id}.*.jsonl")):
            for label in read_records(path, HumanLabel, torn_tail="drop"):
                found[label.annotator] = found.get(label.annotator, 0) + 1
        return found

    def turn(self, queue: Queue, rater: str, skipped: Sequence[str] = ()) -> Turn:
        """Return the rater's next pair without an answer. Skipped pairs come last, in the order in which they were skipped."""
        pairs, done = self.to_label(queue).pairs, self.done(queue, rater)
        left = [key for key in order(list(pairs), rater) if key not in done]
        skips = {key: i for i, key in enumerate(skipped)}
        key = min(left, key=lambda k: skips.get(k, -1), default=None)
        shown = None if key is None else as_shown(pairs[key], key, rater)
        return Turn(len(pairs) - len(left), len(pairs), key, shown, next(reversed(done), None))

    def answer(self, queue: Queue, rater: str, key: str, choice: Choice, note: str = "") -> bool:
        """Store an answer and the rater's note; return False if the rater has already answered this pair in another tab.

        Raises:
            DataError: the pair is not in the queue.
            StoreError: the disk is full or the file can't be written.
        """
        pair = self.to_label(queue).pairs.get(key)
        if pair is None:
            raise DataError(f"{queue.path.name}: the pair is not in this queue. The file may have changed. Reload the page.")
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        label = HumanLabel(
            as_shown(pair, key, rater), rater, P_A[choice], f"human:{queue.path.name}", time, {}, note.strip(), choice == "both-bad"
        )
        path = self.file(queue, rater)
        with _locked(path) as descriptor:
            if key in self.done(queue, rater):
                return False
            append_record(path, label)
            os.fsync(descriptor)
        return True

    def undo(self, queue: Queue, rater: str, key: str) -> None:
        """Remove a rater's last answer, or any decision of the adjudicator.

        Raises:
            NotLastError: the last answer is for another pair, or there is no such decision.
            StoreError: the file can't be written.
        """
        path = self.file(queue, rater)
        with _locked(path) as descriptor:
            lines = path.read_bytes().split(b"\n")[:-1]  # after the last line break there is at most an incomplete line
            if rater == ADJUDICATOR:
                kept = [line for line in lines if pair_key(msgspec.json.decode(line, type=HumanLabel)) != key]
                if len(kept) == len(lines):
                    raise NotLastError("This decision was undone in another tab. Reload the page.")
                write_text(path, b"".join(line + b"\n" for line in kept).decode())
                return
            last = msgspec.json.decode(lines[-1], type=HumanLabel) if lines else None
            if last is None or pair_key(last) != key:
                raise NotLastError("This is not your last answer: there is a newer one from another tab. Reload the page.")
            os.truncate(descriptor, sum(len(line) + 1 for line in lines[:-1]))
            os.fsync(descriptor)


def rater_name(text: str) -> str:
    """Normalise a rater's name. Raises `DataError` unless it has 1 to `MAX_NAME` printable characters."""
    name = " ".join(text.split())
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise DataError(f"a rater's name must have 1 to {MAX_NAME} printable characters")
    return name


def order(keys: Sequence[str], rater: str) -> list[str]:
    """Return pairs in a rater's order: blocks in the order of the queue, shuffled by hash within each block."""
    places = sorted((i // BLOCK, split_fraction(key, f"studio-order:{rater}"), i) for i, key in enumerate(keys))
    return [keys[i] for _, _, i in places]


def _mixed(pairs: Mapping[str, ResponsePair], checks: Mapping[str, ResponsePair]) -> dict[str, ResponsePair]:
    """Return the pairs with one check in each block of them."""
    mixed: dict[str, ResponsePair] = {}
    waiting = iter([(key, pair) for key, pair in checks.items() if key not in pairs])
    for number, (key, pair) in enumerate(pairs.items()):
        if number % (BLOCK - 1) == 0:
            mixed.update(itertools.islice(waiting, 1))
        mixed[key] = pair
    return mixed


def as_shown(pair: ResponsePair, key: str, rater: str) -> ResponsePair:
    """Return a pair with its sides swapped for half of the pairs, by a hash of pair and rater."""
    return pair.swapped() if split_fraction(key, f"studio-sides:{rater}") < 0.5 else pair


def _read(path: Path) -> ToLabel:
    """Return the pairs of a file, from memory unless it has changed. Raises `DataError`."""
    try:
        stat = path.stat()
    except OSError as e:
        raise DataError(f"{path}: can't be read ({e.strerror or e})") from e
    return _loaded(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _loaded(path: Path, modified: int, size: int) -> ToLabel:
    return load_to_label(path)


def _slug(name: str) -> str:
    """Return a name for use in a file name. Unless the name is plain, a hash is added, so that different names have different files."""
    if _SAFE.fullmatch(name):
        return name
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.casefold()).strip("-")[:30]
    return f"{plain}-{content_hash(name)[:8]}".lstrip("-")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Lock a label file exclusively, and yield its file descriptor. Raises `StoreError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(path, "ab", opener=no_link) as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if not path.exists() or path.stat().st_ino != os.fstat(handle.fileno()).st_ino:
                    continue  # it was replaced while this waited for the lock
                yield handle.fileno()
                return
    except CaiError:
        raise  # raised by the block; a `StoreError` is also an `OSError`
    except OSError as e:
        raise disk_error(e, path) from e
