import asyncio
import gc
from dataclasses import dataclass

import pytest

from cai.core.flow import WINDOWS_AHEAD, collecting_rarely, run_items, together
from cai.errors import DataError, ModelError, ReplyError, StoreError


@dataclass(frozen=True)
class Item:
    number: int

    @property
    def id(self):
        return f"item-{self.number}"


def run(items, work, *, window=4, limit=0.5, failures=None, **options):
    failures = [] if failures is None else failures

    async def go():
        flow = run_items(items, work, window=window, max_failure_fraction=limit, stage="test", failures=failures, **options)
        return [result async for result in flow]

    return asyncio.run(go()), failures


async def late_for_early_items(item):
    for _ in range(40 - item.number):
        await asyncio.sleep(0)
    return item.number


def test_results_come_in_item_order():
    results, failures = run([Item(i) for i in range(40)], late_for_early_items, window=7)
    assert results == list(range(40)) and failures == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_items_than_the_window(count):
    results, failures = run([Item(i) for i in range(count)], late_for_early_items)
    assert results == list(range(count)) and failures == []


def test_known_results_are_taken_and_only_the_others_worked_on():
    worked, told = [], []

    async def work(item):
        worked.append(item.number)
        if item.number == 7:
            raise ReplyError("refused", "")
        return item.number

    known = [None if i in (3, 7) else i for i in range(20)]
    results, failures = run([Item(i) for i in range(25)], work, window=2, known=known, on_result=told.append)
    assert results == [i for i in range(25) if i != 7] and worked == [3, 7, 20, 21, 22, 23, 24]
    assert told == [None if i == 7 else i for i in range(25)] and [f.item_id for f in failures] == ["item-7"]


def test_exactly_the_first_unfinished_items_are_active():
    active, finished, seen = set(), set(), []

    async def work(item):
        active.add(item.number)
        seen.append(item.number)
        for _ in range(1 + item.number * 7 % 5):
            await asyncio.sleep(0)
            unfinished = [i for i in range(30) if i not in finished]
            assert active == set(unfinished[:4]) or len(seen) < 4
        active.remove(item.number)
        finished.add(item.number)
        return item.number

    results, _ = run([Item(i) for i in range(30)], work)
    assert results == seen == list(range(30))


def test_memory_stays_flat_when_the_first_item_is_slow():
    taken = 0

    def items():
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield Item(i)

    async def work(item):
        if item.number == 0:
            for _ in range(2000):
                await asyncio.sleep(0)
            assert taken <= (WINDOWS_AHEAD + 1) * 2
        return item.number

    results, _ = run(items(), work, window=2)
    assert results == list(range(1000))


def test_items_that_never_wait_are_handed_over_as_they_come():
    taken = 0

    def items():
        nonlocal taken
        for i in range(500):
            taken += 1
            yield Item(i)

    async def work(item):
        return item.number

    async def go():
        ahead = []
        flow = run_items(items(), work, window=3, max_failure_fraction=0, stage="test", failures=[])
        async for number in flow:
            ahead.append(taken - number)
        return ahead

    ahead = asyncio.run(go())
    assert len(ahead) == 500 and max(ahead) <= (WINDOWS_AHEAD + 1) * 3 + 1


async def fails_every_third(item):
    await asyncio.sleep(0)
    if item.number % 3 == 0:
        raise ReplyError("empty", f"number {item.number}")
    return item.number


def test_a_failed_item_is_a_record_and_the_rest_goes_on():
    results, failures = run([Item(i) for i in range(12)], fails_every_third)
    assert results == [i for i in range(12) if i % 3]
    assert [(f.stage, f.item_id, f.reason, f.detail) for f in failures] == [
        ("test", f"item-{i}", "empty", f"number {i}") for i in (0, 3, 6, 9)
    ]


def test_too_many_failures_stop_the_stage_at_the_end():
    failures = []
    with pytest.raises(ModelError, match=r"4 of 12 items failed.*max_failure_fraction 0\.3.*empty × 4"):
        run([Item(i) for i in range(12)], fails_every_third, limit=0.3, failures=failures)
    assert len(failures) == 4


def test_exactly_the_allowed_fraction_is_allowed():
    assert len(run([Item(i) for i in range(12)], fails_every_third, limit=4 / 12)[0]) == 8


def test_too_many_failures_stop_the_stage_early():
    started, failures = [], []

    async def work(item):
        started.append(item.number)
        await asyncio.sleep(0)
        raise ReplyError("empty" if item.number % 4 else "too_long")

    with pytest.raises(ModelError, match="empty × 15, too_long × 5"):
        run([Item(i) for i in range(1000)], work, failures=failures)
    assert len(started) < 40
    assert [f.item_id for f in failures][:20] == [f"item-{i}" for i in range(20)] and len(failures) < 30


def test_a_result_can_name_its_own_failure_and_is_still_yielded():
    async def work(item):
        return item.number

    results, failures = run([Item(i) for i in range(5)], work, failure_of=lambda n: ("odd", "") if n % 2 else None)
    assert results == list(range(5))
    assert [(f.item_id, f.reason) for f in failures] == [("item-1", "odd"), ("item-3", "odd")]


@pytest.mark.parametrize("error", [ModelError("gone"), StoreError("disk full"), KeyError("a bug")])
def test_an_error_cancels_everything_and_is_raised(error):
    cancelled = []

    async def work(item):
        if item.number == 2:
            await asyncio.sleep(0)
            raise error
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item.number)
            raise

    with pytest.raises(type(error)):
        run([Item(i) for i in range(50)], work)
    assert sorted(cancelled) == [0, 1, 3]


def test_an_error_while_reading_items_is_raised():
    def items():
        yield Item(0)
        raise DataError("file.jsonl:2: torn")

    with pytest.raises(DataError, match="torn"):
        run(items(), late_for_early_items)


def test_cancelling_the_caller_cancels_the_items():
    cancelled = []

    async def work(item):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item.number)
            raise

    async def consume():
        async for _ in run_items([Item(i) for i in range(9)], work, window=3, max_failure_fraction=0, stage="test", failures=[]):
            pass

    async def go():
        task = asyncio.create_task(consume())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    assert asyncio.run(go())
    assert sorted(cancelled) == [0, 1, 2]


def test_progress_reaches_the_total():
    told = []
    run([Item(i) for i in range(10)], fails_every_third, on_progress=told.append)
    assert told[-1] == 10 and told == sorted(told)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_calls_of_one_item_keep_their_order_and_all_end_before_an_error_is_raised(count):
    ended = []

    async def call(number, fault=None):
        for _ in range(5 - number):
            await asyncio.sleep(0)
        ended.append(number)
        if fault:
            raise ReplyError(fault)
        return number

    assert asyncio.run(together(call(i) for i in range(count))) == list(range(count))
    ended.clear()
    if count:
        with pytest.raises(ReplyError, match="first"):
            asyncio.run(together(call(i, "first" if i == 0 else "later") for i in range(count)))
        assert sorted(ended) == list(range(count))


def test_rare_collections_end_with_the_block_and_still_find_cycles():
    class Node:
        pass

    def live_nodes():
        return sum(type(o) is Node for o in gc.get_objects())

    before = gc.get_threshold()
    with pytest.raises(KeyError), collecting_rarely():
        for _ in range(100_000):
            node = Node()
            node.itself = node
        assert live_nodes() < 50_000
        raise KeyError
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0
