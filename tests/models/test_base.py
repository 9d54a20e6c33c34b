"""`TextModel`: answers from the store, shares what is in flight, and hands on faults to everyone who waits."""

import asyncio
import gc
import hashlib
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cai.errors import ModelError, ReplyError, StoreError
from cai.models.base import TextModel, Usage
from cai.models.requests import REPLY_TYPES, ChoiceLogprobs, Completion, Reply, Request, Sampling, ScoreRequest, TextLogprob
from cai.models.scripted import ScriptedEngine, default_script
from cai.models.store import CallStore
from cai.records import Message

ASK = (Message("user", "Is it?"),)
SAMPLING = Sampling(max_tokens=8)


class GatedEngine:
    """An engine whose calls wait for a gate, then do what the script says."""

    def __init__(self, script: Callable[[Request], Reply] = default_script, fingerprint: str = "gated") -> None:
        self.name = "gated"
        self.fingerprint = fingerprint
        self.started = 0
        self.finished = 0
        self.gate = asyncio.Event()
        self._script = script

    async def submit(self, request: Request) -> Reply:
        self.started += 1
        await self.gate.wait()
        self.finished += 1
        return self._script(request)

    async def close(self) -> None:
        """Nothing to release."""


def with_store(work: Callable[[CallStore], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        with CallStore(None) as store:
            return await work(store)

    return asyncio.run(run())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_the_three_questions_have_their_replies_and_each_is_made_once() -> None:
    async def work(store: CallStore) -> None:
        engine = ScriptedEngine()
        first, second = TextModel(engine, store, "one"), TextModel(engine, store, "two")
        answers = []
        for model in (first, second):
            text = await model.complete(ASK, SAMPLING, 1)
            logprobs = await model.choices(ASK, ("Yes", "No"))
            nats = await model.score(list(ASK), "Yes.")
            assert (type(text), type(logprobs), type(nats)) == (Completion, ChoiceLogprobs, TextLogprob)
            answers.append((text, logprobs, nats))
        assert answers[0] == answers[1]
        assert engine.calls == 3
        assert first.usage == Usage(3, 0, sum(a.prompt_tokens for a in answers[0]), answers[0][0].completion_tokens)
        assert second.usage == Usage(made=0, reused=3)

    with_store(work)


def test_every_kind_of_request_has_a_reply_type() -> None:
    assert set(REPLY_TYPES) == set(Request.__args__)  # type: ignore[attr-defined]
    assert set(REPLY_TYPES.values()) == set(Reply.__args__)  # type: ignore[attr-defined]


def test_anything_that_could_change_the_answer_is_another_call() -> None:
    async def work(store: CallStore) -> None:
        engine = ScriptedEngine()
        model = TextModel(engine, store, "s")
        await model.complete(ASK, SAMPLING, 1)
        await model.complete(ASK, SAMPLING, 2)
        await model.complete(ASK, Sampling(max_tokens=9), 1)
        await model.complete(ASK, Sampling(max_tokens=8, temperature=0.5), 1)
        await model.complete(ASK, SAMPLING, 1, prefill="Sure")
        await model.complete([Message("system", "Is it?")], SAMPLING, 1)
        await model.choices(ASK, ("Yes", "No"))
        await model.choices(ASK, ("No", "Yes"))
        await model.choices(ASK, ("Yes", "No"), prefill="Answer:")
        await model.score(ASK, "Yes")
        assert model.usage.made == engine.calls == 10
        await TextModel(ScriptedEngine(name="other"), store, "s").complete(ASK, SAMPLING, 1)
        assert len(store) == 11

    with_store(work)


def test_identical_calls_in_flight_share_one() -> None:
    async def work(store: CallStore) -> None:
        engine = GatedEngine()
        model = TextModel(engine, store, "s")
        tasks = [asyncio.create_task(model.complete(ASK, SAMPLING, 1)) for _ in range(5)]
        other = asyncio.create_task(model.complete(ASK, SAMPLING, 2))
        await settle()
        assert engine.started == 2
        assert model.usage == Usage()  # nobody has an answer yet
        engine.gate.set()
        replies = await asyncio.gather(*tasks)
        await other
        assert len(set(replies)) == 1
        assert (model.usage.made, model.usage.reused) == (2, 4)

    with_store(work)


@pytest.mark.parametrize("error", [ReplyError("empty_reply", "no text"), ModelError("gone")])
def test_a_fault_reaches_everyone_who_waits_and_is_not_stored(error: ModelError) -> None:
    async def work(store: CallStore) -> None:
        faults = [error]

        def fail_once(request: Request) -> Reply:
            if faults:
                raise faults.pop()
            return default_script(request)

        engine = GatedEngine(fail_once)
        model = TextModel(engine, store, "s")
        tasks = [asyncio.create_task(model.complete(ASK, SAMPLING, 1)) for _ in range(3)]
        await settle()
        engine.gate.set()
        assert await asyncio.gather(*tasks, return_exceptions=True) == [error] * 3
        assert engine.started == 1
        assert model.usage == Usage()
        assert len(store) == 0
        assert isinstance(await model.complete(ASK, SAMPLING, 1), Completion)  # asked again, answered

    with_store(work)


def test_a_reply_that_cannot_be_stored_is_not_handed_on(connections: list[sqlite3.Connection]) -> None:
    async def work(store: CallStore) -> None:
        connections[-1].execute("PRAGMA query_only=1")
        engine = GatedEngine()
        model = TextModel(engine, store, "s")
        tasks = [asyncio.create_task(model.complete(ASK, SAMPLING, 1)) for _ in range(2)]
        await settle()
        engine.gate.set()
        assert [type(r) for r in await asyncio.gather(*tasks, return_exceptions=True)] == [StoreError] * 2
        assert model.usage == Usage()

    with_store(work)


def test_a_fault_with_no_other_waiter_leaves_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    async def work(store: CallStore) -> None:
        def fail(_: Request) -> Reply:
            raise ReplyError("empty_reply")

        seen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        with pytest.raises(ReplyError):
            await TextModel(ScriptedEngine(fail), store, "s").complete(ASK, SAMPLING, 1)
        import gc

        gc.collect()
        await settle()
        assert seen == []

    with_store(work)
    assert not recwarn.list


@pytest.mark.parametrize("sharers", [1, 4])
def test_when_the_first_to_ask_goes_away_the_others_still_get_their_answer(sharers: int) -> None:
    async def work(store: CallStore) -> None:
        engine = GatedEngine()
        model = TextModel(engine, store, "s")
        first, *others = [asyncio.create_task(model.complete(ASK, SAMPLING, 1)) for _ in range(1 + sharers)]
        await settle()
        first.cancel()
        await settle()
        assert first.cancelled()
        assert engine.started == 2  # one of the others asks in its place
        engine.gate.set()
        replies = await asyncio.gather(*others)
        assert len(set(replies)) == 1
        assert (model.usage.made, model.usage.reused) == (1, sharers - 1)

    with_store(work)


def test_when_a_sharer_goes_away_the_call_goes_on() -> None:
    async def work(store: CallStore) -> None:
        engine = GatedEngine()
        model = TextModel(engine, store, "s")
        first, second, third = [asyncio.create_task(model.complete(ASK, SAMPLING, 1)) for _ in range(3)]
        await settle()
        second.cancel()
        await settle()
        engine.gate.set()
        assert await first == await third
        assert second.cancelled()
        assert (engine.started, model.usage.made, model.usage.reused) == (1, 1, 1)

    with_store(work)


def futures() -> int:
    """How many futures are in memory."""
    gc.collect()
    return sum(type(o) is asyncio.Future for o in gc.get_objects())


def test_nothing_stays_in_flight() -> None:
    async def work(store: CallStore) -> None:
        engine = GatedEngine()
        model = TextModel(engine, store, "s")
        task = asyncio.create_task(model.call(ScoreRequest(ASK, "x")))
        await settle()
        task.cancel()
        await settle()
        engine.gate.set()
        await model.call(ScoreRequest(ASK, "x"))
        assert engine.started == 2, "it doesn't wait for the call that was cancelled"
        before = futures()
        for text in ("a", "b", "c"):
            await model.call(ScoreRequest(ASK, text))
        assert futures() == before

    with_store(work)


def test_the_scripted_engine_depends_on_the_request_alone() -> None:
    async def replies(order: list[int]) -> list[Reply]:
        engine = ScriptedEngine(delay_seconds=0.0)
        found = {}
        for i in order:
            found[i] = await engine.submit(ScoreRequest(ASK, f"text {i}"))
        return [found[i] for i in sorted(found)]

    assert asyncio.run(replies([0, 1, 2])) == asyncio.run(replies([2, 0, 1]))


def test_a_call_is_stored_under_the_hash_of_its_plain_json_and_with_its_request(connections: list[sqlite3.Connection]) -> None:
    """What stores in the world are keyed by: to change it would be to pay for every call again."""
    call = (
        '["gated","CompleteRequest",{"messages":[{"role":"user","content":"Is \\"é\\" it?"}],'
        '"sampling":{"max_tokens":8,"temperature":1.0,"top_p":1.0},"seed":7,"prefill":"So"}]'
    )
    key = hashlib.sha256(call.encode()).hexdigest()

    async def work(store: CallStore) -> None:
        engine = GatedEngine()
        engine.gate.set()
        reply = await TextModel(engine, store, "s").complete([Message("user", 'Is "é" it?')], SAMPLING, 7, "So")
        assert store.get(key, Completion) == reply
        (request,) = connections[-1].execute("SELECT request FROM calls").fetchone()
        assert call == f'["gated","CompleteRequest",{request.decode()}]'

    with_store(work)
