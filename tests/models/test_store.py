"""The call store: what was put is there after anything, and what goes wrong says what to do."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cai.models.store
from cai.errors import StoreError
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, Completion
from cai.models.store import SCHEMA_VERSION, CallStore
from cai.records import Message
from tests.models.storing import fill, key, opened, put

REQUEST = ChoicesRequest((Message("user", "Is it?"),), ("Yes", "No"))
REPLY = ChoiceLogprobs((-0.1, -2.5), 12)


def test_a_reply_comes_back_as_it_was_after_reopening(path: Path) -> None:
    reply = Completion("naïve 😀 \x00 \n", True, 0, 7)
    with CallStore(path) as store:
        assert store.get(key("a"), Completion) is None
        asyncio.run(store.put(key("a"), "respond", "m", REQUEST, reply, 1.5))
        asyncio.run(store.put(key("b"), "feedback", "m", REQUEST, REPLY, 0.5))
        assert store.get(key("a"), Completion) == reply
    with CallStore(path) as store:
        assert store.get(key("a"), Completion) == reply
        assert store.get(key("b"), ChoiceLogprobs) == REPLY
        assert store.get(key("c"), Completion) is None
        assert len(store) == 2


def test_a_store_explains_itself_to_sqlite(path: Path) -> None:
    with CallStore(path) as store:
        asyncio.run(store.put(key("a"), "feedback", "the model", REQUEST, REPLY, 0.5))
    db = sqlite3.connect(path)
    row = db.execute(
        "SELECT stage, model, json_extract(request, '$.choices[1]'), json_extract(reply, '$.prompt_tokens') FROM calls"
    ).fetchone()
    db.close()
    assert row == ("feedback", "the model", "No", 12)


def test_a_call_put_again_replaces_the_first() -> None:
    with CallStore(None) as store:
        for text in ("one", "two"):
            asyncio.run(put(store, 0, text))
        assert len(store) == 1
        assert store.get(key(0), Completion) == Completion("two 0", False, 3, 4)


def test_replies_that_arrive_together_are_one_transaction(path: Path, connections: list[sqlite3.Connection]) -> None:
    statements: list[str] = []
    with CallStore(path) as store:
        connections[-1].set_trace_callback(statements.append)

        async def run() -> None:
            await asyncio.gather(*(put(store, i) for i in range(200)))
            await put(store, 200)

        asyncio.run(run())
        connections[-1].set_trace_callback(None)
        assert len(store) == 201
    assert [s for s in statements if s in ("BEGIN IMMEDIATE", "COMMIT")] == ["BEGIN IMMEDIATE", "COMMIT"] * 2


def test_everyone_woken_by_one_future_shares_a_transaction(connections: list[sqlite3.Connection]) -> None:
    statements: list[str] = []

    async def run(store: CallStore) -> None:
        batch: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def one(i: int) -> None:
            await batch
            await put(store, i)

        tasks = [asyncio.create_task(one(i)) for i in range(50)]
        await asyncio.sleep(0)
        batch.set_result(None)
        await asyncio.gather(*tasks)

    with CallStore(None) as store:
        connections[-1].set_trace_callback(statements.append)
        asyncio.run(run(store))
        connections[-1].set_trace_callback(None)
    assert statements.count("COMMIT") == 1


def test_put_returns_only_when_another_process_could_read_it(path: Path) -> None:
    async def run(store: CallStore) -> int:
        await put(store, 0)
        other = sqlite3.connect(path)
        count = other.execute("SELECT COUNT(*) FROM calls").fetchone()[0]
        other.close()
        return int(count)

    with CallStore(path) as store:
        assert asyncio.run(run(store)) == 1


def test_a_cancelled_waiter_takes_nobody_elses_reply_along() -> None:
    async def run(store: CallStore) -> None:
        tasks = [asyncio.create_task(put(store, i)) for i in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [None, None]

    with CallStore(None) as store:
        asyncio.run(run(store))
        assert len(store) == 3


def complaint(path: Path, work: Callable[[Path], None] = opened) -> str:
    with pytest.raises(StoreError) as e:
        work(path)
    assert str(e.value).startswith(f"{path}: ")
    return str(e.value)


def test_a_file_that_is_no_database_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"these are somebody's notes, not a database\n" * 100)
    before = path.read_bytes()
    said = complaint(path)
    assert "damaged" in said and ".recover" in said and "not changed" in said
    assert path.read_bytes() == before


def test_a_store_with_overwritten_pages_is_reported_and_left(path: Path) -> None:
    fill(path, 200, "x" * 500)
    with path.open("r+b") as f:
        for page in range(1, path.stat().st_size // 4096):
            f.seek(4096 * page)
            f.write(b"\xaa" * 2000)
    before = path.read_bytes()
    assert ".recover" in complaint(path)
    assert path.read_bytes() == before


def test_a_cut_off_store_is_reported(path: Path) -> None:
    fill(path, 200, "x" * 500)
    os.truncate(path, 4096 * 5)
    assert "damaged" in complaint(path)


def test_a_reply_of_another_shape_is_damage_not_a_miss(path: Path) -> None:
    fill(path, 1)
    with CallStore(path) as store, pytest.raises(StoreError, match="damaged"):
        store.get(key(0), ChoiceLogprobs)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99, -1])
def test_another_version_is_refused_and_left(path: Path, version: int) -> None:
    fill(path, 1)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={version}")
    db.close()
    before = path.read_bytes()
    assert f"call store of version {version}; this cai reads version {SCHEMA_VERSION}" in complaint(path)
    assert path.read_bytes() == before


def test_a_full_disk_stops_with_the_fix_and_keeps_what_was_finished(path: Path, connections: list[sqlite3.Connection]) -> None:
    fill(path, 10)
    with CallStore(path) as store:
        pages = connections[-1].execute("PRAGMA page_count").fetchone()[0]
        connections[-1].execute(f"PRAGMA max_page_count={pages + 2}")

        async def run() -> list[Any]:
            return await asyncio.gather(*(put(store, i, "x" * 5000) for i in range(10, 20)), return_exceptions=True)

        results = asyncio.run(run())
        assert all(isinstance(r, StoreError) and "disk is full" in str(r) and "every finished call is kept" in str(r) for r in results)
        assert len(store) == 10  # all of the transaction, or nothing
        connections[-1].execute("PRAGMA max_page_count=1000000")  # somebody freed some space
        assert asyncio.run(run()) == [None] * 10
    with CallStore(path) as store:
        assert len(store) == 20


def test_a_store_that_may_only_be_read_still_answers_and_says_so_on_writing(path: Path, connections: list[sqlite3.Connection]) -> None:
    fill(path, 1)
    with CallStore(path) as store:
        connections[-1].execute("PRAGMA query_only=1")
        assert store.get(key(0), Completion) is not None
        with pytest.raises(StoreError, match="write permission"):
            asyncio.run(put(store, 1))


def test_a_file_without_write_permission_says_what_to_do(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anything")
    fill(path, 1)
    path.chmod(0o444)
    assert "write permission" in complaint(path, lambda p: asyncio.run(put(CallStore(p), 1)))


def test_a_path_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "write permission" in complaint(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    complaint(tmp_path / "file" / "calls.sqlite")


def test_a_store_held_by_another_process_is_named_after_the_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cai.models.store, "BUSY_SECONDS", 0.05)
    fill(path, 1)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with CallStore(path) as store:
        with pytest.raises(StoreError, match="another process held the store"):
            asyncio.run(put(store, 1))
        assert store.get(key(0), Completion) is not None  # readers never wait
        holder.execute("ROLLBACK")
        asyncio.run(put(store, 1))
        assert len(store) == 2
    holder.close()


def test_a_failed_commit_reaches_every_waiter_and_the_next_one_works(path: Path, connections: list[sqlite3.Connection]) -> None:
    with CallStore(path) as store:
        connections[-1].execute("PRAGMA query_only=1")

        async def run() -> list[Any]:
            return await asyncio.gather(*(put(store, i) for i in range(3)), return_exceptions=True)

        assert [type(r) for r in asyncio.run(run())] == [StoreError] * 3
        connections[-1].execute("PRAGMA query_only=0")
        assert asyncio.run(run()) == [None] * 3


def test_a_store_of_the_former_layout_goes_on_as_it_is(path: Path) -> None:
    path.parent.mkdir(parents=True)
    old = sqlite3.connect(path)
    old.execute(
        "CREATE TABLE calls (key BLOB PRIMARY KEY, stage TEXT NOT NULL, model TEXT NOT NULL, request BLOB NOT NULL, reply BLOB NOT NULL, "
        "seconds REAL NOT NULL, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID"
    )
    old.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    old.close()
    fill(path, 3)
    with CallStore(path) as store:
        asyncio.run(put(store, 0, "again"))
        assert len(store) == 3
        assert store.get(key(0), Completion) == Completion("again 0", False, 3, 4)


def test_a_call_takes_little_more_room_than_its_text(path: Path) -> None:
    text = "x" * 1500
    fill(path, 400, text)
    assert path.stat().st_size < 400 * 1.6 * len(text)


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def swap(path: Path) -> None:
    fill(path.with_name("other"), 1)
    path.with_name("other").replace(path)


ACCIDENTS: dict[str, Callable[[Path], None]] = {
    "deleted": remove,
    "deleted with what is not yet in the file": lambda path: Path(f"{path}-wal").unlink(),
    "cut": lambda path: os.truncate(path, 0),
    "replaced": swap,
}


@pytest.mark.attack
@pytest.mark.parametrize("accident", ACCIDENTS)
@pytest.mark.parametrize("later", [0, 3])
def test_a_store_that_is_lost_under_a_run_stops_it_and_its_replies_are_kept_beside(path: Path, accident: str, later: int) -> None:
    store = CallStore(path)
    with pytest.raises(StoreError, match=rf"store was {accident.split()[0]} while this run used it.*calls-rescued-0\.sqlite"), store:
        for i in range(5):
            asyncio.run(put(store, i))
        ACCIDENTS[accident](path)
        for i in range(5, 5 + later):
            with pytest.raises(StoreError, match="while this run used it"):
                asyncio.run(put(store, i))
    remove(path)
    path.with_name("calls-rescued-0.sqlite").rename(path)
    with CallStore(path) as store:
        assert [store.get(key(i), Completion) is not None for i in range(5 + later)] == [True] * (5 + later)


@pytest.mark.attack
def test_a_lost_store_hides_no_other_error(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), CallStore(path) as store:
        asyncio.run(put(store, 1))
        remove(path)
        raise ZeroDivisionError


def test_several_processes_and_checkpoints_are_no_accident(path: Path) -> None:
    with CallStore(path) as one, contextlib.closing(sqlite3.connect(path)) as beside:
        for i in range(20):
            fill(path, i + 1)  # opens and closes beside
            beside.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            asyncio.run(put(one, 100 + i))
    with CallStore(path) as store:
        assert len(store) == 40


@pytest.mark.attack
def test_a_database_of_another_program_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir(parents=True)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE moz_places (id INTEGER)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"is no call store, but a database of another program \('moz_places'\)"):
        CallStore(path)
    assert path.read_bytes() == before and not Path(f"{path}-wal").exists()
