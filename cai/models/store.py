"""The call store: a SQLite cache of all model calls, keyed by content and committed as replies arrive.

It holds the only progress state of a run. A key is a hash of the model's fingerprint and the full request (text, sampling settings, the
item's seed). So a run is resumed by running it again, and after an edit to a principle only the calls whose text changed are repeated.
A workspace has one store; any number of processes may share it (WAL).

Commits are grouped: replies that arrive together (one model batch) form one transaction, and `put` returns when it is on disk. So a batch
is stored completely or not at all, on which a resumed run's batches rest (`cai.models.local.engine`).

A process claims a call before it makes it. Other processes that need the same call wait for its reply. A claim is a lock on one byte of
a file beside the store, which the kernel releases when the process ends for any reason.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cai.core.waiting import NOTICE_SECONDS, tell_waiting
from cai.errors import StoreError

T = TypeVar("T")
SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0
"""Longest wait for another process that writes to the store."""
_CHECKPOINT_PAGES = 4000
"""Pages of write-ahead log (16 MB) before a checkpoint copies it into the file. Keys are random, so a commit changes most pages of their
index; this copies them once for about ten commits. A killed process loses nothing that was committed; a power cut may lose this much.
"""
# Rows are stored in order of arrival, with a separate index of the keys. In a store clustered by key (older ones, which still work), each
# call longer than a quarter of a page takes a page of its own, at a random place on the disk.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    key BLOB NOT NULL UNIQUE, stage TEXT NOT NULL, model TEXT NOT NULL,
    request BLOB NOT NULL, reply BLOB NOT NULL, seconds REAL NOT NULL, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)
"""


_INSERT = "INSERT OR REPLACE INTO calls (key, stage, model, request, reply, seconds) VALUES (?, ?, ?, ?, ?, ?)"


class CallStore:
    """A persistent map from call key to reply. Use one per process, from one event loop.

    Args:
        path: the SQLite file, created if missing. `None` keeps calls in memory, for tests and one-off commands.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._pending: list[tuple[bytes, str, str, bytes, bytes, float]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._encoder = msgspec.json.Encoder()
        self._decoders: dict[type, msgspec.json.Decoder[Any]] = {}
        self._claims: int | None = None
        self._seen: tuple[tuple[int, int] | None, ...] = ()
        self._bytes = 0
        self._lost: StoreError | None = None
        with self._explained():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise StoreError(
                f"{self.path}: call store of version {version}; this cai reads version {SCHEMA_VERSION}. "
                "Use the cai that made it, or move the file away."
            )
        tables = {str(name) for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "calls" not in tables:
            raise StoreError(f"{self.path}: is no call store, but a database of another program ({min(tables)[:40]!r}). Move it away.")
        self._write_ahead()
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        if version == 0:
            self._db.execute(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        self._db.execute(f"PRAGMA busy_timeout={int(1000 * min(NOTICE_SECONDS, BUSY_SECONDS))}")
        self._db.execute("SELECT 1 FROM calls LIMIT 1").fetchone()  # makes the write-ahead log, if there is none
        self._seen = self._files()

    def _write_ahead(self) -> None:
        """Turn on write-ahead logging. Retries: if two processes do so on a new file, SQLite reports a lock without the usual wait."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as e:
                if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def get(self, key: str, reply_type: type[T]) -> T | None:
        """Return the stored reply, or None. Raises `StoreError`."""
        try:
            row = self._db.execute("SELECT reply FROM calls WHERE key = ?", (bytes.fromhex(key),)).fetchone()
        except sqlite3.Error as e:
            raise self._explanation(e) from e
        if row is None:
            return None
        decoder = self._decoders.get(reply_type)
        if decoder is None:
            decoder = self._decoders[reply_type] = msgspec.json.Decoder(reply_type)
        try:
            return decoder.decode(row[0])  # type: ignore[no-any-return]
        except msgspec.DecodeError as e:
            raise StoreError(_corrupt(self.path, str(e))) from e

    def claim(self, key: str) -> bool:
        """Claim a call before making it. Returns False if another process holds the claim; wait for `True`, then try `get` again.

        Call `release` once the reply is committed. On a file system without locks every claim is granted, and two processes may make the
        same call.
        """
        if self.path is None:
            return True
        try:
            if self._claims is None:
                self._claims = os.open(
                    self.path.with_name(self.path.name + "-claims"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
                )
        except OSError:
            return True
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _claimed_byte(key))
        except OSError as e:
            return e.errno not in (errno.EACCES, errno.EAGAIN)  # both mean that another process has it
        return True

    def holder(self, key: str) -> str:
        """Say which process holds the claim of a call."""
        if self._claims is None or sys.platform != "linux":
            return "a process on this machine"
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _claimed_byte(key), 1, 0)
        try:
            pid = struct.unpack("hhqqi4x", fcntl.fcntl(self._claims, fcntl.F_GETLK, asked))[-1]
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return "a process that this one can't see"
        return f"process {pid}" + (f", which is stopped (go on with: kill -CONT {pid})" if state in "Tt" else "")

    def release(self, key: str) -> None:
        """Release a claim, after the reply was committed or the call failed."""
        if self._claims is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _claimed_byte(key))

    async def put(self, key: str, stage: str, model: str, request: Any, reply: Any, seconds: float) -> None:
        """Store a reply, and return when it is committed. Replies put in the same iteration of the event loop share one transaction.

        If the disk is full, it raises `StoreError`, and the caller may retry.

        Args:
            key: 64 hex characters.
            stage: the stage that made the call, for `cai status` and costs.
            request: the full request, kept so that the store can be read on its own.
            seconds: wall-clock time from request to reply.
        """
        row = (bytes.fromhex(key), stage, model, self._encoder.encode(request), self._encoder.encode(reply), seconds)
        loop = asyncio.get_running_loop()
        if not self._pending:
            loop.call_soon(loop.call_soon, self._commit)  # two iterations, so that all replies of a batch are included
        committed: asyncio.Future[None] = loop.create_future()
        self._pending.append(row)
        self._waiting.append(committed)
        await committed

    def _commit(self) -> None:
        rows, self._pending = self._pending, []
        waiting, self._waiting = self._waiting, []
        failed: Exception | None = None
        try:
            with self._explained():
                self._watch()
                self._begin()
                try:
                    self._db.executemany(_INSERT, rows)
                    self._db.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                    raise
            failed = self._lost
        except Exception as e:  # noqa: BLE001 - set on every waiting future, which raises it
            failed = e
        for committed in waiting:
            if committed.done():  # its waiter was cancelled
                continue
            if failed is None:
                committed.set_result(None)
            else:
                committed.set_exception(failed)
                committed.exception()  # marks the exception as retrieved: the waiter may be cancelled before it wakes

    def _begin(self) -> None:
        """Begin to write. Where another process writes, wait for it, and say so."""
        started = time.monotonic()
        while True:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as e:
                waited = time.monotonic() - started
                if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or waited > BUSY_SECONDS:
                    raise
            tell_waiting(
                "store",
                f"Waiting since {waited:.0f} s for another process that writes to {self.path}. Let it go on, or stop it (fuser {self.path} "
                f"names it); after {BUSY_SECONDS:.0f} s this run stops, and every finished call is kept.",
            )

    def _files(self) -> tuple[tuple[int, int] | None, ...]:
        """Return device and inode of the store's file and of its two companions, None where there is none."""
        found: list[tuple[int, int] | None] = []
        for suffix in ("", "-wal", "-shm") if self.path is not None else ():
            try:
                status = Path(f"{self.path}{suffix}").stat()
            except FileNotFoundError:
                found.append(None)
            else:
                found.append((status.st_dev, status.st_ino))
                self._bytes = self._bytes if suffix else status.st_size
        return tuple(found)

    def _watch(self) -> None:
        """Notice that the store was deleted, cut or replaced while it is open; SQLite doesn't. What it had then goes to a new file."""
        if self.path is None or self._lost is not None:
            return
        before, now = self._bytes, self._files()
        if now == self._seen and self._bytes >= before:
            return
        found = "cut" if now == self._seen else "deleted" if None in now else "replaced"
        kept = next(p for i in range(10**6) if not (p := self.path.with_name(f"calls-rescued-{i}.sqlite")).exists())
        lost, self._db = self._db, sqlite3.connect(kept, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            lost.backup(self._db)
        except sqlite3.Error:  # cut: only what is to come can be kept
            self._prepare()
        lost.close()
        self._lost = StoreError(
            f"{self.path}: the call store was {found} while this run used it. What this run could keep is in {kept}: move it to "
            f"{self.path.name}, without the old {self.path.name}-wal and -shm, and run the same command again."
        )

    def __len__(self) -> int:
        with self._explained():
            return int(self._db.execute("SELECT COUNT(*) FROM calls").fetchone()[0])

    def close(self) -> None:
        """Close the file and release all claims. All stored replies are already committed."""
        self._db.close()
        if self._claims is not None:
            os.close(self._claims)
            self._claims = None

    def __enter__(self) -> "CallStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            with self._explained():
                self._watch()
        except StoreError:
            if kind is None:
                raise
        finally:
            self.close()
        if kind is None and self._lost is not None:
            raise self._lost

    @contextlib.contextmanager
    def _explained(self, path: Path | None = None) -> Iterator[None]:
        """Turn SQLite's errors into a `StoreError` that says what to do and names `path`, or else this store."""
        try:
            yield
        except (sqlite3.Error, OSError) as e:
            if isinstance(e, StoreError):
                raise
            raise self._explanation(e, path) from e

    def _explanation(self, e: sqlite3.Error | OSError, path: Path | None = None) -> StoreError:
        path = path or self.path
        text = str(e).lower()
        if "full" in text:
            fix = "the disk is full. Free some space and run again: every finished call is kept."
        elif "locked" in text or "busy" in text:
            fix = f"another process held the store for over {BUSY_SECONDS:.0f} s. Wait for it, or stop it, and run again."
        elif "malformed" in text or "not a database" in text or "corrupt" in text:
            fix = _corrupt(path, str(e))
        elif "readonly" in text or "unable to open" in text or isinstance(e, PermissionError):
            fix = "can't be written or opened. Give the folder write permission, or use another workspace."
        elif "i/o error" in text:
            fix = f"can't be written or read ({e}). Check the disk and the file size limit (ulimit -f): every finished call is kept."
        else:
            fix = str(e)
        return StoreError(fix if fix.startswith(str(path)) else f"{path}: {fix}")


def _claimed_byte(key: str) -> int:
    return int(key[:15], 16)  # a file's offsets have 63 bits


def _corrupt(path: Path | None, found: str) -> str:
    return (
        f"{path}: the call store is damaged ({found}). It was not changed. Recover the readable part with\n"
        f"  sqlite3 {path} .recover | sqlite3 recovered.sqlite\n"
        "and put that file in its place, or move it away to start a new store."
    )
