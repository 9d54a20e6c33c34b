"""Ctrl-C handling during model calls: the first Ctrl-C waits for the calls in flight and stores them, the second stops immediately.

Calls in flight may have cost money or minutes. Calls that were not sent yet are made when the run is resumed.
"""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from cai.core.console import Reporter
from cai.core.waiting import telling

T = TypeVar("T")
Finish = Callable[[], Awaitable[None]]
STOPPING = "Stopping after the calls in flight. Press Ctrl-C again to stop now; these calls are then made again when you resume."
_finishers: ContextVar[list[Finish] | None] = ContextVar("_finishers", default=None)


def finish_first(finish: Finish) -> None:
    """Register a function to await at the first Ctrl-C, before the work is cancelled. No effect outside `run_interruptible`."""
    if (finishers := _finishers.get()) is not None:
        finishers.append(finish)


def run_interruptible(work: Awaitable[T], reporter: Reporter) -> T:
    """Run `work` as `asyncio.run` does. The first Ctrl-C awaits the functions registered with `finish_first`, then cancels `work`.

    Args:
        work: the awaitable to run.
        reporter: prints what a second Ctrl-C does.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. A second Ctrl-C raises immediately.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        with telling(reporter):
            return asyncio.run(_awaited(work))  # SIGINT is ignored or has another handler
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

    with telling(reporter):
        return asyncio.run(supervised())


async def _awaited(work: Awaitable[T]) -> T:
    return await work


class Gate:
    """Async context manager that can be closed. `close` waits for the blocks inside; later entries block until they are cancelled."""

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
        """Block new entries, and return when the last block has exited."""
        self._closed = True
        while self._inside:
            self._left.clear()
            await self._left.wait()
