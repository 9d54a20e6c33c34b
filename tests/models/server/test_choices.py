"""Probabilities of choices, and scores of texts."""

import asyncio
import math
from typing import Any

import httpx2
import pytest

from cai.errors import ModelError, NoLogprobsError, ReplyError
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, ScoreRequest, TextLogprob
from cai.models.server.replies import NO_PROBABILITY
from cai.records import Message
from tests.models.fake_vllm import FakeVllm, logprob, tokenize, total
from tests.models.server.asking import ASK, CHOICES, OPEN, ask, ask_one, hosted, llamacpp, on


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


def test_elsewhere_choices_are_found_by_their_exact_text() -> None:
    server = hosted(("Yes", -0.5), (" No", -1.5), ("Yesterday", -2.0), ("yes", -3.0))
    assert ask_one(server, CHOICES) == ChoiceLogprobs((-0.5, -1.5), 9, every_form=True)
    (body,) = server.bodies("/v1/chat/completions")
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 1.0)
    assert not server.bodies("/tokenize")


OLDER = {"tokens": ["Yes"], "token_logprobs": [-0.5], "top_logprobs": [{"Yes": -0.5, "No": -1.5}]}


def test_log_probabilities_in_the_older_form_are_read_and_asked_for() -> None:
    def answer(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        if request.url.path != "/v1/chat/completions":
            return None
        if body["logprobs"] is True:
            return httpx2.Response(400, json={"error": {"message": "logprobs must be an integer"}})
        return httpx2.Response(200, json={"choices": [{"message": {"content": "Yes"}, "logprobs": OLDER}]})

    server = FakeVllm([answer], owned_by="together")
    assert ask_one(server, CHOICES) == ChoiceLogprobs((-0.5, -1.5), 0, every_form=True)
    body = server.bodies("/v1/chat/completions")[-1]
    assert body["logprobs"] == 20 and "top_logprobs" not in body


def test_a_server_that_cannot_be_asked_for_one_token_is_asked_for_the_fewest() -> None:
    said = "Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead."
    server = hosted(("Yes", -0.5), ("No", -1.5))
    refusal = httpx2.Response(400, json={"error": {"message": said}})
    server.hooks.insert(0, lambda _, body: refusal if (body or {}).get("max_tokens") == 1 else None)
    assert isinstance(ask_one(server, CHOICES), ChoiceLogprobs)
    assert server.bodies("/v1/chat/completions")[-1]["max_tokens"] == 16


def test_a_vllm_that_lists_fewer_tokens_is_asked_for_as_many() -> None:
    refusal = httpx2.Response(400, json={"message": "Requested sample logprobs of 20, which is greater than max allowed: 5"})
    server = FakeVllm([lambda _, body: refusal if (body or {}).get("logprobs") == 20 else None])
    assert isinstance(ask_one(server, CHOICES), ChoiceLogprobs)
    assert server.bodies("/v1/completions")[-1]["logprobs"] == 5


def test_a_choice_is_summed_over_its_ways_to_be_written() -> None:
    reply = ask_one(hosted(("Yes", math.log(0.2)), (" Yes", math.log(0.3)), ("No", math.log(0.1)), ("**No", math.log(0.2))), CHOICES)
    assert isinstance(reply, ChoiceLogprobs)
    assert [math.exp(x) for x in reply.logprobs] == pytest.approx([0.5, 0.3])


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
    with pytest.raises(NoLogprobsError, match=r"reasons first.*reads a written verdict"):
        ask_one(hosted(("<think>", -0.001), ("Yes", -9.0)), CHOICES)


def test_choices_and_scores_follow_a_reasoning_that_the_template_opens_and_not_its_start() -> None:
    choices, score = ask(FakeVllm(opens="<think>\n"), CHOICES, ScoreRequest(ASK, "Yes"))
    assert choices.logprobs == pytest.approx([total(f"{OPEN}<think>\n\n</think>\n\n", c) for c in ("Yes", "No")])
    assert score.total == pytest.approx(choices.logprobs[0])


@pytest.mark.parametrize("prefill", ["", "Answer:"])
def test_llama_cpp_is_asked_for_choices_after_the_reasoning(prefill: str) -> None:
    server = llamacpp(opens="<think>\n")
    ask(server, ChoicesRequest(ASK, ("Yes", "No"), prefill))
    (body,) = server.bodies("/v1/chat/completions")
    assert body["messages"][-1] == {"role": "assistant", "content": f"\n</think>\n\n{prefill}"}


def test_llama_cpp_that_refuses_to_go_on_from_a_reasoning_gives_no_log_probabilities_of_choices() -> None:
    said = {"error": {"message": "Assistant response prefill is incompatible with enable_thinking."}}
    server = llamacpp(opens="<think>\n")
    server.hooks.insert(0, lambda request, body: httpx2.Response(400, json=said) if "logprobs" in (body or {}) else None)
    with pytest.raises(NoLogprobsError, match=r"reasons first.*reads a written verdict"):
        ask_one(server, CHOICES)


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
    with pytest.raises(NoLogprobsError, match=r"vllm serve MODEL.*written verdict"):
        ask_one(server, CHOICES)


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


NO_PROBABILITIES = ["null", "-Infinity", '"-inf"', "-9999.0", "-3.4028234663852886e+38"]


@pytest.mark.parametrize("zero", NO_PROBABILITIES)
def test_a_probability_of_zero_is_one_however_it_is_written(zero: str) -> None:
    """vLLM writes −9999, llama.cpp the lowest float, others null or −∞."""
    ids = [tokenize(c)[0] for c in ("Yes", "No")]
    for numbers, likelier in ((("-0.1", zero), 0), ((zero, "-0.1"), 1)):
        top = ", ".join(f'"token_id:{token}": {number}' for token, number in zip(ids, numbers, strict=True))
        content = f'{{"choices": [{{"logprobs": {{"top_logprobs": [{{{top}}}]}}}}]}}'.encode()
        reply = ask_one(FakeVllm([on("/v1/completions", lambda _, c=content: httpx2.Response(200, content=c))]), CHOICES)
        assert isinstance(reply, ChoiceLogprobs)
        assert reply.logprobs[likelier] == -0.1 and math.exp(reply.logprobs[1 - likelier]) == 0.0
        assert math.isfinite(sum(reply.logprobs)), "the call store's JSON has no infinity"


@pytest.mark.parametrize("zero", NO_PROBABILITIES)
def test_choices_of_no_probability_are_a_failure(zero: str) -> None:
    top = ", ".join(f'"token_id:{tokenize(c)[0]}": {zero}' for c in ("Yes", "No"))
    content = f'{{"choices": [{{"logprobs": {{"top_logprobs": [{{{top}}}]}}}}]}}'.encode()
    with pytest.raises(ReplyError, match="no_probability"):
        ask_one(FakeVllm([on("/v1/completions", lambda _: httpx2.Response(200, content=content))]), CHOICES)


@pytest.mark.parametrize("zero", NO_PROBABILITIES)
def test_a_listed_token_of_no_probability_has_none(zero: str) -> None:
    def says(*numbers: str) -> FakeVllm:
        top = ", ".join(f'{{"token": "{t}", "logprob": {n}}}' for t, n in zip(("Yes", "No", "Maybe"), numbers, strict=True))
        content = f'{{"choices": [{{"message": {{"content": "x"}}, "logprobs": {{"content": [{{"token": "Yes", "logprob": {numbers[0]}, '
        return FakeVllm([on("/v1/chat/completions", lambda _: httpx2.Response(200, content=f'{content}"top_logprobs": [{top}]}}]}}}}]}}'))])

    def asked(*numbers: str) -> Any:
        server = says(*numbers)
        server.cards[0]["owned_by"] = "someone"
        return ask_one(server, CHOICES)

    assert asked("-1.0", zero, "-2.0").logprobs == (-1.0, NO_PROBABILITY), "known to be none, however little is listed"
    assert asked(zero, "-1.0", "-2.0").logprobs == (NO_PROBABILITY, -1.0)
    with pytest.raises(ReplyError, match="choice_not_likely: 'Yes' or 'No' is not one of the 3 likeliest"):
        asked(zero, zero, "-0.1")
    with pytest.raises(ReplyError, match="choice_not_likely"):
        asked(zero, zero, zero)


@pytest.mark.parametrize("zero", NO_PROBABILITIES)
def test_a_text_with_a_token_of_no_probability_is_a_failure(zero: str) -> None:
    ids = tokenize(f"{OPEN}Yes")
    rows = ", ".join(["null", *(f'{{"{t}": {{"logprob": {zero}}}}}' for t in ids[1:])])
    content = f'{{"choices": [{{"prompt_logprobs": [{rows}]}}]}}'.encode()
    with pytest.raises(ReplyError, match="no_probability"):
        ask_one(FakeVllm([on("/v1/completions", lambda _: httpx2.Response(200, content=content))]), ScoreRequest(ASK, "Yes"))


@pytest.mark.parametrize("form", ["{} ", "{}\n", "\u0120{}", "\u2581{}", "\u0120{}\n"])
def test_white_space_about_a_token_makes_no_other_word_however_it_is_written(form: str) -> None:
    reply = ask_one(hosted((form.format("Yes"), math.log(0.6)), (form.format("No"), math.log(0.2)), ("No", math.log(0.1))), CHOICES)
    assert isinstance(reply, ChoiceLogprobs) and [math.exp(x) for x in reply.logprobs] == pytest.approx([0.6, 0.3])


@pytest.mark.parametrize("text", ["null", '"bytes:\\\\x59"'])
def test_a_token_that_is_given_as_bytes_is_read(text: str) -> None:
    top = ", ".join(f'{{"token": {text}, "bytes": {list(t.encode())}, "logprob": {n}}}' for t, n in (("Yes", -0.5), ("No", -1.5)))
    listed = f'{{"token": "Yes", "logprob": -0.5, "top_logprobs": [{top}]}}'
    content = f'{{"choices": [{{"message": {{"content": "x"}}, "logprobs": {{"content": [{listed}]}}}}]}}'
    server = FakeVllm([on("/v1/chat/completions", lambda _: httpx2.Response(200, content=content.encode()))], owned_by="someone")
    assert ask_one(server, CHOICES) == ChoiceLogprobs((-0.5, -1.5), 0, every_form=True)
