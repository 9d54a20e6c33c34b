"""Ctrl-C while models are asked: the first one lets the calls in flight be answered and kept, the second one stops at once.

Calls in flight may have cost money or minutes; what was not sent yet is asked by the run that goes on from here.
"""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from cai.core.console import Reporter

T = TypeVar("T")
Finish = Callable[[], Awaitable[None]]
STOPPING = "Stopping when the calls in flight are answered. Ctrl-C again stops at once, and they are asked anew."
_finishers: ContextVar[list[Finish] | None] = ContextVar("_finishers", default=None)


def finish_first(finish: Finish) -> None:
    """Have something awaited at the first Ctrl-C, while the work that calls this goes on; outside `run_interruptible` nothing is."""
    if (finishers := _finishers.get()) is not None:
        finishers.append(finish)


def run_interruptible(work: Awaitable[T], reporter: Reporter) -> T:
    """Run `work` to its end, as `asyncio.run` does. At the first Ctrl-C what it left with `finish_first` is awaited, then it is cancelled.

    Args:
        work: what to run.
        reporter: says what Ctrl-C does.

    Raises:
        KeyboardInterrupt: Ctrl-C; at the second one, without waiting for anything.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return asyncio.run(_awaited(work))  # signals belong to somebody else, or are ignored
    pressed = 0

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        interrupted = asyncio.Event()

        def on_signal(number: int, frame: object) -> None:
            nonlocal pressed
            pressed += 1
            if pressed > 1:
                raise KeyboardInterrupt
            loop.call_soon_threadsafe(interrupted.set)

        finishers: list[Finish] = []
        _finishers.set(finishers)
        task = asyncio.ensure_future(work)
        signal.signal(signal.SIGINT, on_signal)
        watch = asyncio.create_task(interrupted.wait())
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not pressed:
                return await task
            reporter.say(STOPPING, "yellow")
            await asyncio.gather(*(finish() for finish in finishers))
        finally:
            watch.cancel()
            task.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt

    return asyncio.run(supervised())


async def _awaited(work: Awaitable[T]) -> T:
    return await work


class Gate:
    """Lets work in until it is closed; closing waits for what is inside, and what comes later waits until it is cancelled."""

    def __init__(self) -> None:
        self._closed = False
        self._inside = 0
        self._left = asyncio.Event()

    async def __aenter__(self) -> None:
        if self._closed:
            await asyncio.get_running_loop().create_future()
        self._inside += 1

    async def __aexit__(self, *exc: object) -> None:
        self._inside -= 1
        if self._closed:
            self._left.set()

    async def close(self) -> None:
        """Let nothing more in; return when nothing is inside."""
        self._closed = True
        while self._inside:
            self._left.clear()
            await self._left.wait()
