"""The server engine against a real vLLM: `make test-server` starts one; CAI_TEST_SERVER names any other (see docs/servers.md)."""

import asyncio
import json
import math
import os
import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cai.constitution.load import load_constitution
from cai.core.flow import run_items
from cai.errors import ReplyError
from cai.judge.judge import Judge
from cai.models.base import TextModel
from cai.models.local.engine import LocalEngine
from cai.models.requests import ChoicesRequest, CompleteRequest, Request, Sampling, ScoreRequest
from cai.models.server.engine import ServerEngine
from cai.models.store import CallStore
from cai.models.templates import load_templates
from cai.recipe import FeedbackConfig, ModelSpec
from cai.records import Message, Prompt, Provenance, ResponsePair
from tests.workspaces import ROOT

URL = os.environ.get("CAI_TEST_SERVER", "")
pytestmark = [
    pytest.mark.server,
    pytest.mark.enable_socket,
    pytest.mark.skipif(not URL, reason="no vLLM server: `make test-server` starts one (or set CAI_TEST_SERVER to its address)"),
]
ASK = (Message("user", "Is Paris in France? Answer Yes or No."),)
SAMPLING = Sampling(max_tokens=24)
ASKED, HIT = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
"""Prompt tokens that the server's prefix cache was asked for since its start, and those that it had."""
TOLERANCE_NATS = 0.02
"""Of float32, which `make test-server` serves in. In bfloat16 one prompt run in two ways differs by up to half a nat."""


class Recorder(httpx2.AsyncBaseTransport):
    """The network, with a note of what was asked at one address, in the order of sending."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.bodies: list[Any] = []
        self._network = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == self.path:
            self.bodies.append(json.loads(request.content))
        return await self._network.handle_async_request(request)

    async def aclose(self) -> None:
        await self._network.aclose()


def against_server(work: Callable[[ServerEngine], Coroutine[Any, Any, Any]], transport: Recorder | None = None, **spec: Any) -> Any:
    async def run() -> Any:
        engine = await ServerEngine.connect(ModelSpec(path=URL, **spec), transport)
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def submit(*requests: Request, **spec: Any) -> list[Any]:
    async def work(engine: ServerEngine) -> list[Any]:
        return await asyncio.gather(*(engine.submit(r) for r in requests), return_exceptions=True)

    return against_server(work, **spec)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    """Where the served model and its adapter lie on this disk, by name."""
    cards = httpx2.get(f"{URL}/models").json()["data"]
    found = {card["id"]: Path(card["root"]) for card in sorted(cards, key=lambda c: c["parent"] is not None)}
    if len(found) != 2 or not all(folder.is_dir() for folder in found.values()):
        pytest.skip(f"needs one model and one adapter out of folders here, as `make test-server` has; it serves {found}")
    return found


@pytest.fixture(scope="module")
def local(folders: dict[str, Path]) -> Iterator[dict[str | None, LocalEngine]]:
    """The same weights in this process: the model under None, the adapter on it under its name."""
    (_, model), (name, adapter) = folders.items()
    found = {None: None, name: str(adapter)}
    engines = {n: LocalEngine.load(ModelSpec(path=str(model), adapter=a, precision="float32")) for n, a in found.items()}
    yield engines
    for engine in engines.values():
        asyncio.run(engine.close())


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
    # Two ways through the model: one reads the prefix cache, one doesn't.
    assert list(choices.logprobs) == pytest.approx([s.total - before for s in scores], abs=TOLERANCE_NATS)
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


def test_seeds_are_each_requests_own_whatever_else_is_in_the_batch() -> None:
    """The same prompt many times with one seed and with many; alone and in a crowd."""
    story = (Message("user", "Tell me a short story."),)
    alone = submit(CompleteRequest(story, SAMPLING, 5))[0]
    crowd = submit(*(CompleteRequest(story, SAMPLING, seed) for seed in (5, 6, 5, 7, 5)))
    assert [crowd[i].text == alone.text for i in range(5)] == [True, False, True, False, True]
    assert crowd[1].text != crowd[3].text


LOCALLY = (
    ChoicesRequest(ASK, ("Yes", "No", "I don't know")),
    ChoicesRequest((Message("system", "You are a judge."), Message("user", "Is water dry?")), (" A", " B"), "Answer:"),
    ScoreRequest(ASK, "Yes, Paris is in France."),
    CompleteRequest(ASK, Sampling(max_tokens=24, temperature=0.0), 0),
)


@pytest.mark.parametrize("adapted", [False, True])
def test_answers_are_those_of_the_same_weights_in_this_process(local: dict[str | None, LocalEngine], adapted: bool) -> None:
    name = [*local][adapted]

    async def here() -> list[Any]:
        return await asyncio.gather(*map(local[name].submit, LOCALLY))

    ours, theirs = asyncio.run(here()), submit(*LOCALLY, adapter=name)
    for mine, served in zip(ours[:2], theirs[:2], strict=True):
        assert served.logprobs == pytest.approx(mine.logprobs, abs=TOLERANCE_NATS)
        assert served.prompt_tokens == mine.prompt_tokens
    assert theirs[2].total == pytest.approx(ours[2].total, abs=TOLERANCE_NATS)
    assert (theirs[2].tokens, theirs[2].prompt_tokens) == (ours[2].tokens, ours[2].prompt_tokens)
    assert (theirs[3].text, theirs[3].truncated) == (ours[3].text, ours[3].truncated)
    assert theirs[3].completion_tokens - ours[3].completion_tokens == (not ours[3].truncated), "vLLM counts the token that ends a turn"


def test_an_adapter_is_another_model(folders: dict[str, Path]) -> None:
    async def look(engine: ServerEngine) -> tuple[str, Any, Any]:
        sampled = CompleteRequest(ASK, SAMPLING, 1)
        return engine.fingerprint, await engine.submit(LOCALLY[0]), await engine.submit(sampled)

    (fingerprint, choices, said), adapted = against_server(look), against_server(look, adapter=[*folders][1])
    assert adapted[0] != fingerprint
    assert max(abs(a - b) for a, b in zip(adapted[1].logprobs, choices.logprobs, strict=True)) > 50 * TOLERANCE_NATS
    assert adapted[2].text != said.text


def test_a_judges_questions_about_one_text_come_together_and_share_it_on_the_server() -> None:
    """Some principles about a few pairs, through the real judge: what is sent when, and what the server's cache says of it."""
    start = "The committee met on a wet Tuesday and talked at length about the bridge, its cost, and whom it would serve. "
    texts = [f"Text {i} of the record. " + start * 12 + f"It closed at {i}." for i in range(8)]
    pairs = [
        ResponsePair(Prompt(f"p{i}", "helpful", (Message("user", f"Sum up item {i}."),), "test"), a, b, "sampled", Provenance("test"))
        for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]
    constitution = load_constitution(ROOT / "constitution" / "general.yaml")
    recorder = Recorder("/v1/completions")
    failures: list[Any] = []

    async def judge_all(engine: ServerEngine) -> None:
        model = TextModel(engine, CallStore(None), "feedback")
        config = FeedbackConfig(protocol="pointwise-contrast", principles="sample", per_label=2)
        judge = Judge(config, constitution, model, load_templates(ROOT / "prompts" / "templates"), 0)
        judged = run_items(pairs, judge, window=8, max_failure_fraction=0.0, stage="feedback", failures=failures)
        assert [j.failure async for j in judged] == [None] * 4

    before = metric(ASKED), metric(HIT)
    against_server(judge_all, recorder, concurrency=4)
    asked, hit = metric(ASKED) - before[0], metric(HIT) - before[1]
    prompts = [tuple(body["prompt"]) for body in recorder.bodies]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt[:100], []).append(i)
    assert [len(places) for places in groups.values()] == [4] * 8, "eight texts, two principles of two questions about each"
    shared = [shared_tokens([prompts[i] for i in places]) for places in groups.values()]
    assert min(shared) > 256, "the text stands before the question"
    # A pair's eight questions leave in one go, but for what is in flight; all pairs are in the window.
    assert max(places[-1] - places[0] for places in groups.values()) < 8 + 2 * 4
    # All but a text's first question find the text's whole blocks in the cache.
    block = block_tokens()
    assert asked == sum(map(len, prompts))
    assert hit >= sum(3 * (tokens // block * block) for tokens in shared) > 0.4 * asked


def shared_tokens(prompts: list[tuple[int, ...]]) -> int:
    """Return the length of the beginning that all prompts share."""
    return next((i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1), min(map(len, prompts)))


def metric(name: str) -> float:
    """Return the sum of a counter in the server's metrics."""
    text = httpx2.get(f"{URL.removesuffix('/v1')}/metrics").text
    found = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{")]
    assert found, f"{name} is not among the server's metrics"
    return sum(found)


def block_tokens() -> int:
    """Return the length of the whole blocks in which the server shares beginnings: on a GPU 16 by default, on a CPU 128."""
    text = httpx2.get(f"{URL.removesuffix('/v1')}/metrics").text
    found = re.search(r'vllm:cache_config_info\{.*\bblock_size="(\d+)"', text)
    assert found
    return int(found[1])
