"""The server engine against a real vLLM, named by the environment variable CAI_TEST_SERVER (see docs/servers.md)."""

import asyncio
import math
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cai.errors import ReplyError
from cai.models.base import ChoicesRequest, CompleteRequest, Sampling, ScoreRequest
from cai.models.server import ServerEngine
from cai.recipe import ModelSpec
from cai.records import Message

URL = os.environ.get("CAI_TEST_SERVER", "")
pytestmark = [
    pytest.mark.server,
    pytest.mark.enable_socket,
    pytest.mark.skipif(not URL, reason="set CAI_TEST_SERVER=http://127.0.0.1:8000/v1 to a running vLLM server"),
]
ASK = (Message("user", "Is Paris in France? Answer Yes or No."),)
SAMPLING = Sampling(max_tokens=24)


def against_server(work: Callable[[ServerEngine], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        engine = await ServerEngine.connect(ModelSpec(path=URL))
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def submit(*requests: Any) -> list[Any]:
    async def work(engine: ServerEngine) -> list[Any]:
        return await asyncio.gather(*(engine.submit(r) for r in requests), return_exceptions=True)

    return against_server(work)  # type: ignore[no-any-return]


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    first = submit(*(CompleteRequest(ASK, SAMPLING, seed) for seed in (1, 2, 3)))
    again = submit(*(CompleteRequest(ASK, SAMPLING, seed) for seed in (3, 1, 2)))
    assert [first[2], first[0], first[1]] == again
    assert len({reply.text for reply in first}) == 3
    assert all(0 < reply.completion_tokens <= 24 for reply in first)


def test_a_completion_continues_its_prefill() -> None:
    (reply,) = submit(CompleteRequest(ASK, Sampling(max_tokens=4, temperature=0.0), 0, prefill="One, two, three, four,"))
    assert reply.text.lstrip().startswith("five")
    assert reply.truncated


@pytest.mark.parametrize("prefill", ["", "Answer:"])
def test_choices_agree_with_scores_of_the_same_words(prefill: str) -> None:
    words = ("Yes", "No", "I don't know", "Yes, it is")
    requests = [ChoicesRequest(ASK, words, prefill), *(ScoreRequest(ASK, prefill + word) for word in words)]
    if prefill:
        requests.append(ScoreRequest(ASK, prefill))
    choices, *scores = submit(*requests)
    before = scores.pop().total if prefill else 0.0
    # Two ways through the model in bfloat16: one reads the prefix cache, one doesn't.
    assert list(choices.logprobs) == pytest.approx([s.total - before for s in scores], abs=0.25)
    assert sum(math.exp(v) for v in choices.logprobs[:3]) < 1.01


def test_a_choice_the_server_would_never_list_still_has_its_probability() -> None:
    (reply,) = submit(ChoicesRequest(ASK, ("Zebra", "qqqq")))
    assert all(-200 < value < -5 for value in reply.logprobs)


def test_a_likely_answer_scores_above_an_unlikely_one() -> None:
    good, bad = submit(ScoreRequest(ASK, "Yes, Paris is in France."), ScoreRequest(ASK, "Yes, Paris eats loud France of."))
    assert good.total / good.tokens > bad.total / bad.tokens
    assert good.tokens >= 6


def test_a_prompt_that_is_too_long_is_this_items_failure() -> None:
    long = (Message("user", "word " * 20000),)
    for error in submit(CompleteRequest(long, SAMPLING, 0), ChoicesRequest(long, ("Yes", "No")), ScoreRequest(long, "Yes")):
        assert isinstance(error, ReplyError)
        assert error.reason == "prompt_too_long", error


def test_a_reconnected_engine_has_the_same_fingerprint() -> None:
    async def fingerprint(engine: ServerEngine) -> str:
        return engine.fingerprint

    assert against_server(fingerprint) == against_server(fingerprint)
