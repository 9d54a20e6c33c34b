"""Replies that come in pieces."""

import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from cai.errors import ModelError, ReplyError
from cai.models.requests import Completion
from cai.models.server.transport import MAX_PARTS, MAX_REPLY_BYTES
from tests.models.server.asking import COMPLETE, always_chat, ask_one, stream


def events(*deltas: dict[str, Any], finish: str | None = "stop") -> httpx2.Response:
    chunks = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": None}]
    lines = "".join(f"data: {json.dumps(c)}\n\n" for c in chunks)
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=lines + "data: [DONE]\n\n")


def sent(event: dict[str, Any]) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=f"data: {json.dumps(event)}\n\n")


def test_a_streamed_reply_comes_in_pieces() -> None:
    server = always_chat(lambda: events({"role": "assistant", "content": ""}, {"content": "It "}, {"content": "is."}, finish="length"))
    reply, pieces = stream(server)
    assert (reply.text, reply.truncated, pieces) == ("It is.", True, ["It ", "is."])


@pytest.mark.attack
def test_a_key_that_a_server_echoes_is_cut_out_of_a_streamed_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-verysecret")
    reply, pieces = stream(
        always_chat(lambda: events({"reasoning_content": "sk-verysecret"}, {"content": "sk-very"}, {"content": "secret!"}))
    )
    assert (reply.text, reply.reasoning) == ("***!", "***"), "what is kept has no part of it, however it is cut"
    assert pieces == ["***", "***!"], "and neither is shown"
    spelled = always_chat(lambda: events(*({"content": letter} for letter in "my sk-verysecret, sk-very")))
    assert "".join(stream(spelled)[1]) == "my ***, sk-very"


@pytest.mark.parametrize(
    "thought", [{"reasoning_content": "Hm."}, {"reasoning": "Hm."}, {"content": [{"type": "thinking", "thinking": "Hm."}]}]
)
def test_streamed_reasoning_is_set_apart(thought: dict[str, Any]) -> None:
    reply, pieces = stream(always_chat(lambda: events(thought, {"content": [{"type": "text", "text": "Yes."}]})))
    assert (reply.text, reply.reasoning, pieces) == ("Yes.", "Hm.", ["Hm.", "Yes."])


@pytest.mark.parametrize(
    ("response", "error", "said"),
    [
        (lambda: httpx2.Response(400, json={"error": {"message": "no such thing"}}), ReplyError, "no such thing"),
        (lambda: httpx2.Response(401, json={"error": {"message": "who"}}), ModelError, "CAI_API_KEY"),
        (
            lambda: httpx2.Response(200, headers={"content-type": "text/event-stream"}, text="data: {oops\n\n"),
            ReplyError,
            "malformed_reply",
        ),
        (lambda: events(), ReplyError, "empty_reply"),
        (lambda: sent({"error": {"message": "bad role", "code": 400}}), ReplyError, "refused_by_server: 400: bad role"),
        (lambda: sent({"error": {"message": "gone", "code": 502}}), ReplyError, "server_error: 502: gone"),
        (lambda: sent({"object": "error", "message": "bad role"}), ReplyError, "refused_by_server: 400: bad role"),
    ],
)
def test_a_stream_that_fails_says_why(response: Callable[[], httpx2.Response], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        stream(always_chat(response))


@pytest.mark.attack
@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"content-encoding": "gzip, gzip"}, gzip.compress(gzip.compress(b" " * 100_000_000))),
        ({"content-encoding": "br"}, b"x"),
        ({}, b"data: " + b" " * (MAX_REPLY_BYTES + 1)),
        ({}, b'data: {"choices": [' + b"{}," * MAX_PARTS + b"{}]}\n\n"),
        ({}, b'data: {"choices": [' + b"{}," * (MAX_PARTS - 1) + b"{}]}\n\ndata: [DONE]\n\n"),
    ],
    ids=["packed twice", "packed", "one line without end", "too many choices", "many choices"],
)
def test_a_stream_cannot_fill_the_memory(headers: dict[str, str], content: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1 << 16):
            yield content[start : start + (1 << 16)]

    server = always_chat(lambda: httpx2.Response(200, headers={"content-type": "text/event-stream", **headers}, content=pieces()))
    tracemalloc.start()
    try:
        with pytest.raises(ReplyError, match=r"malformed_reply|empty_reply"):
            stream(server)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


def test_pieces_that_were_not_asked_for_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-verysecret")
    reply = ask_one(always_chat(lambda: events({"reasoning": "Hm."}, {"content": "It "}, {"content": "is."}, finish="length")), COMPLETE)
    assert isinstance(reply, Completion) and (reply.text, reply.reasoning, reply.truncated) == ("It is.", "Hm.", True)
    echoed = ask_one(always_chat(lambda: events({"content": "sk-very"}, {"content": "secret!"})), COMPLETE)
    assert isinstance(echoed, Completion) and echoed.text == "***!"
    refused = {"error": {"message": "no such role", "code": 400}}
    with pytest.raises(ReplyError, match="refused_by_server: 400: no such role"):
        ask_one(always_chat(lambda: sent(refused)), replace(COMPLETE, messages=COMPLETE.messages[1:]))
    with pytest.raises(ReplyError, match="malformed_reply"):
        ask_one(always_chat(lambda: httpx2.Response(200, text="data: {cut")), COMPLETE)
