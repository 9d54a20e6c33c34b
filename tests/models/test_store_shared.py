"""The call store under several processes: kills, claims, waits."""

import asyncio
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

import pytest

from cai.core.console import Reporter
from cai.core.waiting import telling
from cai.models.base import TextModel
from cai.models.requests import CompleteRequest, Sampling
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.records import Message
from tests.models.storing import fill, key, put

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
    monkeypatch.setattr("cai.models.base.CLAIM_SECONDS", 600.0 if killed else 0.3)
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
