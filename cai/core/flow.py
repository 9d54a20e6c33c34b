"""The item loop of every stage: bounded concurrency, results in order, every failure counted.

Exactly the first `window` unfinished items are active, so the set of pending calls depends only on which items are finished. A resumed run
therefore forms the same batches as an uninterrupted one. Memory use is constant: items are read at most `WINDOWS_AHEAD` windows ahead of
the last result that was yielded.
"""

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from operator import attrgetter
from typing import TypeVar

from cai.errors import ModelError, ReplyError
from cai.records import Failure

T = TypeVar("T")
R = TypeVar("R")
Failed = tuple[str, str]
"""Why an item failed: the reason, which is counted, and its details, such as the server's own words."""
EARLY_CHECK = 20
"""Number of finished items from which the failure limit is checked."""
WINDOWS_AHEAD = 8
_SHOWN_REASONS = 3
_SHOWN_CHARACTERS = 300
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
    failure_of: Callable[[R], Failed | None] = lambda result: None,
    may_all_fail: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
    known: Iterable[R | None] = (),
    on_result: Callable[[R | None], None] = lambda result: None,
) -> AsyncIterator[R]:
    """Yield the result of each item, in the order of the items. A failed item is skipped and added to `failures`.

    Args:
        items: items to process, read lazily.
        work: processes one item; raises `ReplyError` if the item fails.
        window: number of items active at once.
        max_failure_fraction: largest tolerated share of failed items, in [0, 1]. It is checked from `EARLY_CHECK` finished items on,
            and at the end.
        stage: stage name written into the failures.
        failures: list that receives one record per failed item, in the order of the items.
        item_id: returns the id of an item.
        failure_of: returns why a result counts as a failure, or None. Such a result is yielded all the same.
        may_all_fail: whether no usable result at all is acceptable. By default it is an error, whatever `max_failure_fraction` allows.
        on_progress: called with the number of finished items whenever results are yielded.
        known: results of the first items from an earlier run, in order; `None` for an item to process again.
        on_result: called with each item's result, or `None` if the item failed. A later run can pass these values as `known`.

    Raises:
        ModelError: too many items failed (the message has the commonest reasons, with the details of one item each), or the model can't go
            on.
        CaiError: any other error of `work`. All other items are cancelled first.
    """
    source = enumerate(zip(items, chain(known, repeat(None)), strict=False))
    finished: dict[int, tuple[list[R], Failure | None]] = {}
    handed_over = 0
    failed: list[Failure] = []
    done = 0
    news = asyncio.Event()
    room = asyncio.Event()

    async def worker() -> None:
        nonlocal done
        for index, (item, earlier) in source:  # shared by all workers
            while index >= handed_over + WINDOWS_AHEAD * window:
                room.clear()
                await room.wait()
            try:
                result = await work(item) if earlier is None else earlier
                reason = failure_of(result)
                failure = None if reason is None else Failure(stage, item_id(item), *reason)
                finished[index] = ([result], failure)
            except ReplyError as e:
                failure = Failure(stage, item_id(item), e.reason, e.detail)
                finished[index] = ([], failure)
            done += 1
            if failure is not None:
                failed.append(failure)
                if done >= EARLY_CHECK:
                    _check(stage, failed, done, max_failure_fraction)
            news.set()

    tasks = [asyncio.create_task(worker()) for _ in range(window)]
    everyone = asyncio.gather(*tasks)
    everyone.add_done_callback(lambda _: news.set())
    try:
        while True:
            await news.wait()
            news.clear()
            if everyone.done():
                everyone.result()  # re-raises a worker's exception
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
            _check(stage, failed, done, max_failure_fraction)
            if len(failed) == done and not may_all_fail:
                raise ModelError(f"stage {stage}: all {done} items failed: {in_words(failed)}.")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(everyone, *tasks, return_exceptions=True)
        failures += [failure for _, (_, failure) in sorted(finished.items()) if failure is not None]


async def together(calls: Iterable[Awaitable[R]]) -> list[R]:
    """Await several calls of one item concurrently; return their results in order.

    Unlike `asyncio.gather`, it waits for all calls to end before it raises an error.

    Raises:
        Exception: the exception of the first failed call, in the order of the calls.
    """
    waiting = list(calls)
    if len(waiting) == 1:  # no task needed
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
    """Run the cyclic garbage collector every 10,000 allocations instead of every 700, and skip existing objects.

    Thousands of objects are alive while items are processed, almost none of them in reference cycles. Scanning them took 1/7 of a run's
    own time.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def in_words(failures: Sequence[Failure]) -> str:
    """Return the commonest reasons of some failures with their counts, and the first details that were given for each.

    >>> in_words([Failure("s", "1", "refused_by_server", "400: no system role"), Failure("s", "2", "empty_reply")])
    'refused_by_server × 1 (400: no system role), empty_reply × 1'
    """
    counts = Counter(f.reason for f in failures)
    details = {f.reason: " ".join(f.detail.split()) for f in reversed(failures) if f.detail.strip()}
    shown = []
    for reason, count in counts.most_common(_SHOWN_REASONS):
        detail = details.get(reason, "")
        cut = detail if len(detail) <= _SHOWN_CHARACTERS else f"{detail[:_SHOWN_CHARACTERS]}…"
        shown.append(f"{reason} × {count}" + (f" ({cut})" if cut else ""))
    return ", ".join(shown)


def _check(stage: str, failed: Sequence[Failure], done: int, limit: float) -> None:
    if len(failed) <= limit * done:
        return
    raise ModelError(
        f"stage {stage}: {len(failed)} of {done} items failed, more than max_failure_fraction {limit:g} allows. Commonest reasons: "
        f"{in_words(failed)}. A run lists each in failures.jsonl. Fix the cause, or raise max_failure_fraction if the loss is acceptable."
    )
