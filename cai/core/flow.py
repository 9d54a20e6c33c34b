"""Items through an async stage: bounded, in order, each fault counted. The only loop over items that stages have.

It decides which items are active; forming batches is the model's business, and what to do with a result is the caller's. Exactly the
first `window` unfinished items are active, so what is pending at any moment depends only on what is finished: that is what lets a
resumed run form the same batches as a calm one. Memory stays flat: no item is taken in more than a few windows ahead of the last result
handed over.
"""

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import chain, repeat
from operator import attrgetter
from typing import TypeVar

from cai.errors import ModelError, ReplyError
from cai.records import Failure

T = TypeVar("T")
R = TypeVar("R")
EARLY_CHECK = 20
"""Finished items after which a stage may stop for its failures before all items are done."""
WINDOWS_AHEAD = 8
_COLLECT_EVERY = 10_000


async def run_items(
    items: Iterable[T],
    work: Callable[[T], Awaitable[R]],
    *,
    window: int,
    max_failure_fraction: float,
    stage: str,
    failures: list[Failure],
    item_id: Callable[[T], str] = attrgetter("id"),
    failure_of: Callable[[R], str | None] = lambda result: None,
    on_progress: Callable[[int], None] = lambda done: None,
    known: Iterable[R | None] = (),
    on_result: Callable[[R | None], None] = lambda result: None,
) -> AsyncIterator[R]:
    """Yield each item's result, in the order of the items; an item that fails is left out and added to `failures`.

    Args:
        items: taken one at a time, as there is room.
        work: what to do with one; raises `ReplyError` where the item can't be done.
        window: items active at once.
        max_failure_fraction: in [0, 1]; the stage stops when more than this part of its items has failed, looked at from
            `EARLY_CHECK` finished items on, and at the end.
        stage: name for the failures.
        failures: gets one record for every failed item, in the order of the items.
        item_id: names an item in its failure.
        failure_of: why a result counts as failed though there is one (a judgement that names its own failure); it is yielded all the same.
        on_progress: told how many items are finished, whenever results are handed over.
        known: results of the first items from an earlier try, in their order; `None` for one to be worked on all the same.
        on_result: told each item's result as it is handed over, or `None` where the item failed: what `known` may be the next time.

    Raises:
        ModelError: too many items failed, with the commonest reasons; or the model can't go on.
        CaiError: whatever else `work` raises. All other items are cancelled first.
    """
    source = enumerate(zip(items, chain(known, repeat(None)), strict=False))
    finished: dict[int, tuple[list[R], Failure | None]] = {}
    handed_over = 0
    reasons: Counter[str] = Counter()
    done = 0
    news = asyncio.Event()
    room = asyncio.Event()

    async def worker() -> None:
        nonlocal done
        for index, (item, earlier) in source:  # shared: whoever is free takes the next, at once
            while index >= handed_over + WINDOWS_AHEAD * window:
                room.clear()
                await room.wait()
            try:
                result = await work(item) if earlier is None else earlier
                reason = failure_of(result)
                failure = None if reason is None else Failure(stage, item_id(item), reason)
                finished[index] = ([result], failure)
            except ReplyError as e:
                failure = Failure(stage, item_id(item), e.reason, e.detail)
                finished[index] = ([], failure)
            done += 1
            if failure is not None:
                reasons[failure.reason] += 1
                if done >= EARLY_CHECK:
                    _check(stage, reasons, done, max_failure_fraction)
            news.set()

    tasks = [asyncio.create_task(worker()) for _ in range(window)]
    everyone = asyncio.gather(*tasks)
    everyone.add_done_callback(lambda _: news.set())
    try:
        while True:
            await news.wait()
            news.clear()
            if everyone.done():
                everyone.result()  # raises what a worker raised
            while handed_over in finished:
                results, failure = finished.pop(handed_over)
                handed_over += 1
                if failure is not None:
                    failures.append(failure)
                on_result(results[0] if failure is None else None)
                for result in results:
                    yield result
            room.set()
            on_progress(done)
            if everyone.done() and not finished:
                break
        if done:
            _check(stage, reasons, done, max_failure_fraction)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(everyone, *tasks, return_exceptions=True)
        failures += [failure for _, (_, failure) in sorted(finished.items()) if failure is not None]


async def together(calls: Iterable[Awaitable[R]]) -> list[R]:
    """Await several calls of one item at once; return their results in order.

    Unlike a bare `asyncio.gather`, no call outlives the item: all of them end before an error is raised.

    Raises:
        Exception: the first, in the order of the calls, that one of them raised.
    """
    waiting = list(calls)
    if len(waiting) == 1:  # needs no task of its own
        return [await waiting[0]]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    kept: list[R] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        kept.append(result)
    return kept


@contextlib.contextmanager
def collecting_rarely() -> Iterator[None]:
    """Look for cyclic garbage after 10,000 new objects instead of 700, and not among what is there already.

    Items in flight are thousands of live objects, nearly all of which go without any cycle: looking through them time and again took a
    seventh of a run's own time.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _check(stage: str, reasons: Counter[str], done: int, limit: float) -> None:
    failed = reasons.total()
    if failed <= limit * done:
        return
    listed = ", ".join(f"{reason} × {count}" for reason, count in reasons.most_common(3))
    raise ModelError(
        f"stage {stage}: {failed} of {done} items failed, more than max_failure_fraction {limit:g} allows. Commonest reasons: {listed}. "
        "Each is in failures.jsonl; mend the cause, or raise max_failure_fraction if the loss is acceptable."
    )
