"""Asks a vLLM in memory through the server engine."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2

from cai.models.requests import ChoicesRequest, CompleteRequest, Completion, Reply, Request, Sampling
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec
from cai.records import Message
from tests.models.fake_vllm import FakeVllm, Hook, render

URL = "http://fake.test:8000/v1"
ASK = (Message("system", "Be good."), Message("user", "Is it?"))
OPEN = render([{"role": m.role, "content": m.content} for m in ASK], open_end=False)
COMPLETE = CompleteRequest(ASK, Sampling(max_tokens=16, temperature=0.7, top_p=0.9), seed=7)
CHOICES = ChoicesRequest(ASK, ("Yes", "No"))


def ask(server: FakeVllm, *requests: Request, **spec: Any) -> list[Any]:
    """Connect, submit the requests at once, and return replies and exceptions in order."""

    async def run() -> list[Any]:
        engine = await ServerEngine.connect(ModelSpec(path=URL, **spec), server.transport)
        try:
            return await asyncio.gather(*(engine.submit(r) for r in requests), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


def stream(server: FakeVllm, *, request: CompleteRequest = COMPLETE, **spec: Any) -> tuple[Completion, list[str]]:
    """Connect, ask for a reply in pieces, and return it with the pieces."""
    pieces: list[str] = []

    async def run() -> Completion:
        engine = await ServerEngine.connect(ModelSpec(path=URL, **spec), server.transport)
        try:
            return await engine.stream(request, pieces.append)
        finally:
            await engine.close()

    return asyncio.run(run()), [p for p in pieces if p]


def ask_one(server: FakeVllm, request: Request, **spec: Any) -> Reply:
    """Submit one request; raise what it raises."""
    (reply,) = ask(server, request, **spec)
    if isinstance(reply, BaseException):
        raise reply
    return reply  # type: ignore[no-any-return]


def connect(server: FakeVllm, **spec: Any) -> tuple[str, str]:
    """Return name and fingerprint of a connected engine."""

    async def run() -> tuple[str, str]:
        engine = await ServerEngine.connect(ModelSpec(**({"path": URL} | spec)), server.transport)
        await engine.close()
        return engine.name, engine.fingerprint

    return asyncio.run(run())


def on(path: str, respond: Callable[[int], httpx2.Response | None]) -> Hook:
    """A hook that answers the n-th request (from 0) to a path."""
    count = iter(range(1000))
    return lambda request, _: respond(next(count)) if request.url.path == path else None


def chat(message: dict[str, Any], finish: str | None = "stop", usage: Any = None) -> httpx2.Response:
    return httpx2.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage})


def always_chat(response: Callable[[], httpx2.Response]) -> FakeVllm:
    return FakeVllm([on("/v1/chat/completions", lambda _: response())])


def hosted(*tops: tuple[str, float]) -> FakeVllm:
    top = [{"token": t, "logprob": v} for t, v in tops]
    reply = {
        "choices": [{"message": {"content": "x"}, "finish_reason": "length", "logprobs": {"content": [top[0] | {"top_logprobs": top}]}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }
    return FakeVllm([on("/v1/chat/completions", lambda _: httpx2.Response(200, json=reply))], owned_by="openai")


def llamacpp(says: str = "Paris.", opens: str = "", finish: str = "stop") -> FakeVllm:
    """A llama.cpp server: it renders what has begun after the reasoning that its template opens, and its reply repeats it."""

    def answer(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        if request.url.path == "/apply-template":
            return httpx2.Response(200, json={"prompt": render(body["messages"], open_end=False, opens=opens)})
        if request.url.path != "/v1/chat/completions" or body.get("logprobs"):
            return None
        last = body["messages"][-1]
        return chat({"content": (last["content"] if last["role"] == "assistant" else "") + says}, finish)

    return FakeVllm([answer], owned_by="llamacpp")
