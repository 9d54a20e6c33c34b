"""The call store: what was put is there after anything, and what goes wrong says what to do."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import cai.models.store
from cai.core.console import Reporter
from cai.core.waiting import telling
from cai.errors import StoreError
from cai.ids import content_hash
from cai.models.base import TextModel
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, Sampling
from cai.models.scripted import ScriptedEngine
from cai.models.store import SCHEMA_VERSION, CallStore
from cai.records import Message

REQUEST = ChoicesRequest((Message("user", "Is it?"),), ("Yes", "No"))
REPLY = ChoiceLogprobs((-0.1, -2.5), 12)


def key(i: object) -> str:
    return content_hash(i, length=64)


def put(store: CallStore, i: int, text: str = "text", stage: str = "respond") -> Any:
    return store.put(key(i), stage, "model", {"i": i}, Completion(f"{text} {i}", False, 3, 4), 0.5)


def fill(path: Path, count: int, text: str = "text") -> None:
    async def run(store: CallStore) -> None:
        await asyncio.gather(*(put(store, i, text) for i in range(count)))

    with CallStore(path) as store:
        asyncio.run(run(store))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "calls.sqlite"


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


def test_replies_that_arrive_together_are_one_transaction(path: Path) -> None:
    statements: list[str] = []
    with CallStore(path) as store:
        store._db.set_trace_callback(statements.append)

        async def run() -> None:
            await asyncio.gather(*(put(store, i) for i in range(200)))
            await put(store, 200)

        asyncio.run(run())
        store._db.set_trace_callback(None)
        assert len(store) == 201
    assert [s for s in statements if s in ("BEGIN IMMEDIATE", "COMMIT")] == ["BEGIN IMMEDIATE", "COMMIT"] * 2


def test_everyone_woken_by_one_future_shares_a_transaction() -> None:
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
        store._db.set_trace_callback(statements.append)
        asyncio.run(run(store))
        store._db.set_trace_callback(None)
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


# --- faults ---


def opened(path: Path) -> None:
    with CallStore(path) as store:
        for i in range(200):
            store.get(key(i), Completion)
        len(store)


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


def test_a_full_disk_stops_with_the_fix_and_keeps_what_was_finished(path: Path) -> None:
    fill(path, 10)
    with CallStore(path) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count={pages + 2}")

        async def run() -> list[Any]:
            return await asyncio.gather(*(put(store, i, "x" * 5000) for i in range(10, 20)), return_exceptions=True)

        results = asyncio.run(run())
        assert all(isinstance(r, StoreError) and "disk is full" in str(r) and "every finished call is kept" in str(r) for r in results)
        assert len(store) == 10  # all of the transaction, or nothing
        store._db.execute("PRAGMA max_page_count=1000000")  # somebody freed some space
        assert asyncio.run(run()) == [None] * 10
    with CallStore(path) as store:
        assert len(store) == 20


def test_a_store_that_may_only_be_read_still_answers_and_says_so_on_writing(path: Path) -> None:
    fill(path, 1)
    with CallStore(path) as store:
        store._db.execute("PRAGMA query_only=1")
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
    monkeypatch.setattr(cai.models.store, "_BUSY_SECONDS", 0.05)
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


def test_a_failed_commit_reaches_every_waiter_and_the_next_one_works(path: Path) -> None:
    with CallStore(path) as store:
        store._db.execute("PRAGMA query_only=1")

        async def run() -> list[Any]:
            return await asyncio.gather(*(put(store, i) for i in range(3)), return_exceptions=True)

        assert [type(r) for r in asyncio.run(run())] == [StoreError] * 3
        store._db.execute("PRAGMA query_only=0")
        assert asyncio.run(run()) == [None] * 3


# --- several processes, and death ---

WORKER = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from cai.models.store import CallStore
    from cai.models.base import TextModel
    from cai.models.requests import Sampling
    from cai.models.scripted import ScriptedEngine, default_script
    from cai.records import Message

    path, first, last, log, delay = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])

    def script(request):
        with open(log, "a") as f:
            f.write(request.messages[0].content + "\\n")
        return default_script(request)

    async def one(model, i, slots):
        async with slots:
            first = await model.complete([Message("user", f"prompt {i}")], Sampling(), seed=i)
            return (await model.complete([Message("user", f"revise {i}: {first.text}")], Sampling(), seed=i)).text

    async def main():
        with CallStore(path) as store:
            model = TextModel(ScriptedEngine(script, delay_seconds=delay), store, "respond")
            slots = asyncio.Semaphore(4)
            texts = await asyncio.gather(*(one(model, i, slots) for i in range(first, last)))
            print("\\n".join(texts))
            print(model.usage.made, model.usage.reused, file=sys.stderr)

    asyncio.run(main())
    """
)


def worker(path: Path, first: int, last: int, log: Path, delay: float = 0.0) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", WORKER, str(path), str(first), str(last), str(log), str(delay)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def finish(process: "subprocess.Popen[str]") -> tuple[str, int, int]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    made, reused = map(int, err.split())
    return out, made, reused


def test_a_killed_run_resumes_to_identical_outputs_and_repeats_no_finished_call(path: Path, tmp_path: Path) -> None:
    calm, made, _ = finish(worker(tmp_path / "calm.sqlite", 0, 150, tmp_path / "calm.log"))
    assert made == 300
    finished: set[str] = set()
    for kill in range(3):
        log = tmp_path / f"killed-{kill}.log"
        process = worker(path, 0, 150, log, delay=0.03)  # far from done when it is killed, even if this process is kept waiting
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 12 + 5 * kill):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        asked = log.read_text().splitlines()
        assert not finished & set(asked), "a finished call was made again"
        db = sqlite3.connect(path)
        stored = {row[0] for row in db.execute("SELECT json_extract(request, '$.messages[0].content') FROM calls")}
        db.close()
        assert finished <= stored, "a finished call was lost"
        assert len(stored) > len(finished)
        finished = stored
    out, made, reused = finish(worker(path, 0, 150, tmp_path / "resumed.log"))
    assert out == calm
    assert (made, reused) == (300 - len(finished), len(finished))
    assert not finished & set((tmp_path / "resumed.log").read_text().splitlines())


def test_a_new_store_may_be_opened_by_several_at_one_instant(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def open_store(number: int) -> None:
        start.wait()
        CallStore(tmp_path / f"{number}.sqlite").close()

    with ThreadPoolExecutor(4) as pool:
        for number in range(60):
            for opened in [pool.submit(open_store, number) for _ in range(4)]:
                opened.result()


def test_two_processes_write_one_store_at_once(path: Path, tmp_path: Path) -> None:
    processes = [worker(path, start, start + 60, tmp_path / f"{start}.log", delay=0.001) for start in (0, 40)]
    outs = [finish(p)[0].splitlines() for p in processes]
    assert outs[0][40:] == outs[1][:20]
    with CallStore(path) as store:
        assert len(store) == 200
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_two_processes_with_the_same_work_share_it(path: Path, tmp_path: Path) -> None:
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    for log in logs:
        log.touch()  # who comes last may find everything asked
    (first, *a), (second, *b) = [finish(p) for p in [worker(path, 0, 60, log, delay=0.03) for log in logs]]
    asked = [line for log in logs for line in log.read_text().splitlines()]
    assert first == second
    assert len(asked) == len(set(asked)) == a[0] + b[0] == 120, "a call was made twice"
    assert a[1] + b[1] == 120


HOLDER = """
import sys
from pathlib import Path
from cai.models.store import CallStore
store = CallStore(Path(sys.argv[1]))
print(store.claim(sys.argv[2]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holding(path: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Start processes that claim a call and keep it."""
    started: list[subprocess.Popen[str]] = []

    def start(claimed: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", HOLDER, str(path), claimed]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "True\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_claim_is_of_one_process_and_dies_with_it(path: Path, holding: Callable[[str], "subprocess.Popen[str]"]) -> None:
    holder = holding(key(0))
    with CallStore(path) as store:
        assert (store.claim(key(0)), store.claim(key(1))) == (False, True)
        holder.kill()
        holder.wait()
        assert store.claim(key(0))


@pytest.mark.parametrize("killed", [True, False])
def test_a_call_that_another_process_dies_of_or_sits_on_is_made_here(
    path: Path, monkeypatch: pytest.MonkeyPatch, holding: Callable[[str], "subprocess.Popen[str]"], killed: bool
) -> None:
    monkeypatch.setattr("cai.models.base._CLAIM_SECONDS", 600.0 if killed else 0.3)
    engine, request = ScriptedEngine(), CompleteRequest((Message("user", "hello"),), Sampling(), 1)
    holder = holding(key((engine.fingerprint, "CompleteRequest", request)))

    async def ask() -> int:
        with CallStore(path) as store:
            model = TextModel(engine, store, "respond")
            asked = asyncio.create_task(model.call(request))
            await asyncio.sleep(0.1)
            assert not asked.done()
            if killed:
                holder.kill()
            await asked
            return model.usage.made

    assert asyncio.run(ask()) == 1


class Said(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str, style: str = "") -> None:
        self.lines.append(text)


@pytest.mark.attack
def test_a_wait_for_a_stopped_process_says_for_which_and_how_to_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, holding: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    monkeypatch.setattr("cai.models.base.NOTICE_SECONDS", 0.1)
    engine, said = ScriptedEngine(), Said()
    requests = [CompleteRequest((Message("user", "hello"),), Sampling(), seed) for seed in (1, 2)]
    holders = [holding(key((engine.fingerprint, "CompleteRequest", request))) for request in requests]
    for holder in holders:
        holder.send_signal(signal.SIGSTOP)

    async def ask() -> None:
        with CallStore(path) as store:
            model = TextModel(engine, store, "respond")
            asked = asyncio.gather(*(model.call(request) for request in requests))
            await asyncio.sleep(0.6)
            for holder in holders:
                holder.kill()
            await asked

    with telling(said):
        asyncio.run(ask())
    (line,) = said.lines  # once, however many calls wait
    assert any(f"process {h.pid}, which is stopped (go on with: kill -CONT {h.pid})" in line for h in holders)
    assert line.startswith("Waiting since 0 s for a reply that another run asks for") and "after 600 s the call is made here" in line


@pytest.mark.attack
def test_a_wait_for_another_writer_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.models.store.NOTICE_SECONDS", 0.05)
    fill(path, 1)
    writer, said = sqlite3.connect(path, isolation_level=None, check_same_thread=False), Said()
    writer.execute("BEGIN IMMEDIATE")
    threading.Timer(0.4, lambda: writer.execute("ROLLBACK")).start()
    with telling(said), CallStore(path) as store:
        asyncio.run(put(store, 1))
    assert len(said.lines) == 1 and f"another process that writes to {path}" in said.lines[0]
    writer.close()


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
    with CallStore(path) as one:
        for i in range(20):
            fill(path, i + 1)  # opens and closes beside
            one._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
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
