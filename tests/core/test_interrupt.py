"""Ctrl-C: the first waits for what was started and keeps it, the second doesn't, and whoever else owns the signal keeps it."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from cai.core.console import Reporter
from cai.core.interrupt import STOPPING, Gate, finish_first, run_interruptible
from cai.models.base import TextModel
from cai.models.requests import Reply, Request, Sampling
from cai.models.scripted import ScriptedEngine, default_script
from cai.models.store import CallStore
from cai.records import Message


@pytest.fixture(autouse=True)
def own_signal() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler was put back"
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def test_without_ctrl_c_it_is_an_ordinary_run() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    async def broken() -> None:
        raise KeyError("k")

    assert run_interruptible(work(), Reporter()) == 7
    with pytest.raises(KeyError):
        run_interruptible(broken(), Reporter())


def test_the_first_ctrl_c_finishes_then_cancels() -> None:
    told: list[str] = []

    class Saying(Reporter):
        def say(self, text: str, style: str = "") -> None:
            told.append(text)

    async def work() -> None:
        finish_first(finish)
        press()
        try:
            await forever()
        finally:
            told.append("cancelled")

    async def finish() -> None:
        await asyncio.sleep(0.01)
        told.append("finished")

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work(), Saying())
    assert told == [STOPPING, "finished", "cancelled"]


def test_the_second_ctrl_c_waits_for_nothing() -> None:
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        finish_first(finish)
        press()
        try:
            await forever()
        finally:
            cancelled = True

    async def finish() -> None:
        press()
        await forever()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work(), Reporter())
    assert cancelled


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def work() -> int:
        press()
        return signal.getsignal(signal.SIGINT)  # type: ignore[return-value]

    try:
        assert run_interruptible(work(), Reporter()) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_gate_waits_for_those_inside_and_holds_back_the_rest() -> None:
    done: list[int] = []

    async def one(gate: Gate, number: int, turns: int) -> None:
        async with gate:
            for _ in range(turns):
                await asyncio.sleep(0)
            done.append(number)

    async def run() -> None:
        gate = Gate()
        early = [asyncio.create_task(one(gate, i, 3 + i)) for i in range(3)]
        await asyncio.sleep(0)
        closing = [asyncio.create_task(gate.close()) for _ in range(2)]
        await asyncio.sleep(0)
        late = asyncio.create_task(one(gate, 9, 0))
        await asyncio.gather(*closing)
        assert done == [0, 1, 2]
        await asyncio.sleep(0.01)
        assert not late.done()
        late.cancel()
        await asyncio.gather(late, *early, return_exceptions=True)
        await gate.close()

    asyncio.run(run())


def test_what_an_engine_had_started_is_committed_and_what_it_had_not_is_left() -> None:
    asked: list[int] = []

    def script(request: Request) -> Reply:
        asked.append(request.seed)  # type: ignore[union-attr]
        return default_script(request)

    with CallStore(None) as store:

        async def item(model: TextModel, i: int) -> None:
            first = await model.complete([Message("user", f"{i}")], Sampling(), seed=i)
            await model.complete([Message("user", first.text)], Sampling(), seed=100 + i)

        async def work() -> None:
            model = TextModel(ScriptedEngine(script, delay_seconds=0.05), store, "respond")
            items = [asyncio.create_task(item(model, i)) for i in range(5)]
            await asyncio.sleep(0.01)
            press()
            await asyncio.gather(*items)

        with pytest.raises(KeyboardInterrupt):
            run_interruptible(work(), Reporter())
        assert sorted(asked) == list(range(5)) and len(store) == 5
