"""Completions: what the engine asks, what it reads, and how it follows a server that wants to be asked otherwise."""

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from cai.errors import ModelError, ReplyError
from cai.models.requests import ChoiceLogprobs, CompleteRequest, Completion, Sampling
from cai.models.server.capabilities import learned_from, of_owner
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec
from cai.records import Message
from tests.models.fake_vllm import VOCAB, FakeVllm, logprob, tokenize
from tests.models.server.asking import ASK, CHOICES, COMPLETE, OPEN, URL, always_chat, ask, ask_one, chat, connect, hosted, llamacpp, on


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


def test_a_server_gets_the_sum_of_the_limits_and_a_cut_answer_is_truncated() -> None:
    thinking = replace(COMPLETE, sampling=replace(COMPLETE.sampling, thinking_tokens=100))
    server = always_chat(lambda: chat({"content": "<think>Hm.</think>Yes, and"}, "length"))
    reply = ask_one(server, thinking)
    assert server.bodies("/v1/chat/completions")[0]["max_tokens"] == 116
    assert isinstance(reply, Completion) and (reply.text, reply.reasoning, reply.truncated) == ("Yes, and", "Hm.", True)
    with pytest.raises(ReplyError, match="raise thinking_tokens"):
        ask_one(always_chat(lambda: chat({"content": "<think>Hm. And", "role": "assistant"}, "length")), thinking)


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
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}, "Yes, ", {"type": "output_text", "text": "so."}],
        "<think>\nIs it? The policy says so.\n</think>\n\nYes, so.",
        "Is it? The policy says so.\n</think>\n\nYes, so.",
        "[THINK]Is it?[/THINK]Yes, so.",
        "Yes, so.",
        {"type": "text", "text": "Yes, so."},
        ["Yes, so."],
    ],
)
def test_the_answer_is_what_is_not_reasoning(content: Any) -> None:
    reply = ask_one(always_chat(lambda: chat({"content": content})), COMPLETE)
    assert isinstance(reply, Completion) and (reply.text, reply.truncated) == ("Yes, so.", False)
    assert bool(reply.reasoning) == any(thought in str(content) for thought in ("Is it?", "Hm."))


@pytest.mark.parametrize(
    "beside",
    [
        {"reasoning": "Hm."},
        {"reasoning_content": "Hm."},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "Hm."}, {"type": "reasoning.encrypted", "data": "xx"}]},
    ],
)
def test_reasoning_beside_the_answer_is_kept(beside: dict[str, Any]) -> None:
    assert ask_one(always_chat(lambda: chat({"content": "Yes."} | beside)), COMPLETE) == Completion("Yes.", False, 0, 0, "Hm.")


def test_a_call_of_a_tool_is_no_text_and_told() -> None:
    called = {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    with pytest.raises(ReplyError, match="empty_reply: no text came back: the model called a tool"):
        ask_one(always_chat(lambda: chat(called, "tool_calls")), COMPLETE)


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


@pytest.mark.parametrize("opens", ["", "<think>\n"])
def test_what_an_answer_begins_with_is_taken_off_the_reply_of_llama_cpp_which_repeats_it(opens: str) -> None:
    server = llamacpp(" Paris.", opens)
    reply = ask_one(server, CompleteRequest(ASK, Sampling(), 0, prefill="The capital is"))
    assert isinstance(reply, Completion) and (reply.text, reply.reasoning) == (" Paris.", "")
    (body,) = server.bodies("/v1/chat/completions")
    assert body["messages"][-1]["content"] == ("\n</think>\n\n" if opens else "") + "The capital is"


def test_a_reasoning_that_the_template_of_llama_cpp_opens_and_the_limit_cuts_is_no_answer() -> None:
    with pytest.raises(ReplyError, match="raise thinking_tokens"):
        ask_one(llamacpp("The user asks for a capital, so", "<think>\n", "length"), COMPLETE)
    reply = ask_one(llamacpp("A capital.\n</think>\n\nParis.", "<think>\n"), COMPLETE)
    assert isinstance(reply, Completion) and (reply.text, reply.reasoning) == ("Paris.", "A capital.")


@pytest.mark.parametrize(
    ("owner", "said", "after"),
    [
        ("llamacpp", "Assistant response prefill is incompatible with enable_thinking.", lambda b: b["messages"][-1]["role"] == "user"),
        ("sglang", "Unrecognized request argument supplied: continue_final_message", lambda b: "continue_final_message" not in b),
        ("openai", "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", lambda b: "max_tokens" not in b),
        ("openai", "Unsupported parameter: 'seed' is not supported with this model.", lambda b: "seed" not in b),
        ("mistral", '[{"type":"extra_forbidden","loc":["body","seed"],"msg":"Extra inputs are not permitted"}]', lambda b: "seed" not in b),
        ("openai", "Unsupported value: 'temperature' does not support 1.0; only the default (1).", lambda b: "temperature" not in b),
        ("claude", "`temperature` and `top_p` cannot both be specified. Please use only one.", lambda b: "top_p" not in b),
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
    assert len(server.bodies("/v1/chat/completions")) == 3, "as it says, and without the system turn"


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
    [
        "top_logprobs must be at most 5",
        "20 is greater than the maximum of 5 - 'top_logprobs'",
        "Expected 0 <= top_logprobs <= 5, got 20",
        "Requested 20 logprobs, but the maximum allowed is 5",
        "Requested sample logprobs of 20, which is greater than max allowed: 5",
        "top_logprobs must be between 1 and 5",
    ],
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


def test_the_fake_is_a_distribution() -> None:
    ids = tokenize(OPEN)
    assert math.fsum(math.exp(logprob(ids, t)) for t in range(len(VOCAB))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("Boil it.<|im_end|>", "Boil it."),
        ("Boil it.\n<|eot_id|><|eot_id|>\n", "Boil it."),
        ("Koche es.</s>", "Koche es."),
        ("ChatML ends with <|im_end|>", "ChatML ends with <|im_end|>"),
        ("It is `<|im_end|>`", "It is `<|im_end|>`"),
        ("Write: </s>", "Write: </s>"),
        ("<|im_end|> ends a turn.", "<|im_end|> ends a turn."),
    ],
)
def test_a_token_that_ended_the_turn_is_no_part_of_the_text_and_one_that_is_spoken_of_is(said: str, text: str) -> None:
    reply = ask_one(always_chat(lambda: chat({"content": said})), COMPLETE)
    assert isinstance(reply, Completion) and reply.text == text


def test_granites_reasoning_that_the_limit_cut_is_no_answer() -> None:
    said = "Here is my thought process: the user wants"
    with pytest.raises(ReplyError, match="empty_reply"):
        ask_one(always_chat(lambda: chat({"content": said}, finish="length")), COMPLETE)
    assert ask_one(always_chat(lambda: chat({"content": said})), COMPLETE).text == said  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("written", "text"), [(r"Half \ud83d", "Half \ufffd"), (r"\ude00 back", "\ufffd back"), (r"Whole \ud83d\ude00", "Whole 😀")]
)
def test_half_a_character_is_replaced_because_no_file_can_hold_it(written: str, text: str) -> None:
    for field in ("content", "reasoning"):
        other = "reasoning" if field == "content" else "content"
        body = f'{{"choices": [{{"message": {{"{field}": "{written}", "{other}": "Fine."}}, "finish_reason": "stop"}}]}}'
        reply = ask_one(always_chat(lambda b=body: httpx2.Response(200, content=b.encode())), COMPLETE)  # type: ignore[misc]
        assert isinstance(reply, Completion) and (reply.text if field == "content" else reply.reasoning) == text
