"""Servers that fail, come back, or answer too slowly."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from cai.core.console import Reporter
from cai.core.waiting import telling
from cai.errors import ModelError, ReplyError
from cai.models.requests import CompleteRequest, Completion, Reply, Sampling
from cai.models.server.client import FIRST_RETRIES, RETRIES
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec
from tests.models.fake_vllm import FakeVllm
from tests.models.server.asking import ASK, COMPLETE, URL, always_chat, ask, ask_one, connect, on


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_passing_trouble_is_waited_out(status: int, waits: list[float]) -> None:
    server = FakeVllm([on("/v1/chat/completions", lambda n: httpx2.Response(status, text="busy") if n < 3 else None)])
    assert isinstance(ask_one(server, COMPLETE), Completion)
    assert len(waits) == 3
    assert all(0.3 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits))


LOST = [httpx2.ConnectError, httpx2.ReadTimeout, httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.ConnectTimeout]


@pytest.mark.parametrize("error", LOST)
def test_lost_connections_are_tried_again(error: type[httpx2.TransportError]) -> None:
    def respond(n: int) -> None:
        if n < RETRIES:
            raise error("lost")

    server = FakeVllm([on("/v1/chat/completions", respond)])
    assert isinstance(ask_one(server, COMPLETE), Completion)


def test_the_servers_wait_is_honoured(waits: list[float]) -> None:
    server = FakeVllm([on("/v1/chat/completions", lambda n: httpx2.Response(429, headers={"Retry-After": "11"}) if n == 0 else None)])
    ask_one(server, COMPLETE)
    assert waits == [11.0]


def test_a_date_to_wait_for_is_read_by_the_servers_own_clock(waits: list[float]) -> None:
    headers = {"retry-after": "Mon, 23 Nov 2026 10:00:30 GMT", "date": "Mon, 23 Nov 2026 10:00:00 GMT"}
    server = FakeVllm([on("/v1/chat/completions", lambda n: httpx2.Response(429, headers=headers) if n == 0 else None)])
    ask_one(server, COMPLETE)
    assert waits == [30.0]


@pytest.mark.parametrize("illegible", ["soon", "nan", "-3", "Mon, 99 Foo 2026 10:00:30 GMT", "Mon, 23 Nov 2026 09:00:00 GMT", ""])
def test_a_wait_that_makes_no_sense_is_the_usual_one(illegible: str, waits: list[float]) -> None:
    headers = {"retry-after": illegible, "date": "Mon, 23 Nov 2026 10:00:00 GMT"}
    server = FakeVllm([on("/v1/chat/completions", lambda n: httpx2.Response(429, headers=headers) if n == 0 else None)])
    ask_one(server, COMPLETE)
    assert len(waits) == 1 and 0.3 <= waits[0] <= 0.5


@pytest.mark.parametrize("wait", ["9999", pytest.param("9" * 5000, marks=pytest.mark.attack, id="more digits than Python reads")])
def test_a_server_that_asks_for_a_very_long_wait_stops_the_run_and_the_wait_is_told(waits: list[float], wait: str) -> None:
    with pytest.raises(
        ModelError, match=r"limits how fast it is asked, and asks to wait \(Retry-After: 9{4,40}…?\)\. Lower model\.concurr"
    ):
        ask_one(always_chat(lambda: httpx2.Response(429, headers={"Retry-After": wait})), COMPLETE)
    assert waits == []


def raising(error: Exception) -> Callable[[int], httpx2.Response | None]:
    def respond(_: int) -> httpx2.Response | None:
        raise error

    return respond


def test_a_dead_server_says_how_to_start_it_and_that_nothing_is_lost(waits: list[float]) -> None:
    server = FakeVllm([on("/v1/models", raising(httpx2.ConnectError("Connection refused")))])

    async def run() -> None:
        await ServerEngine.connect(ModelSpec(path=URL, name="org/model"), server.transport)

    with pytest.raises(
        ModelError, match=r"can't reach http://fake\.test:8000/v1 \(Connection refused\): .*`vllm serve org/model --port 8000`"
    ) as e:
        asyncio.run(run())
    assert "Finished calls are kept: run the same command again." in str(e.value)
    assert len(waits) == FIRST_RETRIES and sum(waits) < 4  # a wrong address is told in seconds


def test_a_router_that_fails_at_the_start_gets_half_a_minute(waits: list[float]) -> None:
    server = FakeVllm([on("/v1/models", lambda n: httpx2.Response(500, text="error sending request") if n < 8 else None)])
    assert connect(server)[0].endswith(" toy")
    assert 2 < sum(waits) < 32
    with pytest.raises(ModelError, match="answered 500: error sending request"):
        connect(FakeVllm([on("/v1/models", lambda _: httpx2.Response(500, text="error sending request"))]))


def test_a_server_that_dies_later_gets_half_a_minute_to_come_back(waits: list[float]) -> None:
    server = FakeVllm([on("/v1/chat/completions", raising(httpx2.ConnectError("Connection refused")))])
    with pytest.raises(ModelError, match="can't reach"):
        ask_one(server, COMPLETE)
    assert len(waits) == RETRIES
    assert 20 <= sum(waits) <= 32


def test_a_server_that_comes_back_with_another_model_is_refused() -> None:
    server = FakeVllm()

    def respond(n: int) -> None:
        if n == 1:
            server.cards[0]["root"] = "/models/other"
            raise httpx2.ConnectError("Connection refused")

    server.hooks.append(on("/v1/chat/completions", respond))

    async def run() -> None:
        engine = await ServerEngine.connect(ModelSpec(path=URL), server.transport)
        try:
            assert isinstance(await engine.submit(COMPLETE), Completion)
            for _ in range(2):
                with pytest.raises(
                    ModelError, match="doesn't serve the same model as before: root of toy: '/models/other', not '/models/toy'"
                ):
                    await engine.submit(COMPLETE)
            server.cards[0]["root"] = "/models/toy"
            assert isinstance(await engine.submit(COMPLETE), Completion)
        finally:
            await engine.close()

    asyncio.run(run())


def test_a_router_that_answers_requests_is_believed_while_it_cannot_say_what_is_served() -> None:
    """As vllm-router does for a while after one of its servers died: it asks that one for the list of models."""
    server = FakeVllm([on("/v1/chat/completions", lambda n: httpx2.Response(502) if n == 0 else None)])
    silent = [False]
    server.hooks.append(lambda request, _: httpx2.Response(500) if request.url.path == "/v1/models" and silent[0] else None)

    async def run() -> None:
        engine = await ServerEngine.connect(ModelSpec(path=URL), server.transport)
        try:
            silent[0] = True
            assert isinstance(await engine.submit(COMPLETE), Completion)
            server.cards[0]["root"], silent[0] = "/models/other", False
            with pytest.raises(ModelError, match="doesn't serve the same model as before"):
                await engine.submit(COMPLETE)
        finally:
            await engine.close()

    asyncio.run(run())


def test_a_request_that_kills_the_server_is_not_sent_for_ever() -> None:
    server = FakeVllm([on("/v1/chat/completions", raising(httpx2.RemoteProtocolError("Server disconnected")))])
    with pytest.raises(ModelError, match="Server disconnected"):
        ask_one(server, COMPLETE)
    assert len(server.bodies("/v1/chat/completions")) == RETRIES + 1


@pytest.mark.parametrize("failure", [httpx2.ReadTimeout("slow"), httpx2.RemoteProtocolError("cut"), 500])
def test_what_fails_for_one_item_while_others_pass_is_that_items_failure(failure: Exception | int) -> None:
    def hook(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        if request.url.path.endswith("/chat/completions") and body["seed"] == 666:
            if isinstance(failure, Exception):
                raise failure
            return httpx2.Response(failure, text="CUDA error")
        return None

    poison = CompleteRequest(ASK, Sampling(), seed=666)
    alone, *_ = ask(FakeVllm([hook]), poison)
    assert isinstance(alone, ModelError) and not isinstance(alone, ReplyError)
    item, *others = ask(FakeVllm([hook]), poison, *(CompleteRequest(ASK, Sampling(), seed=i) for i in range(3)))
    assert isinstance(item, ReplyError)
    assert item.reason == ("timeout" if isinstance(failure, httpx2.ReadTimeout) else "server_error")
    assert all(isinstance(o, Completion) for o in others)


def test_a_reply_that_trickles_on_for_ever_is_given_up() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.005)

    server = FakeVllm([on("/v1/chat/completions", lambda _: httpx2.Response(200, content=trickle()))], owned_by="openai")
    with pytest.raises(ModelError, match=r"no reply within 0\.05 s, at every try"):
        ask_one(server, COMPLETE, timeout_seconds=0.05)
    assert len(server.bodies("/v1/chat/completions")) == RETRIES + 1


@pytest.mark.attack
@pytest.mark.parametrize("seconds", [0.2, 2.5])
def test_a_reply_that_came_while_this_process_was_stopped_is_not_asked_again(seconds: float) -> None:
    server, stopped = FakeVllm(), False

    async def slow(request: httpx2.Request) -> httpx2.Response:
        nonlocal stopped
        if request.url.path.endswith("/chat/completions") and not stopped:
            stopped = True
            asyncio.get_running_loop().call_later(0.05, time.sleep, 1.5 * seconds)  # like Ctrl-Z, and fg after the time-out
            await asyncio.sleep(0.1)
            for _ in range(20):  # a reply takes some turns of the loop to be read
                await asyncio.sleep(0.001)
        return server.transport.handler(request)  # type: ignore[return-value]

    async def run() -> None:
        engine = await ServerEngine.connect(ModelSpec(path=URL, timeout_seconds=seconds), httpx2.MockTransport(slow))
        await engine.submit(COMPLETE)
        await engine.close()

    asyncio.run(run())
    assert stopped and len(server.bodies("/v1/chat/completions")) == 1


@pytest.mark.attack
@pytest.mark.parametrize(("wait", "told"), [("30", True), ("1", False), ("soon", False)])
def test_a_server_that_asks_to_wait_is_named(wait: str, told: bool) -> None:
    lines: list[str] = []

    class Said(Reporter):
        def say(self, text: str, style: str = "") -> None:
            lines.append(text)

    replies = iter([httpx2.Response(429, headers={"retry-after": wait})])
    with telling(Said()):
        ask_one(FakeVllm([on("/v1/chat/completions", lambda _: next(replies, None))], owned_by="openai"), COMPLETE)
    assert len(lines) == told
    assert not told or lines[0].startswith("fake.test answered 429 and asks to wait (Retry-After: 30 s)")


def test_requests_in_flight_are_bounded() -> None:
    server, now, most = FakeVllm(), 0, 0

    async def slow(request: httpx2.Request) -> httpx2.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(5):
            await asyncio.sleep(0)
        now -= 1
        return server.transport.handler(request)  # type: ignore[return-value]

    async def run() -> None:
        engine = await ServerEngine.connect(ModelSpec(path=URL, concurrency=4), httpx2.MockTransport(slow))
        await asyncio.gather(*(engine.submit(CompleteRequest(ASK, Sampling(), seed=i)) for i in range(40)))
        await engine.close()

    asyncio.run(run())
    assert most == 4


def test_a_cancelled_request_gives_its_slot_back() -> None:
    server = FakeVllm()

    async def hang(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/chat/completions") and json.loads(request.content)["seed"] == 1:
            await asyncio.Event().wait()
        return server.transport.handler(request)  # type: ignore[return-value]

    async def run() -> Reply:
        engine = await ServerEngine.connect(ModelSpec(path=URL, concurrency=1), httpx2.MockTransport(hang))
        stuck = asyncio.create_task(engine.submit(CompleteRequest(ASK, Sampling(), seed=1)))
        await asyncio.sleep(0.01)
        stuck.cancel()
        reply = await engine.submit(COMPLETE)
        await engine.close()
        return reply

    assert isinstance(asyncio.run(run()), Completion)
