"""The server engine against a vLLM in memory: what it asks, what it reads, and what it says when the server misbehaves."""

import asyncio
import gzip
import itertools
import json
import logging
import math
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cai.core.console import Reporter
from cai.core.waiting import telling
from cai.errors import ModelError, NoLogprobsError, ReplyError
from cai.models.base import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, Reply, Request, Sampling, ScoreRequest, TextLogprob
from cai.models.server.address import config_dir
from cai.models.server.capabilities import learned_from, of_owner
from cai.models.server.client import FIRST_RETRIES, READ_TRIES, RETRIES
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec
from cai.records import Message
from tests.models.fake_vllm import VOCAB, FakeVllm, Hook, logprob, render, tokenize, total

URL = "http://fake.test:8000/v1"
ASK = (Message("system", "Be good."), Message("user", "Is it?"))
OPEN = render([{"role": m.role, "content": m.content} for m in ASK], open_end=False)
COMPLETE = CompleteRequest(ASK, Sampling(max_tokens=16, temperature=0.7, top_p=0.9), seed=7)
CHOICES = ChoicesRequest(ASK, ("Yes", "No"))


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits between tries: noted, and none taken."""
    noted: list[float] = []

    async def sleep(seconds: float) -> None:
        noted.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr("anyio.sleep", sleep)
    return noted


def ask(server: FakeVllm, *requests: Request, **spec: Any) -> list[Any]:
    """Connect, submit the requests at once, and return replies and exceptions in order."""

    async def run() -> list[Any]:
        engine = await ServerEngine.connect(ModelSpec(path=URL, **spec), server.transport)
        try:
            return await asyncio.gather(*(engine.submit(r) for r in requests), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


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


# --- connecting ---


def test_the_only_model_is_taken_and_named() -> None:
    name, fingerprint = connect(FakeVllm())
    assert name == f"{URL} toy"
    assert fingerprint.startswith("server:")


def test_several_models_need_a_name_and_are_listed() -> None:
    server = FakeVllm()
    server.cards.append(server.cards[0] | {"id": "other"})
    with pytest.raises(ModelError, match=r"serves 2 models: toy, other\. Set model\.name"):
        connect(server)
    assert connect(server, name="other")[0].endswith(" other")


def test_an_adapter_is_no_second_model_and_replaces_the_name() -> None:
    server = FakeVllm()
    server.cards.append(server.cards[0] | {"id": "tuned", "root": "/adapters/tuned", "parent": "toy"})
    assert connect(server)[0].endswith(" toy")
    ask_one(server, COMPLETE, adapter="tuned")
    assert server.bodies("/v1/chat/completions")[0]["model"] == "tuned"
    assert connect(server)[1] != connect(server, adapter="tuned")[1]


@pytest.mark.parametrize(("spec", "fix"), [({"name": "gone"}, "correct model.name"), ({"adapter": "gone"}, "--lora-modules NAME=FOLDER")])
def test_a_model_that_is_not_served(spec: dict[str, str], fix: str) -> None:
    with pytest.raises(ModelError, match=r"doesn't serve 'gone'; it serves: toy") as e:
        connect(FakeVllm(), **spec)
    assert fix in str(e.value)


def test_moving_the_server_keeps_the_fingerprint_and_other_weights_change_it() -> None:
    here = connect(FakeVllm())[1]
    assert connect(FakeVllm(created=2), path="https://elsewhere.test/v1")[1] == here
    assert connect(FakeVllm(root="/models/toy-2"))[1] != here
    assert connect(FakeVllm(max_model_len=1024))[1] != here
    assert connect(FakeVllm(id="toy-2"))[1] != here


def test_fingerprints_are_those_of_earlier_versions() -> None:
    """Call stores were filled under these: a change would throw every paid answer away."""
    adapted = FakeVllm()
    adapted.cards.append(adapted.cards[0] | {"id": "tuned", "root": "/adapters/tuned", "parent": "toy"})
    unlisted = FakeVllm([on("/v1/models", lambda _: httpx2.Response(404))])
    assert connect(FakeVllm())[1] == "server:746ce465467d9984bb56ab52ddae95a0"
    assert connect(FakeVllm(owned_by="llamacpp", meta={"n_params": 135000000, "n_ctx_train": 2048}))[1] == (
        "server:d200f0123249bd4e69ed6c87934bc0fc"
    )
    assert connect(adapted, adapter="tuned")[1] == "server:b86bc9d87bf4f935d0d387d27765d19d"
    assert connect(unlisted, name="big")[1] == "server:62b7aad86d6b8a17e56f9b57cb50ceca"


def test_another_chat_template_changes_the_fingerprint_and_another_day_does_not() -> None:
    def strings(*tokens: str) -> FakeVllm:
        reply = {"tokens": [1], "token_strs": list(tokens)}
        return FakeVllm([lambda request, _: httpx2.Response(200, json=reply) if request.url.path == "/tokenize" else None])

    monday = connect(strings("Today", " Date", ": ", "23", " Nov", " 2026", "<user>", "Hi"))[1]
    assert connect(strings("Today", " Date", ": ", "24", " Nov", " 2026", "<user>", "Hi"))[1] == monday
    assert connect(strings("Today", " Date", ": ", "23", " Nov", " 2026", "[INST]", "Hi"))[1] != monday


def test_a_hosted_api_without_a_model_list_is_taken_at_its_word() -> None:
    server = FakeVllm([on("/v1/models", lambda _: httpx2.Response(404))])
    assert connect(server, name="big")[0].endswith(" big")
    with pytest.raises(ModelError, match=r"answered 404.*\n.*end in /v1"):
        connect(server)


def test_a_bare_array_of_models_is_a_list_too() -> None:
    cards = [{"id": "m", "object": "model", "owned_by": "someone", "context_length": 4096}]
    assert connect(FakeVllm([on("/v1/models", lambda _: httpx2.Response(200, json=cards))]))[0] == f"{URL} m"


@pytest.mark.parametrize("page", [httpx2.Response(200, text="<html>Welcome</html>"), httpx2.Response(200, json={"models": []})])
def test_an_address_that_is_no_model_server_says_where_the_url_goes(page: httpx2.Response) -> None:
    with pytest.raises(ModelError, match=r"fake\.test:8000/v1/models doesn't list models.*Check model\.path: .* end in /v1"):
        connect(FakeVllm([on("/v1/models", lambda _: page)]))


def test_a_refused_key_is_told_at_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-old")
    server = FakeVllm([on("/v1/models", lambda _: httpx2.Response(401, json={"error": {"message": "key sk-old expired"}}))])
    with pytest.raises(ModelError, match=r"answered 401: key \*\*\* expired\nThe key in \$CAI_API_KEY is refused.*export CAI_API_KEY"):
        connect(server)


SYSTEM_REFUSALS = (
    "System role not supported",
    "system messages are not allowed by this model",
    "Only user and assistant roles are supported!",
)


@pytest.mark.parametrize("said", SYSTEM_REFUSALS)
def test_a_template_without_a_system_turn_is_told_in_the_first_user_turn(said: str) -> None:
    def refuse(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        has_system = any(m["role"] == "system" for m in (body or {}).get("messages", ()))
        return httpx2.Response(400, json={"error": {"message": said}}) if has_system else None

    told = (Message("system", "Be brief."), Message("user", "Why?"))
    server = FakeVllm([refuse])
    assert isinstance(ask_one(server, CompleteRequest(told, Sampling(), 0)), Completion)
    assert server.bodies("/v1/chat/completions")[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nWhy?"}]
    assert isinstance(ask_one(FakeVllm([refuse]), ChoicesRequest(told, ("Yes", "No"))), ChoiceLogprobs)


def test_several_urls_are_refused_with_the_router_to_put_in_front() -> None:
    with pytest.raises(ModelError, match=r"vllm-router --worker-urls http://gpu-0:8000 http://gpu-1:8000 .*\n.*--data-parallel-size N"):
        connect(FakeVllm(), path="http://gpu-0:8000/v1, http://gpu-1:8000/v1")


@pytest.mark.parametrize(
    "path",
    [
        "http://user:s3cret@fake.test/v1",
        "http://fake.test/v1?key=s3cret",
        "http://fake.test/v1#s3cret",
        "http://[::1/v1",
        "http://fake.test:99999/v1",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_its_secret(path: str) -> None:
    with pytest.raises(ModelError, match=r"model\.path") as e:
        connect(FakeVllm(), path=path)
    assert "s3cret" not in str(e.value)


# --- completions ---


def test_a_completion_sends_its_whole_sampling_and_reads_text_and_counts() -> None:
    server = FakeVllm()
    assert ask_one(server, COMPLETE) == Completion("Hello.", False, len(tokenize(OPEN)), 1)
    (body,) = server.bodies("/v1/chat/completions")
    assert body == {
        "model": "toy",
        "messages": [{"role": "system", "content": "Be good."}, {"role": "user", "content": "Is it?"}],
        "max_tokens": 16,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 7,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


@pytest.mark.parametrize(("owner", "extra"), [("openai", set()), ("llamacpp", {"top_k", "min_p", "repeat_penalty"})])
def test_sampling_extras_go_only_where_they_are_known(owner: str, extra: set[str]) -> None:
    server = FakeVllm(owned_by=owner)
    ask_one(server, COMPLETE)
    assert set(server.bodies("/v1/chat/completions")[0]) - {"model", "messages", "max_tokens", "temperature", "top_p", "seed"} == extra


def test_a_prefill_leaves_the_last_turn_open() -> None:
    server = FakeVllm()
    ask_one(server, CompleteRequest(ASK, Sampling(), 0, prefill="Sure:"))
    (body,) = server.bodies("/v1/chat/completions")
    assert body["messages"][-1] == {"role": "assistant", "content": "Sure:"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_a_reply_that_hit_the_limit_is_truncated_and_absent_usage_counts_as_nothing() -> None:
    assert ask_one(always_chat(lambda: chat({"content": "So"}, "length")), COMPLETE) == Completion("So", True, 0, 0)


@pytest.mark.parametrize(
    ("finish", "tokens", "truncated"),
    [
        ("length", 16, True),
        ("model_length", 16, True),
        ("MAX_TOKENS", 16, True),
        ("eos", 3, False),
        ("STOP", 16, False),
        (None, 3, False),
        (None, 16, True),
        ("stop", 17, False),
        ("tool_calls", 3, False),
        ("some_new_word", 3, False),
        ("some_new_word", 16, True),
    ],
)
def test_servers_words_for_an_end(finish: str | None, tokens: int, truncated: bool) -> None:
    reply = ask_one(always_chat(lambda: chat({"content": "So"}, finish, {"prompt_tokens": 9, "completion_tokens": tokens})), COMPLETE)
    assert reply == Completion("So", truncated, 9, tokens)


@pytest.mark.parametrize(
    "content",
    [
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
            {"type": "text", "text": "Yes, "},
            {"type": "text", "text": "so."},
        ],
        "<think>\nIs it? The policy says so.\n</think>\n\nYes, so.",
        "Is it? The policy says so.\n</think>\n\nYes, so.",
        "[THINK]Is it?[/THINK]Yes, so.",
        "Yes, so.",
    ],
)
def test_the_answer_is_what_is_not_reasoning(content: Any) -> None:
    reply = ask_one(always_chat(lambda: chat({"content": content})), COMPLETE)
    assert isinstance(reply, Completion) and (reply.text, reply.truncated) == ("Yes, so.", False)
    assert bool(reply.reasoning) == (content != "Yes, so.")


def test_an_answer_about_the_tags_is_kept_whole() -> None:
    text = "Write <think> before it and </think> after it."
    assert ask_one(always_chat(lambda: chat({"content": text})), COMPLETE) == Completion(text, False, 0, 0)


def test_a_server_that_cannot_continue_is_told_the_opening_and_may_repeat_it() -> None:
    request = CompleteRequest(ASK, Sampling(), 0, prefill="The problem is that")
    for said in ("it is rude.", "The problem is that it is rude."):
        server = FakeVllm([on("/v1/chat/completions", lambda _, said=said: chat({"content": said}))], owned_by="openai")
        reply = ask_one(server, request)
        assert isinstance(reply, Completion) and reply.text.strip() == "it is rude."
        (body,) = server.bodies("/v1/chat/completions")
        assert body["messages"][-1]["content"].startswith("Is it?") and body["messages"][-1]["content"].endswith("The problem is that")
        assert "continue_final_message" not in body and "add_generation_prompt" not in body


@pytest.mark.parametrize(
    ("owner", "said", "after"),
    [
        ("llamacpp", "Assistant response prefill is incompatible with enable_thinking.", lambda b: b["messages"][-1]["role"] == "user"),
        ("sglang", "Unrecognized request argument supplied: continue_final_message", lambda b: "continue_final_message" not in b),
        ("openai", "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", lambda b: "max_tokens" not in b),
        ("openai", "Unsupported parameter: 'seed' is not supported with this model.", lambda b: "seed" not in b),
        ("mistral", '[{"type":"extra_forbidden","loc":["body","seed"],"msg":"Extra inputs are not permitted"}]', lambda b: "seed" not in b),
        ("openai", "Unsupported value: 'temperature' does not support 1.0; only the default (1).", lambda b: "temperature" not in b),
        ("openai", "Unsupported parameter: 'top_p' is not supported with this model.", lambda b: "top_p" not in b),
        ("vllm", "unexpected keyword argument: repetition_penalty", lambda b: "repetition_penalty" not in b and "min_p" in b),
    ],
)
def test_a_refusal_that_says_how_to_ask_is_followed_once_for_all_requests(owner: str, said: str, after: Callable[[Any], bool]) -> None:
    refuse = lambda request, body: None if request.url.path != "/v1/chat/completions" or after(body) else refusal  # noqa: E731
    refusal = httpx2.Response(400, json={"error": {"message": said}})
    server = FakeVllm([refuse], owned_by=owner)

    async def run() -> None:
        engine = await ServerEngine.connect(ModelSpec(path=URL), server.transport)
        for seed in range(3):
            assert isinstance(await engine.submit(CompleteRequest(ASK, Sampling(), seed, prefill="Well,")), Completion)
        await engine.close()

    asyncio.run(run())
    assert len(server.bodies("/v1/chat/completions")) == 4


def test_a_refusal_that_stays_is_the_items_failure() -> None:
    server = always_chat(lambda: httpx2.Response(400, json={"error": {"message": "max_tokens: use max_completion_tokens"}}))
    with pytest.raises(ReplyError, match="refused_by_server: 400: max_tokens"):
        ask_one(server, COMPLETE)
    assert len(server.bodies("/v1/chat/completions")) == 2


def test_a_temperature_that_is_refused_is_never_left_out_where_it_changes_the_answer() -> None:
    server = always_chat(lambda: httpx2.Response(400, json={"error": {"message": "Unsupported value: 'temperature' does not support 0."}}))
    with pytest.raises(ReplyError, match="refused_by_server: 400: Unsupported value"):
        ask_one(server, CompleteRequest(ASK, Sampling(16, 0.0), 0))
    assert all(body["temperature"] == 0.0 for body in server.bodies("/v1/chat/completions"))


def test_turns_are_joined_for_a_server_that_wants_them_to_alternate() -> None:
    def strict(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        if request.url.path != "/v1/chat/completions":
            return None
        roles = [m["role"] for m in body["messages"]]
        if "system" in roles or any(a == b for a, b in itertools.pairwise(roles)):
            return httpx2.Response(400, json={"error": {"message": "Conversation roles must alternate user/assistant/user/assistant/..."}})
        return None

    server = FakeVllm([strict], owned_by="tgi")
    turns = (Message("system", "Be brief."), Message("user", "One."), Message("user", "Two."))
    assert isinstance(ask_one(server, CompleteRequest(turns, Sampling(16), 0)), Completion)
    assert server.bodies("/v1/chat/completions")[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nOne.\n\nTwo."}]


@pytest.mark.parametrize(
    ("listed", "name"), [("models/gemini-x", "gemini-x"), ("qwen2.5:latest", "qwen2.5"), ("meta/llama", "llama"), ("m", "m")]
)
def test_a_model_is_found_as_its_server_lists_it(listed: str, name: str) -> None:
    models = httpx2.Response(200, json={"data": [{"id": listed}, {"id": "another"}]})
    server = FakeVllm([lambda request, _: models if request.url.path == "/v1/models" else None])
    assert connect(server, name=name)[0].endswith(f" {listed}")


def test_the_thinking_switch_goes_to_servers_that_are_known_to_take_it() -> None:
    server = FakeVllm()
    ask(server, COMPLETE, CHOICES, thinking=False)
    switch = {"enable_thinking": False, "thinking": False}
    assert server.bodies("/v1/chat/completions")[0]["chat_template_kwargs"] == switch
    assert all(b["chat_template_kwargs"] == switch for b in server.bodies("/tokenize") if "messages" in b)
    assert connect(FakeVllm(), thinking=False)[1] != connect(FakeVllm(), thinking=True)[1] != connect(FakeVllm())[1]
    with pytest.raises(ModelError, match="only vLLM, SGLang and llama"):
        connect(FakeVllm(owned_by="openai"), thinking=False)


@pytest.mark.parametrize(
    "said",
    ["top_logprobs must be at most 5", "20 is greater than the maximum of 5 - 'top_logprobs'", "Expected 0 <= top_logprobs <= 5, got 20"],
)
def test_the_most_tokens_are_read_from_a_refusal(said: str) -> None:
    assert learned_from(f"400: {said}", of_owner("someone")) == {"top": 5}


def test_fewer_likely_tokens_are_asked_of_a_server_that_lists_fewer() -> None:
    def five(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        if request.url.path == "/v1/chat/completions" and body["top_logprobs"] > 5:
            return httpx2.Response(400, json={"error": {"message": "top_logprobs must be at most 5"}})
        return None

    server = hosted(("Yes", -0.5), ("No", -1.5))
    server.hooks.insert(0, five)
    assert ask_one(server, CHOICES) == ChoiceLogprobs((-0.5, -1.5), 9, every_form=True)
    assert [b["top_logprobs"] for b in server.bodies("/v1/chat/completions")] == [20, 5]


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ({"content": None}, "stop", "empty_reply"),
        ({"content": "<think>Hm, what does the policy say"}, "length", "empty_reply"),
        ({"content": [{"type": "thinking", "thinking": "Hm"}]}, "length", "empty_reply"),
        ({"content": ""}, "stop", "empty_reply"),
        ({"content": None, "reasoning": "Hmm"}, "length", "empty_reply"),
        ({"content": None, "refusal": "I can't."}, "stop", "refused_by_server"),
        ({"content": "Well"}, "content_filter", "content_filter"),
    ],
)
def test_a_reply_without_text_is_this_items_failure(message: dict[str, Any], finish: str, reason: str) -> None:
    server = always_chat(lambda: chat(message, finish))
    with pytest.raises(ReplyError) as e:
        ask_one(server, COMPLETE)
    assert e.value.reason == reason
    assert len(server.bodies("/v1/chat/completions")) == 1


# --- choices ---


def test_single_token_choices_cost_one_question_and_are_exact() -> None:
    server = FakeVllm()
    reply = ask_one(server, CHOICES)
    assert reply == ChoiceLogprobs((pytest.approx(total(OPEN, "Yes")), pytest.approx(total(OPEN, "No"))), len(tokenize(OPEN)))
    (body,) = server.bodies("/v1/completions")
    assert "seed" not in body  # vLLM's CPU build dies of a seeded request whose prompt is taken in two steps


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("prefill", ["", "Answer:"])
def test_choices_of_several_tokens_share_prefixes_and_sum_exactly(old: bool, prefill: str) -> None:
    server = FakeVllm(old=old)
    choices = ("Not sure", "Not", "No way", " Yes", "Yes", "zq")
    reply = ask_one(server, ChoicesRequest(ASK, choices, prefill))
    assert isinstance(reply, ChoiceLogprobs)
    assert reply.logprobs == pytest.approx([total(OPEN + prefill, c) for c in choices])
    if not old:
        branches = {tuple(tokenize(c)[:i]) for c in choices for i in range(len(tokenize(c)))}
        assert len(server.bodies("/v1/completions")) == len(branches) < sum(len(tokenize(c)) for c in choices)


def test_a_choice_equals_the_score_of_the_same_words() -> None:
    choices, score = ask(FakeVllm(), ChoicesRequest(ASK, ("Not sure",)), ScoreRequest(ASK, "Not sure"))
    assert choices.logprobs[0] == pytest.approx(score.total)
    assert score.tokens == 2


def test_a_choice_that_would_merge_with_the_prefill_is_tokenized_alone() -> None:
    reply = ask_one(FakeVllm(), ChoicesRequest(ASK, ("b",), prefill="a"))
    prompt = tokenize(f"{OPEN}a")
    assert isinstance(reply, ChoiceLogprobs)
    assert reply.logprobs == (pytest.approx(logprob(prompt, tokenize("b")[0])),)


def test_choices_are_tokenized_once_for_all_items_also_where_these_begin_together() -> None:
    server = FakeVllm()
    at_once = server.transport

    class Network(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await asyncio.sleep(0)  # what begins together has begun before the first reply is there
            return await at_once.handle_async_request(request)

    server.transport = Network()  # type: ignore[assignment]
    ask(server, *(ChoicesRequest((Message("user", str(i)),), ("Yes", "No")) for i in range(5)))
    assert len(server.bodies("/tokenize")) == 1 + 2 + 5  # the fingerprint's probe, two choices, five prompts


def test_logits_instead_of_log_probabilities_are_noticed() -> None:
    reply = {"choices": [{"logprobs": {"top_logprobs": [{f"token_id:{tokenize(c)[0]}": 17.5 for c in ("Yes", "No")}]}}]}
    with pytest.raises(ModelError, match="--logprobs-mode raw_logprobs"):
        ask_one(FakeVllm([on("/v1/completions", lambda _: httpx2.Response(200, json=reply))]), CHOICES)


def hosted(*tops: tuple[str, float]) -> FakeVllm:
    top = [{"token": t, "logprob": v} for t, v in tops]
    reply = {
        "choices": [{"message": {"content": "x"}, "finish_reason": "length", "logprobs": {"content": [top[0] | {"top_logprobs": top}]}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }
    return FakeVllm([on("/v1/chat/completions", lambda _: httpx2.Response(200, json=reply))], owned_by="openai")


def test_elsewhere_choices_are_found_by_their_exact_text() -> None:
    server = hosted(("Yes", -0.5), (" No", -1.5), ("Yesterday", -2.0), ("yes", -3.0))
    assert ask_one(server, CHOICES) == ChoiceLogprobs((-0.5, -1.5), 9, every_form=True)
    (body,) = server.bodies("/v1/chat/completions")
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 1.0)
    assert not server.bodies("/tokenize")


def test_a_choice_is_summed_over_its_ways_to_be_written() -> None:
    reply = ask_one(hosted(("Yes", math.log(0.2)), (" Yes", math.log(0.3)), ("No", math.log(0.1))), CHOICES)
    assert isinstance(reply, ChoiceLogprobs)
    assert [math.exp(x) for x in reply.logprobs] == pytest.approx([0.5, 0.1])


def test_the_exact_token_wins_over_the_one_with_a_space() -> None:
    reply = ask_one(hosted((" Yes", -0.1), ("Yes", -2.5)), ChoicesRequest(ASK, ("Yes", " Yes")))
    assert isinstance(reply, ChoiceLogprobs)
    assert reply.logprobs == (-2.5, -0.1)


def test_a_choice_that_is_not_among_the_likeliest_is_a_failure_never_a_guess() -> None:
    with pytest.raises(ReplyError, match=r"'No' is not one of the 2 likeliest next tokens \('Yes', 'Noway'") as e:
        ask_one(hosted(("Yes", -0.5), ("Noway", -1.5)), CHOICES)
    assert e.value.reason == "choice_not_likely"


def test_a_choice_that_is_not_listed_counts_with_the_most_that_is_left_for_it() -> None:
    reply = ask_one(hosted(("Yes", math.log(0.99)), ("Maybe", math.log(0.006))), CHOICES)
    assert isinstance(reply, ChoiceLogprobs)
    assert [math.exp(x) for x in reply.logprobs] == pytest.approx([0.99, 0.004])


def test_a_server_whose_model_reasons_first_gives_no_log_probabilities_of_choices() -> None:
    with pytest.raises(NoLogprobsError, match=r"reasons first.*pairwise-cot"):
        ask_one(hosted(("<think>", -0.001), ("Yes", -9.0)), CHOICES)


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(200, json={"choices": [{"message": {"content": "Yes"}, "finish_reason": "length"}]}),
        httpx2.Response(200, json={"choices": [{"message": {"content": "Yes"}, "finish_reason": "length", "logprobs": {"content": []}}]}),
        httpx2.Response(400, json={"error": {"message": "logprobs are not supported with this model"}}),
    ],
)
def test_a_server_without_log_probabilities_says_what_needs_none(reply: httpx2.Response) -> None:
    server = FakeVllm([on("/v1/chat/completions", lambda _: reply)], owned_by="openai")
    with pytest.raises(NoLogprobsError, match=r"vllm serve MODEL.*pairwise-cot"):
        ask_one(server, CHOICES)


# --- scores ---


@pytest.mark.parametrize("text", ["Yes", "Not sure", "It is good.", " Yes", "ab a b"])
def test_a_score_sums_exactly_the_texts_tokens(text: str) -> None:
    expected = TextLogprob(pytest.approx(total(OPEN, text)), len(tokenize(text)), len(tokenize(OPEN)))
    assert ask_one(FakeVllm(), ScoreRequest(ASK, text)) == expected


def test_an_empty_text_has_no_score() -> None:
    with pytest.raises(ReplyError, match="empty_text"):
        ask_one(FakeVllm(), ScoreRequest(ASK, ""))


@pytest.mark.parametrize("server", [FakeVllm(owned_by="openai"), FakeVllm([on("/tokenize", lambda _: httpx2.Response(404))])])
def test_a_score_needs_vllm(server: FakeVllm) -> None:
    with pytest.raises(ModelError, match="likelihood"):
        ask_one(server, ScoreRequest(ASK, "Yes"))


def test_log_probabilities_of_other_tokens_are_malformed() -> None:
    rows = [None, *({"1": {"logprob": -1.0}} for _ in tokenize(f"{OPEN}Yes")[1:])]
    server = FakeVllm([on("/v1/completions", lambda _: httpx2.Response(200, json={"choices": [{"prompt_logprobs": rows}]}))])
    with pytest.raises(ReplyError, match="other tokens than were sent"):
        ask_one(server, ScoreRequest(ASK, "Yes"))


def test_too_few_log_probabilities_are_malformed() -> None:
    server = FakeVllm([on("/v1/completions", lambda _: httpx2.Response(200, json={"choices": [{"prompt_logprobs": [None]}]}))])
    with pytest.raises(ReplyError, match=r"log-probabilities of 1 tokens; \d+ were sent"):
        ask_one(server, ScoreRequest(ASK, "Yes"))


# --- trouble ---


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


def test_a_server_that_asks_for_a_very_long_wait_stops_the_run_and_the_wait_is_told(waits: list[float]) -> None:
    with pytest.raises(ModelError, match=r"limits how fast it is asked, and asks to wait \(Retry-After: 9999\)\. Lower model\.concurrency"):
        ask_one(always_chat(lambda: httpx2.Response(429, headers={"Retry-After": "9999"})), COMPLETE)
    assert waits == []


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
    b'{"error": {"message": "oops"}}',
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
    for number in ("NaN", "-Infinity", "null", '"low"', "[]"):
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
    ("status", "fix"),
    [
        (401, r"\$CAI_API_KEY is not set"),
        (403, "export CAI_API_KEY="),
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


# --- the key ---


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTHER_API_KEY", " sk-verysecret\n")
    caplog.set_level(logging.DEBUG)
    plain = connect(FakeVllm())
    server = FakeVllm()
    assert connect(server, api_key_env="OTHER_API_KEY") == plain
    assert {h["authorization"] for h in server.headers} == {"Bearer sk-verysecret"}
    for status in (400, 401, 404, 429, 500, 200):
        with pytest.raises(ModelError) as e:
            ask_one(always_chat(lambda s=status: httpx2.Response(s, text="bad key sk-verysecret")), COMPLETE, api_key_env="OTHER_API_KEY")
        assert "sk-verysecret" not in f"{e.value!r} {e.value} {e.value.__dict__}"
        assert "***" in str(e.value)
    assert "sk-verysecret" not in caplog.text


def test_without_a_key_no_header_is_sent_nor_anything_meant_for_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAI_API_KEY", raising=False)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret-of-another")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.test/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer secret-of-another")
    server = FakeVllm()
    ask_one(server, COMPLETE)
    assert len(server.headers) == 3 and {h["host"] for h in server.headers} == {"fake.test:8000"}
    assert not any("authorization" in h or "secret-of-another" in str(h.raw) for h in server.headers)


def test_a_key_in_a_servers_words_is_cut_out_of_replies_and_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-verysecret")
    for message, finish in (
        ({"content": {"x": "sk-verysecret" * 1000}}, "stop"),
        ({"content": None, "refusal": "sk-verysecret" * 1000}, "stop"),
    ):
        with pytest.raises(ReplyError) as e:
            ask_one(always_chat(lambda m=message, f=finish: chat(m, f)), COMPLETE)
        assert "sk-verysecret" not in str(e.value) and "***" in str(e.value) and len(str(e.value)) < 600
    assert "sk-verysecret" not in connect(FakeVllm(id="toy-sk-verysecret"))[0]


@pytest.mark.attack
def test_a_key_that_a_server_echoes_is_cut_out_of_texts_however_it_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-/very-secret")
    escaped = "".join(f"\\u{ord(c):04X}" for c in "sk-/very-secret")
    for spelled in ("sk-/very-secret", "sk-\\/very-secret", escaped):
        body = json.dumps({"choices": [{"message": {"content": "KEY", "reasoning": "KEY"}, "finish_reason": "stop"}]}).replace(
            "KEY", spelled
        )
        reply = ask_one(always_chat(lambda body=body: httpx2.Response(200, content=body)), COMPLETE)
        assert isinstance(reply, Completion) and (reply.text, reply.reasoning) == ("***", "***")
    monkeypatch.setenv("CAI_API_KEY", "EMPTY")  # a placeholder, as local servers want one
    assert ask_one(always_chat(lambda: chat({"content": "EMPTY"})), COMPLETE).text == "EMPTY"


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
    assert e.value.reason == "malformed_reply"


@pytest.mark.attack
def test_a_reply_that_was_packed_unasked_is_read() -> None:
    body = json.dumps({"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}).encode()
    server = always_chat(lambda: httpx2.Response(200, headers={"content-encoding": "gzip"}, stream=httpx2.ByteStream(gzip.compress(body))))
    assert ask_one(server, COMPLETE).text == "fine"
    assert {h["accept-encoding"] for h in server.headers} == {"identity"}


@pytest.mark.attack
def test_a_key_goes_only_to_the_host_it_was_first_used_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(path: str, variable: str) -> str:
        server = FakeVllm()
        asyncio.run(ServerEngine.connect(ModelSpec(path=path, api_key_env=variable), server.transport))
        return str(server.headers[0].get("authorization"))

    for name in ("CAI_API_KEY", "B_API_KEY", "PATH_TO_SECRET"):
        monkeypatch.setenv(name, "sk-verysecret")
    assert asked("http://127.0.0.1:1/v1", "CAI_API_KEY") == "Bearer sk-verysecret"  # this machine is no host to remember
    assert asked("https://a.test/v1", "CAI_API_KEY") == asked("https://a.test:8000/v1", "CAI_API_KEY") == "Bearer sk-verysecret"
    assert asked("https://b.test/v1", "B_API_KEY") == "Bearer sk-verysecret"
    for path in ("https://b.test/v1", "http://a.test/v1"):
        with pytest.raises(ModelError, match=r"CAI_API_KEY was first used with https://a\.test and would now be sent to .*CAI_KEY_HOSTS="):
            asked(path, "CAI_API_KEY")
    for path in ("https://a.test/v1", "http://127.0.0.1:1/v1"):
        with pytest.raises(ModelError, match=r"Only variables named …_API_KEY"):
            asked(path, "PATH_TO_SECRET")
    monkeypatch.setenv("CAI_KEY_HOSTS", "CAI_API_KEY=b.test,PATH_TO_SECRET=127.0.0.1")
    assert asked("https://b.test/v1", "CAI_API_KEY") == asked("http://127.0.0.1:1/v1", "PATH_TO_SECRET") == "Bearer sk-verysecret"
    (config_dir() / "key_hosts.json").write_text("{")
    with pytest.raises(ModelError, match=r"key_hosts\.json: can't be read"):
        asked("https://a.test/v1", "CAI_API_KEY")


@pytest.mark.parametrize(("host", "through"), [("127.0.0.1", False), ("localhost", False), ("gpu-0.test", True)])
def test_a_server_on_this_machine_is_never_asked_through_a_proxy(host: str, through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def note(transport: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        asked.append("proxy" if proxied[id(transport)] else "direct")
        raise httpx2.ConnectError("no network")

    proxied: dict[int, bool] = {}
    plain = httpx2.AsyncHTTPTransport.__init__

    def make(transport: httpx2.AsyncHTTPTransport, *args: Any, **options: Any) -> None:
        proxied[id(transport)] = options.get("proxy") is not None
        plain(transport, *args, **options)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "__init__", make)
    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", note)
    for name in ("NO_PROXY", "no_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")

    async def run() -> None:
        await ServerEngine.connect(ModelSpec(path=f"http://{host}:8000/v1"))

    with pytest.raises(ModelError, match="can't reach"):
        asyncio.run(run())
    assert set(asked) == {"proxy" if through else "direct"}


def test_a_key_that_is_no_header_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "sk-vérysecret")
    with pytest.raises(ModelError, match=r"\$CAI_API_KEY") as e:
        connect(FakeVllm())
    assert "vérysecret" not in str(e.value)


def test_the_fake_is_a_distribution() -> None:
    ids = tokenize(OPEN)
    assert math.fsum(math.exp(logprob(ids, t)) for t in range(len(VOCAB))) == pytest.approx(1.0)


# --- streaming ---


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


def events(*deltas: dict[str, Any], finish: str | None = "stop") -> httpx2.Response:
    chunks = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": None}]
    lines = "".join(f"data: {json.dumps(c)}\n\n" for c in chunks)
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=lines + "data: [DONE]\n\n")


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
    assert (reply.text, reply.reasoning, pieces[0]) == ("***!", "***", "***"), "what is kept has no part of it, however it is cut"


def test_streamed_reasoning_is_set_apart() -> None:
    reply, pieces = stream(always_chat(lambda: events({"reasoning_content": "Hm."}, {"content": "Yes."})))
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
    ],
)
def test_a_stream_that_fails_says_why(response: Callable[[], httpx2.Response], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        stream(always_chat(response))
