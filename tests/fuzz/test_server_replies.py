"""A server that answers anything: each request ends in a usable reply or in a `ModelError`, and every reply can be kept and read again."""

import asyncio
import json
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import strategies as st

from cai.errors import ModelError, ReplyError
from cai.models.requests import REPLY_TYPES, ChoicesRequest, CompleteRequest, Request, Sampling, ScoreRequest
from cai.models.server.engine import ServerEngine
from cai.models.server.transport import MAX_REPLY_BYTES
from cai.recipe import ModelSpec
from cai.records import Message
from tests.fuzz.fuzzing import JSON, depths, fuzz, mutated
from tests.models.fake_vllm import FakeVllm

pytestmark = pytest.mark.attack

ASK = (Message("user", "Is it?"),)
REQUESTS: tuple[Request, ...] = (
    CompleteRequest(ASK, Sampling(max_tokens=16), seed=7),
    ChoicesRequest(ASK, ("Yes", "No")),
    ScoreRequest(ASK, "Yes"),
)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no time between tries."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr("anyio.sleep", sleep)


def answers(server: FakeVllm, name: str | None = None) -> list[Any]:
    """Connect and put each kind of request; return replies and errors."""

    async def run() -> list[Any]:
        try:
            engine = await ServerEngine.connect(ModelSpec(path="http://fake.test/v1", name=name), server.transport)
        except ModelError as e:
            return [e]
        try:
            return await asyncio.gather(*map(engine.submit, REQUESTS), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


def usable(found: list[Any]) -> None:
    """Replies of the right type that survive the call store, or model errors of a bearable length."""
    for request, reply in zip(REQUESTS, found, strict=False):
        if isinstance(reply, BaseException):
            assert isinstance(reply, ModelError), repr(reply)
            assert len(str(reply)) < 5000 and str(reply).replace("\n", "").isprintable()
        else:
            kind = REPLY_TYPES[type(request)]
            assert msgspec.json.decode(msgspec.json.encode(reply), type=kind) == reply


GOOD: dict[str, Any] = {}
for path, body in (
    ("/v1/models", None),
    ("/tokenize", {"messages": [{"role": "user", "content": "Is it?"}], "return_token_strs": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Is it?"}], "logprobs": True, "top_logprobs": 3}),
    ("/v1/completions", {"prompt": [1, 2, 4], "logprobs": 3, "logprob_token_ids": [4, 5], "prompt_logprobs": 0}),
):
    request = httpx2.Request("POST" if body else "GET", f"http://fake.test{path}", json=body)
    GOOD[path] = json.loads(FakeVllm()._answer(request).content)


@depths(12)
@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("owner", ["vllm", "openai"])
def test_mutated_replies(path: str, owner: str, examples: int) -> None:
    def check(value: Any) -> None:
        content = json.dumps(value).encode()
        server = FakeVllm([lambda r, _: httpx2.Response(200, content=content) if r.url.path == path else None], owned_by=owner)
        usable(answers(server, name="toy"))

    fuzz(check, mutated(GOOD[path]), examples)


@depths(40)
def test_any_status_headers_and_body(examples: int) -> None:
    def check(given: Any) -> None:
        status, content, header = given
        response = lambda r, _: httpx2.Response(status, content=content, headers={"retry-after": header, "location": header})  # noqa: E731
        usable(answers(FakeVllm([lambda r, b: response(r, b) if r.url.path == "/v1/chat/completions" else None], owned_by="openai")))
        usable(answers(FakeVllm([response])))

    header = st.text("0123456789.-eE GMTMonNov:,+", max_size=30)
    body = st.binary(max_size=80) | JSON.map(lambda v: json.dumps({"error": v}).encode()) | st.just(b"[" * 100_000)
    fuzz(check, st.tuples(st.integers(200, 599), body, header), examples)


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_bottomless_reply_is_not_taken_into_memory(status: int) -> None:
    sent = 0

    async def flood() -> Any:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield b" " * (1 << 20)

    server = FakeVllm(
        [lambda r, _: httpx2.Response(status, content=flood()) if r.url.path == "/v1/chat/completions" else None], owned_by="openai"
    )
    reply = answers(server)[0]
    assert isinstance(reply, ModelError)
    if status == 200:
        assert isinstance(reply, ReplyError) and "malformed_reply: longer than" in str(reply)
    assert sent < 20 * MAX_REPLY_BYTES


def test_a_log_probability_below_all_possible_is_none() -> None:
    for number in ("-1e308", "-1e7"):
        content = f'{{"choices": [{{"logprobs": {{"top_logprobs": [{{"token_id:4": {number}, "token_id:5": {number}}}]}}}}]}}'.encode()
        server = FakeVllm([lambda r, _, c=content: httpx2.Response(200, content=c) if r.url.path == "/v1/completions" else None])
        reply = answers(server)[1]
        assert isinstance(reply, ReplyError) and reply.reason == "no_probability"
