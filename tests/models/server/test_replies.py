"""Replies that make no sense, and refusals of one request."""

import gzip
import json
import tracemalloc
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from cai.errors import ModelError, ReplyError
from cai.models.requests import Completion
from cai.models.server.client import READ_TRIES
from cai.models.server.transport import MAX_PARTS
from tests.models.fake_vllm import FakeVllm
from tests.models.server.asking import CHOICES, COMPLETE, always_chat, ask_one, chat, on

BROKEN = [
    b"",
    b'{"choices": [{"message": {"content": "cut',
    b"<html>Bad gateway</html>",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'{"choices": []}',
    b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
    b'{"choices": [{"message": {"content": [5]}, "finish_reason": "stop"}]}',
    b'{"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}',
    b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": -1}}',
    b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": "many"}}',
    b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 999}}',
    b'{"error": {"message": "oops", "code": 502}}',
    b'{"object": "error", "message": "oops", "code": 429}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_reply_that_makes_no_sense_is_tried_again_then_this_items_failure(content: bytes) -> None:
    server = FakeVllm([on("/v1/chat/completions", lambda n: httpx2.Response(200, content=content) if n < 2 else None)])
    assert isinstance(ask_one(server, COMPLETE), Completion)
    server = always_chat(lambda: httpx2.Response(200, content=content))
    with pytest.raises(ReplyError) as e:
        ask_one(server, COMPLETE)
    assert e.value.reason == "malformed_reply"
    assert len(server.bodies("/v1/chat/completions")) == READ_TRIES


def test_a_log_probability_that_is_not_a_number_is_malformed() -> None:
    for number in ("NaN", "Infinity", '"nan"', '"low"', "[]"):
        content = f'{{"choices": [{{"logprobs": {{"top_logprobs": [{{"token_id:4": {number}}}]}}}}]}}'.encode()
        with pytest.raises(ReplyError, match="malformed_reply"):
            ask_one(FakeVllm([on("/v1/completions", lambda _, c=content: httpx2.Response(200, content=c))]), CHOICES)


def test_a_broken_encoding_is_malformed() -> None:
    server = always_chat(lambda: httpx2.Response(200, headers={"content-encoding": "gzip"}, content=b"not gzip", request=None))
    with pytest.raises(ReplyError, match="malformed_reply"):
        ask_one(server, COMPLETE)


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 512 tokens. However, you requested 900 tokens.",
        "The decoder prompt (length 900) is longer than the maximum model length of 512.",
        "the request exceeds the available context size",
        "'max_tokens' or 'max_completion_tokens' is too large: 900.",
    ],
)
def test_a_prompt_that_is_too_long_is_this_items_failure_and_not_tried_again(said: str) -> None:
    server = always_chat(lambda: httpx2.Response(400, json={"error": {"message": said, "code": 400}}))
    with pytest.raises(ReplyError) as e:
        ask_one(server, COMPLETE)
    assert (e.value.reason, e.value.detail) == ("prompt_too_long", f"400: {said}")
    assert len(server.bodies("/v1/chat/completions")) == 1


@pytest.mark.parametrize(
    ("status", "body"), [(400, {"message": "bad role"}), (413, "big"), (422, {"detail": [{"loc": ["seed"]}]}), (451, {})]
)
def test_other_refusals_are_this_items_failure(status: int, body: Any) -> None:
    with pytest.raises(ReplyError) as e:
        ask_one(always_chat(lambda: httpx2.Response(status, json=body)), COMPLETE)
    assert e.value.reason == "refused_by_server"
    assert e.value.detail.startswith(str(status))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "bad role", "code": 400}},
        {"error": {"message": "bad role", "code": "invalid_request"}, "choices": None},
        {"error": "bad role"},
        {"object": "error", "message": "bad role", "type": "BadRequestError", "code": 400},
    ],
)
def test_a_refusal_that_is_sent_as_a_success_is_one(body: Any) -> None:
    server = always_chat(lambda: httpx2.Response(200, json=body))
    with pytest.raises(ReplyError, match="refused_by_server: 400: bad role"):
        ask_one(server, replace(COMPLETE, messages=COMPLETE.messages[1:]))
    assert len(server.bodies("/v1/chat/completions")) == 1


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (401, r"\$CAI_API_KEY is not set"),
        (403, "export CAI_API_KEY="),
        (402, r"account behind \$CAI_API_KEY can't pay for more\. Finished calls are kept"),
        (404, r"end in /v1.*model\.name"),
        (308, "right URL into model.path"),
    ],
)
def test_what_is_wrong_for_every_item_stops_the_run_with_its_fix(status: int, fix: str) -> None:
    server = always_chat(lambda: httpx2.Response(status, json={"error": {"message": "no"}}))
    with pytest.raises(ModelError, match=fix) as e:
        ask_one(server, COMPLETE)
    assert not isinstance(e.value, ReplyError)
    assert len(server.bodies("/v1/chat/completions")) == 1


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"completion_tokens": 316, "completion_tokens_details": {"reasoning_tokens": 300}}, 316),
        ({"completion_tokens": "12"}, 12),
        ({"completion_tokens": 12, "completion_tokens_details": None}, 12),
    ],
)
def test_counts_that_servers_write_otherwise_are_read(usage: Any, tokens: int) -> None:
    reply = ask_one(always_chat(lambda: chat({"content": "Yes."}, "stop", usage)), COMPLETE)
    assert isinstance(reply, Completion) and (reply.completion_tokens, reply.truncated) == (tokens, False)


@pytest.mark.attack
@pytest.mark.parametrize("digits", [11, 320, 5000])
def test_a_count_of_tokens_that_cannot_be_is_a_malformed_reply(digits: int) -> None:
    body = '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1%s, "completion_tokens": 1}}' % ("0" * digits)
    with pytest.raises(ReplyError) as e:
        ask_one(always_chat(lambda: httpx2.Response(200, content=body)), COMPLETE)
    assert e.value.reason == "malformed_reply" and len(str(e.value)) < 600


@pytest.mark.attack
@pytest.mark.parametrize("where", ["content", "reasoning"])
def test_a_text_that_its_tokens_cannot_hold_is_a_malformed_reply(where: str) -> None:
    message = {"content": "x", where: "a" * 1_000_000}
    with pytest.raises(ReplyError, match="1,000,000 characters"):
        ask_one(always_chat(lambda: chat(message)), COMPLETE)


PACKED = {
    "endless": (gzip.compress(bytes(100 * 2**20)), "gzip", "longer than 32 MiB"),
    "twice": (gzip.compress(gzip.compress(bytes(2**20))), "gzip, gzip", "packed as 'gzip, gzip'"),
    "unknown": (b"x", "br", "packed as 'br'"),
    "broken": (b"x" * 100, "gzip", "not valid gzip"),
    "of many choices": (b'{"choices":[' + b"{}," * (MAX_PARTS + 1) + b"{}]}", "identity", "of more than 1,000,000 values"),
    "of many tokens": (
        b'{"choices":[{"message":{"content":"","tool_calls":[' + b"{}," * (MAX_PARTS // 2) + b'{}]},"logprobs":{"content":['
        b'{"token":"Yes","top_logprobs":[' + b"{}," * (MAX_PARTS // 2 - 9) + b"{}]}]}}]}",
        "identity",
        "no text came back: the model called a tool",
    ),
}


@pytest.mark.attack
@pytest.mark.parametrize("kind", PACKED)
def test_packed_replies_are_bounded_while_they_are_unpacked(kind: str) -> None:
    body, encoding, said = PACKED[kind]
    hook = always_chat(lambda: httpx2.Response(200, headers={"content-encoding": encoding}, stream=httpx2.ByteStream(body)))
    tracemalloc.start()
    try:
        with pytest.raises(ReplyError, match=said) as e:
            ask_one(hook, COMPLETE)
        assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
    finally:
        tracemalloc.stop()
    assert e.value.reason in ("malformed_reply", "empty_reply")


@pytest.mark.attack
def test_a_reply_that_was_packed_unasked_is_read() -> None:
    body = json.dumps({"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}).encode()
    server = always_chat(lambda: httpx2.Response(200, headers={"content-encoding": "gzip"}, stream=httpx2.ByteStream(gzip.compress(body))))
    assert ask_one(server, COMPLETE).text == "fine"
    assert {h["accept-encoding"] for h in server.headers} == {"identity"}
