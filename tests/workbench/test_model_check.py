"""`cai models check`: what a server says of itself, what it can serve, and its own words where it can't."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from cai.cli.app import app
from cai.errors import ModelError
from cai.models.base import Engine
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec, Recipe
from cai.session import Session
from cai.workbench.model_check import Finding, ModelCheck, check_model
from tests.models.fake_vllm import FakeVllm, Hook
from tests.models.server.asking import URL

CHAT = "/v1/chat/completions"


def checked(server: FakeVllm, **spec: Any) -> ModelCheck:
    """Return what the check finds of a fake server."""

    async def opener(spec: ModelSpec) -> Engine:
        return await ServerEngine.connect(spec, server.transport)

    session = Session(recipe=Recipe(name="check", model=ModelSpec(path=URL, **spec)), keep_calls=False, opener=opener)
    return session.run(lambda opened: check_model(opened, session.recipe.model), "check", open_models=False)


def refusing(said: str, when: Callable[[Any], bool]) -> Hook:
    """Refuse chat requests in a server's words."""
    refusal = httpx2.Response(400, json={"error": {"message": said}})
    return lambda request, body: refusal if request.url.path == CHAT and when(body) else None


def states(findings: tuple[Finding, ...]) -> dict[str, str]:
    return {f.what: f.state for f in findings}


def test_a_vllm_server_serves_every_protocol() -> None:
    found = checked(FakeVllm())
    assert found.kind == "vLLM"
    assert set(states(found.protocols)) == {"likelihood", "pairwise", "pairwise-cot", "pointwise", "pointwise-contrast", "probe", "rubric"}
    assert states(found.protocols)["probe"] == "no"
    assert "only a model on this machine does" in next(f.why for f in found.protocols if f.what == "probe")
    assert states(found.protocols)["likelihood"] == "yes"
    assert states(found.abilities)["log-probabilities of choices"] == "yes"


def test_refusals_are_told_in_the_servers_words() -> None:
    no_system = refusing("System role not supported", lambda b: any(m["role"] == "system" for m in b["messages"]))
    found = checked(FakeVllm([no_system, refusing("logprobs are not available here", lambda b: "logprobs" in b)], owned_by="openai"))
    abilities = {f.what: f for f in found.abilities}
    assert abilities["system turn"].state == "degraded" and "400: System role not supported" in abilities["system turn"].why
    assert abilities["continues a begun answer"].state == "degraded"
    assert abilities["log-probabilities of choices"].state == "no"
    assert "logprobs are not available here" in abilities["log-probabilities of choices"].why
    assert states(found.protocols)["pointwise"] == states(found.protocols)["likelihood"] == "no"
    assert "logprobs are not available here" in next(f.why for f in found.protocols if f.what == "pointwise")


def test_fields_that_are_refused_are_named() -> None:
    found = checked(FakeVllm([refusing("Unsupported parameter: 'seed'", lambda b: "seed" in b)], owned_by="someone"))
    assert "someone" in found.kind and "without seed" in found.kind


@pytest.mark.parametrize(
    ("texts", "state"),
    [(lambda n, seed: f"answer {n}", "degraded"), (lambda n, seed: "one", "degraded"), (lambda n, seed: f"{seed}", "yes")],
)
def test_whether_seeds_repeat_is_seen(texts: Callable[[int, int], str], state: str) -> None:
    asked = []

    def answer(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        if request.url.path != CHAT or "logprobs" in body:
            return None
        asked.append(body)
        message = {"content": texts(len(asked), body["seed"])}
        return httpx2.Response(200, json={"choices": [{"message": message, "finish_reason": "stop"}]})

    assert states(checked(FakeVllm([answer])).abilities)["repeats an answer by its seed"] == state


def test_a_server_that_answers_nothing_is_an_error_in_its_words() -> None:
    with pytest.raises(ModelError, match="the model is still loading"):
        checked(FakeVllm([refusing("the model is still loading", lambda b: True)]))


def test_the_command_prints_a_table_or_json() -> None:
    done = CliRunner().invoke(app, ["models", "check", "scripted#x", "--json"])
    assert done.exit_code == 0
    assert {f["state"] for f in json.loads(done.stdout)["protocols"]} <= {"yes", "degraded"}
    assert "pairwise-cot" in CliRunner().invoke(app, ["models", "check", "scripted#x"]).stdout


def test_named_models_are_listed() -> None:
    listed = json.loads(CliRunner().invoke(app, ["models", "list", "--json"]).stdout)["models"]
    assert {m["name"] for m in listed} == {"qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"}
    assert all(m["licence"] and m["good_for"] for m in listed)
    assert "embedded" in CliRunner().invoke(app, ["models"]).stdout


def test_one_empty_answer_is_chance_and_four_are_told() -> None:
    empty = httpx2.Response(200, json={"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]})

    def silent(seeds: tuple[int, ...]) -> FakeVllm:
        return FakeVllm([lambda request, body: empty if request.url.path == CHAT and body.get("seed") in seeds else None])

    assert states(checked(silent((1,))).abilities)["log-probabilities of choices"] == "yes"
    with pytest.raises(ModelError, match="no text came back"):
        checked(silent((1, 2, 3)))


def test_a_model_that_thinks_longer_than_an_answer_is_given_room_for_it() -> None:
    def think(request: httpx2.Request, body: Any) -> httpx2.Response | None:
        if request.url.path != CHAT or body.get("logprobs"):
            return None
        room = body["max_tokens"] > 500
        message, ended = ("<think>It is blue.</think>The sea is blue.", "stop") if room else ("<think>It is", "length")
        return httpx2.Response(200, json={"choices": [{"message": {"content": message}, "finish_reason": ended}]})

    found = checked(FakeVllm([think]))
    assert states(found.abilities)["answers at once"] == "degraded"
    assert states(found.abilities)["system turn"] == states(found.abilities)["continues a begun answer"] == "yes"
