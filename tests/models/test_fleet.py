"""Several servers as one: who is asked, what happens when one goes and comes back, and that no answer depends on it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from cai.core.console import Reporter
from cai.errors import ModelError
from cai.models.base import ChoicesRequest, CompleteRequest, Completion, Sampling
from cai.models.server.engine import ServerEngine, text_of
from cai.models.server.fleet import FREE_HOPS, TRIES
from cai.models.store import CallStore
from cai.recipe import ModelSpec
from cai.records import Message
from tests.models.fake_vllm import FakeVllm, Hook
from tests.models.serving import say_something_of_its_own, servers
from tests.workspaces import RECIPE, data_bytes, make_workspace, run_data

NAMES = ("one", "two", "three")
URLS = [f"http://{name}.test:8000/v1" for name in NAMES]
SAMPLING = Sampling(max_tokens=16)


def about(text: str, seed: int = 0) -> CompleteRequest:
    return CompleteRequest((Message("system", "Be good."), Message("user", text)), SAMPLING, seed)


class Hosts:
    """Toy servers by host name, on one imitated network. A host in `gone` can't be reached."""

    def __init__(self, count: int = 3, **cards: Any) -> None:
        self.fakes = {f"{name}.test": FakeVllm([say_something_of_its_own], **cards) for name in NAMES[:count]}
        self.gone: set[str] = set()
        self.busy: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.hold: asyncio.Event | None = None
        self.waits: list[float] = []
        self.transport = httpx.MockTransport(self._answer)
        self.spec = ModelSpec(path=",".join(URLS[:count]), concurrency=8)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self._check_there(host)
        self.busy[host] += 1
        self.most[host] = max(self.most[host], self.busy[host])
        try:
            if self.hold is not None and request.url.path == "/v1/chat/completions":
                await self.hold.wait()
            else:
                await asyncio.sleep(0)
            self._check_there(host)  # it may have gone meanwhile, and taken the request along
        finally:
            self.busy[host] -= 1
        return self.fakes[host].transport.handler(request)  # type: ignore[return-value]

    def _check_there(self, host: str) -> None:
        if host in self.gone:
            raise httpx.ConnectError("Connection refused")

    async def sleep(self, seconds: float) -> None:
        """Time passes at once between tries."""
        self.waits.append(seconds)
        await asyncio.sleep(0)

    def chats(self) -> dict[str, int]:
        return {host.removesuffix(".test"): len(fake.bodies("/v1/chat/completions")) for host, fake in self.fakes.items()}

    def run(self, work: Callable[[ServerEngine], Coroutine[Any, Any, Any]], **spec: Any) -> Any:
        async def connected() -> Any:
            wanted = ModelSpec(**{"path": self.spec.path, "concurrency": 8, **spec})
            engine = await ServerEngine.connect(wanted, self.transport, self.sleep, health_seconds=0.01)
            try:
                return await work(engine)
            finally:
                await engine.close()

        return asyncio.run(connected())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for is a fake's or a log's, which set no events
        await asyncio.sleep(0)


async def submit_all(engine: ServerEngine, requests: list[Any]) -> list[Any]:
    return await asyncio.gather(*(engine.submit(r) for r in requests), return_exceptions=True)


def hook(path: str, response: httpx.Response, times: int = 10**6) -> Hook:
    left = iter(range(times))
    return lambda request, _: response if request.url.path == path and next(left, None) is not None else None


# --- who is asked ---


def test_work_is_shared_and_no_server_has_more_than_its_concurrency() -> None:
    hosts = Hosts()
    replies = hosts.run(lambda engine: submit_all(engine, [about(f"Text {i}?") for i in range(300)]))
    assert all(isinstance(r, Completion) for r in replies)
    assert sum(hosts.chats().values()) == 300
    assert min(hosts.chats().values()) > 60
    assert max(hosts.most.values()) == 8


def test_requests_about_one_text_go_to_one_server_whatever_is_asked_of_it() -> None:
    text = "Human: " + "a long story about a garden. " * 10
    hosts = Hosts()

    async def one_by_one(engine: ServerEngine) -> None:
        for seed in range(12):
            await engine.submit(about(f"{text}Question {seed}?", seed))
            await engine.submit(ChoicesRequest((Message("user", f"{text}Is it {seed}?"),), ("Yes", "No")))

    hosts.run(one_by_one)
    assert sorted(hosts.chats().values()) == [0, 0, 12]
    asked = {host: len(fake.bodies("/v1/completions")) for host, fake in hosts.fakes.items()}
    assert sorted(asked.values()) == [0, 0, 12]
    assert max(asked, key=asked.__getitem__).removesuffix(".test") == max(hosts.chats(), key=hosts.chats().__getitem__)


def test_one_text_that_everybody_asks_about_does_not_wait_for_one_server() -> None:
    hosts = Hosts()
    hosts.run(lambda engine: submit_all(engine, [about("The same text.", seed) for seed in range(90)]))
    assert min(hosts.chats().values()) >= 15


def test_a_text_is_known_by_its_beginning_without_the_system_turn() -> None:
    long = "x" * 500
    one, other = (Message("system", "A"), Message("user", f"{long}?")), (Message("system", "B"), Message("user", f"{long}!"))
    assert text_of(one) == text_of(other) != text_of((Message("user", "y"),))
    assert text_of((Message("system", "A"),)) == ""


# --- what they serve ---


def test_the_fingerprint_depends_neither_on_the_number_of_servers_nor_on_their_order() -> None:
    async def fingerprint(engine: ServerEngine) -> str:
        return engine.fingerprint

    hosts = Hosts()
    found = {hosts.run(fingerprint, path=path) for path in (URLS[0], URLS[2], ",".join(URLS), ", ".join(reversed(URLS)))}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"root": "/models/other"}, r"root of toy: '/models/other', not '/models/toy'"),
        ({"max_model_len": 64}, "max_model_len of toy: 64, not 512"),
        ({"id": "other"}, "model 'other', not 'toy'"),
    ],
)
def test_servers_of_different_models_are_refused_and_the_difference_named(card: dict[str, Any], said: str) -> None:
    hosts = Hosts()
    hosts.fakes["two.test"].cards[0] |= card
    with pytest.raises(ModelError, match=rf"two\.test:8000/v1 doesn't serve the same model as http://one\.test:8000/v1: {said}"):
        hosts.run(lambda engine: submit_all(engine, []))


def test_another_chat_template_is_another_model() -> None:
    hosts = Hosts()
    hosts.fakes["three.test"].hooks.append(hook("/tokenize", httpx.Response(200, json={"tokens": [1], "token_strs": ["<other>"]})))
    with pytest.raises(ModelError, match="another tokenizer or chat template"):
        hosts.run(lambda engine: submit_all(engine, []))


def test_a_server_named_twice_is_refused() -> None:
    with pytest.raises(ModelError, match=r"http://one\.test:8000/v1 is there more than once"):
        Hosts().run(lambda engine: submit_all(engine, []), path=f"{URLS[0]},{URLS[0]}/")


# --- one that goes ---


def test_what_a_dying_server_took_along_is_answered_by_others_at_once(caplog: pytest.LogCaptureFixture) -> None:
    requests = [about(f"Text {i}?") for i in range(60)]
    calm = Hosts().run(lambda engine: submit_all(engine, requests))
    hosts = Hosts()

    async def work(engine: ServerEngine) -> list[Any]:
        hosts.hold = asyncio.Event()
        tasks = [asyncio.create_task(engine.submit(r)) for r in requests]
        await until(lambda: hosts.busy.total() == 24)
        hosts.gone.add("two.test")
        hosts.hold.set()
        return await asyncio.gather(*tasks)

    assert hosts.run(work) == calm
    assert hosts.chats()["two"] == 0
    assert hosts.waits == []
    assert max(hosts.most.values()) == 8
    assert "http://two.test:8000/v1 gets no new requests until it answers again; 2 of 3 servers left" in caplog.text


def test_a_drained_server_comes_back_once_it_serves_the_same_again(caplog: pytest.LogCaptureFixture) -> None:
    hosts = Hosts(2)
    card = hosts.fakes["two.test"].cards[0]

    async def rounds(engine: ServerEngine, until: Callable[[], bool]) -> None:
        for seed in range(4000):
            await submit_all(engine, [about(f"Text {i}?", seed) for i in range(4)])
            await asyncio.sleep(0.002)
            if until():
                return
        raise AssertionError("never")

    async def work(engine: ServerEngine) -> None:
        await rounds(engine, lambda: hosts.chats()["two"] > 0)
        hosts.gone.add("two.test")
        await rounds(engine, lambda: "1 of 2 servers left" in caplog.text)
        card["root"] = "/models/other"
        hosts.gone.clear()
        before = hosts.chats()["two"]
        await rounds(engine, lambda: "root of toy: '/models/other', not '/models/toy'" in caplog.text)
        assert hosts.chats()["two"] == before
        card["root"] = "/models/toy"
        await rounds(engine, lambda: hosts.chats()["two"] > before)

    hosts.run(work)


def test_a_server_that_hangs_is_drained_by_its_health(caplog: pytest.LogCaptureFixture) -> None:
    hosts = Hosts(2)
    hosts.fakes["two.test"].hooks.insert(0, hook("/health", httpx.Response(503)))

    async def work(engine: ServerEngine) -> None:
        await until(lambda: "two.test:8000/v1 gets no new requests" in caplog.text)

    hosts.run(work)
    assert "no answer at /health" in caplog.text


def test_all_servers_gone_is_told_after_the_tries_and_one_that_is_back_in_time_is_taken() -> None:
    hosts = Hosts(2)

    async def work(engine: ServerEngine) -> Any:
        hosts.gone |= {"one.test", "two.test"}
        return await submit_all(engine, [about("Text?")])

    (error,) = hosts.run(work)
    assert isinstance(error, ModelError)
    assert "can't reach" in str(error) and "Finished calls are kept" in str(error)
    assert len(hosts.waits) == TRIES - 1
    assert sum(hosts.waits) > 15

    async def back_in_time(engine: ServerEngine) -> Any:
        hosts.gone |= {"one.test", "two.test"}
        asked = asyncio.create_task(engine.submit(about("Text?")))
        await until(lambda: hosts.waits)
        hosts.gone.clear()
        return await asked

    hosts.gone.clear()
    hosts.waits.clear()
    assert isinstance(hosts.run(back_in_time), Completion)


def test_a_server_alone_that_comes_back_with_another_model_is_refused() -> None:
    hosts = Hosts(1)

    async def work(engine: ServerEngine) -> Any:
        hosts.gone.add("one.test")
        asked = asyncio.create_task(engine.submit(about("Text?")))
        await until(lambda: hosts.waits)
        hosts.fakes["one.test"].cards[0]["root"] = "/models/other"
        hosts.gone.clear()
        return await asked

    with pytest.raises(ModelError, match="doesn't serve the same model as before: root of toy"):
        hosts.run(work)
    assert hosts.chats() == {"one": 0}


def test_a_start_needs_one_server_and_takes_the_others_in_later(caplog: pytest.LogCaptureFixture) -> None:
    hosts = Hosts(2)
    hosts.gone.add("two.test")

    async def work(engine: ServerEngine) -> None:
        hosts.gone.clear()
        for seed in range(4000):
            await submit_all(engine, [about(f"Text {i}?", seed) for i in range(4)])
            await asyncio.sleep(0.002)
            if hosts.chats()["two"]:
                return

    hosts.run(work)
    assert "Work starts with 1 of 2 servers" in caplog.text
    assert hosts.chats()["two"] > 0
    hosts.gone |= {"one.test", "two.test"}
    with pytest.raises(ModelError, match=r"(?s)can't reach http://one\.test.*can't reach http://two\.test"):
        hosts.run(work)


def test_a_request_that_kills_servers_does_not_go_round_for_ever() -> None:
    hosts = Hosts()
    asked: list[str] = []

    def die(request: httpx.Request, body: Any) -> httpx.Response | None:
        if request.url.path == "/v1/chat/completions" and body["seed"] == 666:
            asked.append(request.url.host)
            raise httpx.RemoteProtocolError("Server disconnected")
        return None

    for fake in hosts.fakes.values():
        fake.hooks.insert(0, die)
    (error,) = hosts.run(lambda engine: submit_all(engine, [about("Text?", 666)]))
    assert isinstance(error, ModelError)
    assert TRIES <= len(asked) <= TRIES + FREE_HOPS


@pytest.mark.parametrize("failure", [429, 500, 503])
def test_a_server_in_trouble_is_left_for_another(failure: int) -> None:
    hosts = Hosts()
    for fake in list(hosts.fakes.values())[:2]:
        fake.hooks.insert(0, hook("/v1/chat/completions", httpx.Response(failure)))
    replies = hosts.run(lambda engine: submit_all(engine, [about(f"Text {i}?") for i in range(20)]))
    assert all(isinstance(r, Completion) for r in replies)


def test_cancelled_requests_give_back_their_places_and_their_turns() -> None:
    hosts = Hosts(2)

    async def work(engine: ServerEngine) -> list[Any]:
        hosts.hold = asyncio.Event()
        tasks = [asyncio.create_task(engine.submit(about(f"Text {i}?"))) for i in range(40)]
        await until(lambda: hosts.busy.total() == 16)
        for task in tasks[::2]:
            task.cancel()
        hosts.hold.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return await submit_all(engine, [about(f"More {i}?") for i in range(40)])

    assert all(isinstance(r, Completion) for r in hosts.run(work))


# --- real processes ---


@pytest.mark.enable_socket
def test_a_run_whose_server_is_killed_and_comes_back_ends_as_a_calm_run_on_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    recipe = RECIPE.replace("model: { path: scripted }", "model: { path: PATH, concurrency: 4 }").replace("limit: 8", "limit: 24")
    stages = ("respond", "critique")
    with servers(1) as (only,):
        calm = make_workspace(tmp_path / "calm", recipe.replace("PATH", only.url))
        calm_calls = sum(s.calls_made for s in run_data(calm, only=stages).stages)
    with servers(3, seconds=0.02) as fleet:
        disturbed = make_workspace(tmp_path / "disturbed", recipe.replace("PATH", f'"{",".join(s.url for s in fleet)}"'))

        class Killer(Reporter):
            calls = 0

            def call(self) -> None:
                self.calls += 1
                if self.calls == 40:  # amid the critiques, with requests in flight at every server
                    fleet[1].kill()
                if self.calls == 60:
                    fleet[1].start()

        calls = sum(s.calls_made for s in run_data(disturbed, only=stages, reporter=Killer()).stages)
    assert f"127.0.0.1:{fleet[1].port}/v1 gets no new requests" in caplog.text
    assert calls == calm_calls > 60
    with CallStore(calm.store_path) as one, CallStore(disturbed.store_path) as three:
        assert len(one) == len(three) == calls
    assert data_bytes(disturbed.run("s")) == data_bytes(calm.run("s"))
