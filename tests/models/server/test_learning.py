"""Servers that refuse a request's turns in words of their own: what they take is found by trial."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import pytest

from cai.errors import ReplyError
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, Request, Sampling, ScoreRequest, TextLogprob
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec
from cai.records import Message
from tests.models.fake_vllm import FakeVllm, Hook, render, total
from tests.models.server.asking import ASK, CHOICES, COMPLETE, OPEN, URL, ask, ask_one, chat, connect, stream

CHAT = "/v1/chat/completions"
BEGUN = CompleteRequest((Message("user", "Is it?"),), Sampling(16), 0, prefill="Well,")
PREFILL_REFUSALS = (
    "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant",
    "The conversation must end with a user message.",
    "Last message must have role 'user'",
    "Cannot have 2 or more assistant messages at the end of the list.",
)
SYSTEM_REFUSALS = (
    "System role not supported",
    "Only user, assistant and tool roles are supported!",
    "messages.0.role: Input should be 'user' or 'assistant'",
    "chat template raised: x",
)


def refusing(said: str, when: Callable[[list[str], Any], bool], status: int = 400) -> Hook:
    """Refuse conversations by their roles, wherever they are sent."""

    def hook(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        roles = [m["role"] for m in (body or {}).get("messages", ())]
        return httpx2.Response(status, json={"error": {"message": said}}) if roles and when(roles, body) else None

    return hook


def begun(roles: Sequence[str], body: Any) -> bool:
    return roles[-1] == "assistant"


def with_system(roles: Sequence[str], body: Any) -> bool:
    return "system" in roles


def in_turn(server: FakeVllm, *requests: Request) -> list[Any]:
    """Submit requests one after the other, and return replies and errors."""

    async def run() -> list[Any]:
        engine = await ServerEngine.connect(ModelSpec(path=URL), server.transport)
        try:
            return [(await asyncio.gather(engine.submit(r), return_exceptions=True))[0] for r in requests]
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize("said", PREFILL_REFUSALS)
@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp"])
def test_a_begun_answer_that_is_refused_is_asked_for_in_words(owner: str, said: str) -> None:
    server = FakeVllm([refusing(said, begun)], owned_by=owner)
    assert all(isinstance(reply, Completion) for reply in in_turn(server, BEGUN, BEGUN))
    asked = server.bodies(CHAT)
    assert len(asked) == 3, "it is refused once"
    assert asked[-1]["messages"][-1]["content"].endswith("Well,") and "continue_final_message" not in asked[-1]


def test_a_begun_answer_that_is_refused_to_a_stream_is_asked_for_in_words() -> None:
    pieces = 'data: {"choices": [{"delta": {"content": "Yes."}}]}\n\ndata: [DONE]\n\n'
    event = httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=pieces)
    server = FakeVllm([refusing("no", begun), lambda request, _: event if request.url.path == CHAT else None])
    assert stream(server, request=BEGUN)[0].text == "Yes."


@pytest.mark.parametrize("prefill", ["", "Answer:"])
def test_a_vllm_that_tokenizes_no_begun_answer_is_asked_for_the_words_tokens_alone(prefill: str) -> None:
    server = FakeVllm([refusing(PREFILL_REFUSALS[0], begun)])
    choices, score = in_turn(server, ChoicesRequest(ASK, ("Yes", "Not sure"), prefill), ScoreRequest(ASK, "Not sure"))
    assert isinstance(choices, ChoiceLogprobs) and isinstance(score, TextLogprob)
    assert choices.logprobs == pytest.approx([total(OPEN + prefill, c) for c in ("Yes", "Not sure")])
    assert score.total == pytest.approx(total(OPEN, "Not sure"))


@pytest.mark.parametrize(("said", "status"), list(zip(SYSTEM_REFUSALS, (400, 400, 422, 400), strict=True)))
@pytest.mark.parametrize("owner", ["vllm", "llamacpp", "someone"])
def test_a_system_turn_that_is_refused_is_told_in_the_first_user_turn(owner: str, said: str, status: int) -> None:
    def applies(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        if request.url.path != "/apply-template":
            return None
        return httpx2.Response(200, json={"prompt": render(body["messages"], open_end=False)})

    server = FakeVllm([refusing(said, with_system, status), applies], owned_by=owner)
    replies = in_turn(server, COMPLETE, COMPLETE, CHOICES)
    assert isinstance(replies[0], Completion) and getattr(replies[2], "reason", "choice_not_likely") == "choice_not_likely"
    assert [m["content"] for m in server.bodies(CHAT)[1]["messages"]] == ["Be good.\n\nIs it?"]
    assert sum("system" in str(body) for body in server.bodies(CHAT)) == 1
    if owner != "someone":
        assert connect(server)[1] != connect(FakeVllm([refusing(said, lambda *_: True)], owned_by=owner))[1], "the template is in it"


@pytest.mark.parametrize(("owner", "path"), [("vllm", "/tokenize"), ("llamacpp", "/apply-template")])
def test_a_template_that_cannot_be_asked_for_is_done_without(owner: str, path: str) -> None:
    refusal = httpx2.Response(400, json={"error": {"message": "chat template raised: x"}})
    server = FakeVllm([lambda request, _: refusal if request.url.path == path else None], owned_by=owner)
    assert isinstance(ask_one(server, COMPLETE), Completion)


def test_system_and_begun_turns_may_both_be_refused() -> None:
    server = FakeVllm([refusing("bad turns", lambda roles, _: roles != ["user"])], owned_by="sglang")
    request = CompleteRequest(ASK, Sampling(16), 0, prefill="Well,")
    assert all(isinstance(reply, Completion) for reply in in_turn(server, request, request))
    assert len(server.bodies(CHAT)) == 5, "as it is, three trials, and the second request"


def test_turns_that_must_alternate_are_joined_and_the_system_turn_is_kept() -> None:
    said = "After the optional system message, conversation roles must alternate user/assistant/user/assistant/..."
    same = lambda roles, _: any(a == b for a, b in itertools.pairwise(roles))  # noqa: E731
    turns = (Message("system", "Be brief."), Message("user", "One."), Message("user", "Two."))
    server = FakeVllm([refusing(said, same)], owned_by="someone")
    assert isinstance(ask_one(server, CompleteRequest(turns, Sampling(16), 0)), Completion)
    joined = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One.\n\nTwo."}]
    assert [body["messages"] for body in server.bodies(CHAT)[1:]] == [joined]


def test_a_trial_that_is_not_answered_changes_nothing() -> None:
    def refuse(roles: Sequence[str], body: Any) -> bool:
        return body["seed"] == 7

    again = CompleteRequest(ASK, Sampling(16), seed=1)
    server = FakeVllm([refusing("not this one", refuse)], owned_by="someone")
    refused, answered = in_turn(server, COMPLETE, again)
    assert isinstance(refused, ReplyError) and refused.detail == "400: not this one"
    assert isinstance(answered, Completion) and server.bodies(CHAT)[-1]["messages"][0]["role"] == "system"


def test_turns_that_were_taken_before_are_not_what_a_server_refuses() -> None:
    """A filter that refuses a prompt might let it pass in another form, and then no request would have its system turn."""
    filtered = refusing("the prompt was filtered", lambda roles, body: body["seed"] == 8 and "system" in roles)
    server = FakeVllm([filtered], owned_by="someone")
    replies = in_turn(server, COMPLETE, CompleteRequest(ASK, Sampling(16), seed=8))
    assert isinstance(replies[0], Completion) and isinstance(replies[1], ReplyError)
    assert len(server.bodies(CHAT)) == 2


def test_requests_that_are_refused_together_wait_for_one_trial() -> None:
    server = FakeVllm([refusing("bad turns", begun)], owned_by="sglang")
    requests = [CompleteRequest((Message("user", str(i)),), Sampling(16), i, prefill="Well,") for i in range(8)]
    assert all(isinstance(reply, Completion) for reply in ask(server, *requests))
    assert sum(begun([m["role"] for m in body["messages"]], body) for body in server.bodies(CHAT)) <= 8
    assert len(server.bodies(CHAT)) <= 16


def test_a_trial_that_the_server_answers_with_nothing_is_the_items_failure() -> None:
    empty = lambda request, _: chat({"content": ""}) if request.url.path == CHAT else None  # noqa: E731
    with pytest.raises(ReplyError, match="empty_reply"):
        ask_one(FakeVllm([refusing("bad turns", begun), empty], owned_by="sglang"), BEGUN)


JINJA = (
    '\n------------\nWhile executing CallExpression at line 19, column 27 in source:\n...% 2 == 0) -%}↵  {{ raise_exception("Conve...\n'
    + " " * 300
    + "^\nError: Jinja Exception: Conversation roles must alternate user/assistant/user/assistant/..."
)


@pytest.mark.parametrize(
    ("said", "status", "when"),
    [
        ("Assistant response prefill is incompatible with enable_thinking.", 500, begun),
        ("Assistant response prefill is incompatible with enable_thinking.", 501, begun),
        ("Cannot have 2 or more assistant messages at the end of the list.", 500, begun),
        ("Jinja Exception: System role not supported", 500, with_system),
        (JINJA, 500, with_system),
    ],
)
@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_a_500_that_says_what_it_does_not_take_is_a_refusal(said: str, status: int, when: Any, owner: str, waits: list[float]) -> None:
    server = FakeVllm([refusing(said, when, status)], owned_by=owner)
    request = CompleteRequest(ASK, Sampling(16), 0, prefill="Well,")
    assert all(isinstance(reply, Completion) for reply in in_turn(server, request, request))
    assert len(waits) <= 6, "each form is asked for twice, because a 500 may pass"


def test_a_500_that_refuses_what_cannot_be_left_out_is_this_items_failure_in_its_words() -> None:
    with pytest.raises(ReplyError, match=r"refused_by_server: 500: Jinja Exception: Conversation roles must alternate"):
        ask_one(FakeVllm([refusing(JINJA, lambda *_: True, 500)], owned_by="someone"), COMPLETE)
    with pytest.raises(ReplyError, match=r"prompt_too_long: 500: the request exceeds the available context size"):
        ask_one(FakeVllm([refusing("the request exceeds the available context size", lambda *_: True, 500)], owned_by="someone"), COMPLETE)


def test_a_500_that_names_a_feature_and_passes_is_waited_out(waits: list[float]) -> None:
    once = iter([True])
    server = FakeVllm([refusing("template cache: unexpected state", lambda *_: next(once, False), 500)], owned_by="someone")
    assert isinstance(ask_one(server, COMPLETE), Completion)
    assert len(waits) == 1 and len(server.bodies(CHAT)[0]["messages"]) == 2


def test_a_500_that_refuses_a_stream_is_a_refusal() -> None:
    pieces = 'data: {"choices": [{"delta": {"content": "Yes."}}]}\n\ndata: [DONE]\n\n'
    event = httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=pieces)
    refused = refusing("Assistant response prefill is incompatible with enable_thinking.", begun, 500)
    server = FakeVllm([refused, lambda request, _: event if request.url.path == CHAT else None])
    assert stream(server, request=BEGUN)[0].text == "Yes."
