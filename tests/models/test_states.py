"""Hidden states through the engine: those of a plain forward pass, once per text, whatever the batch, and none from a server."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cai.errors import ModelError, ReplyError
from cai.models.base import TextModel
from cai.models.local import generate
from cai.models.local.encoding import Encoder
from cai.models.local.engine import LocalEngine
from cai.models.local.loading import count_layers, load_causal_lm, load_tokenizer
from cai.models.opening import open_engine
from cai.models.requests import CompleteRequest, HiddenState, Sampling, ScoreRequest, StateRequest
from cai.models.scripted import ScriptedEngine
from cai.models.server.engine import ServerEngine
from cai.models.store import CallStore
from cai.recipe import ModelSpec
from cai.records import Message

TEXTS = ("Yes.", "I'm sorry, but I can't help with that.", "I'm sorry.", "x" * 70)


@pytest.fixture(scope="module")
def parts(tiny_model_dir: Path) -> tuple[Any, Any]:
    """A model of four layers, and its tokenizer."""
    spec = ModelSpec(path=str(tiny_model_dir), precision="float32")
    config = load_causal_lm(spec).config
    config.num_hidden_layers = 4
    config.layer_types = None
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False), load_tokenizer(spec)


def engine(parts: tuple[Any, Any], batch_size: int = 8) -> LocalEngine:
    return LocalEngine(*parts, name="tiny", fingerprint="tiny", batch_size=batch_size, max_length=256)


def about(prompt: str, text: str, layer: int = 1) -> StateRequest:
    return StateRequest((Message("user", prompt),), text, layer)


def ask(eng: LocalEngine, requests: Sequence[Any]) -> list[Any]:
    async def run() -> list[Any]:
        try:
            return await asyncio.gather(*map(eng.submit, requests), return_exceptions=True)
        finally:
            await eng.close()

    return asyncio.run(run())


def numbers(reply: HiddenState, pooling: str) -> Any:
    return np.frombuffer(getattr(reply, pooling), "<f4")


def by_hand(parts: tuple[Any, Any], request: StateRequest) -> tuple[Any, Any]:
    """Mean and last state of one text in a forward pass of its own."""
    model, tokenizer = parts
    prompt, text = Encoder(tokenizer).turn(request.messages, request.text, ended=False)
    with torch.no_grad():
        states = model(input_ids=torch.tensor([[*prompt, *text]]), output_hidden_states=True).hidden_states[request.layer][0]
    of_text = states[len(prompt) :].numpy()
    assert len(of_text) == len(text)
    return of_text.mean(0), of_text[-1]


@pytest.mark.parametrize("layers", [(1, 2), (3,), (1, 3)])
def test_states_are_those_of_a_plain_forward_pass(parts: tuple[Any, Any], layers: tuple[int, ...]) -> None:
    requests = [about(p, t, layer) for p in ("Short?", "A longer question, " * 4) for t in TEXTS for layer in layers]
    for request, reply in zip(requests, ask(engine(parts), requests), strict=True):
        mean, last = by_hand(parts, request)
        np.testing.assert_allclose(numbers(reply, "mean"), mean, atol=2e-5)
        np.testing.assert_allclose(numbers(reply, "last"), last, atol=2e-5)
        assert reply.prompt_tokens > len(request.messages[0].content)


def test_layers_above_the_last_one_asked_for_are_not_run(parts: tuple[Any, Any]) -> None:
    model = parts[0]
    ran: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(model.model.layers)]
    ask(engine(parts), [about("Hi?", "Yes.", 1)])
    assert set(ran) == {0} and len(model.model.layers) == 4
    for hook in hooks:
        hook.remove()


def test_one_text_is_run_once_for_all_its_layers_and_a_pair_shares_a_batch(parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, tuple[int, ...]]] = []
    plain = generate.hidden_states

    def seen(model: Any, items: Any, layers: Any, check: Any) -> Any:
        ran.append((len(items), tuple(layers)))
        return plain(model, items, layers, check)

    monkeypatch.setattr(generate, "hidden_states", seen)
    requests = [about(f"Question {i}", t, layer) for t in TEXTS[:2] for i in range(3) for layer in (2, 1)]
    assert all(isinstance(r, HiddenState) for r in ask(engine(parts, batch_size=4), requests))
    assert ran == [(4, (1, 2)), (2, (1, 2))]


def test_scores_states_and_completions_are_batches_of_their_own(parts: tuple[Any, Any]) -> None:
    messages = (Message("user", "Hi?"),)
    eng = engine(parts)
    replies = ask(
        eng, [about("Hi?", "Yes."), ScoreRequest(messages, "Yes."), CompleteRequest(messages, Sampling(2), 0), about("Hi?", "No.")]
    )
    assert [type(r).__name__ for r in replies] == ["HiddenState", "TextLogprob", "Completion", "HiddenState"]
    assert eng.batches == 3


def test_a_text_that_cannot_be_run_fails_alone(parts: tuple[Any, Any]) -> None:
    empty, long, good = ask(engine(parts), [about("Hi?", ""), about("Hi?", "x" * 300), about("Hi?", "Yes.")])
    assert isinstance(empty, ReplyError) and empty.reason == "empty_text"
    assert isinstance(long, ReplyError) and long.reason == "prompt_too_long"
    assert isinstance(good, HiddenState)


def test_states_come_back_from_the_store_as_they_were(parts: tuple[Any, Any], tmp_path: Path) -> None:
    def read(eng: LocalEngine) -> tuple[HiddenState, TextModel]:
        async def run() -> tuple[HiddenState, TextModel]:
            with CallStore(tmp_path / "calls.sqlite") as store:
                model = TextModel(eng, store, "test")
                return await model.hidden_state((Message("user", "Hi?"),), "Yes.", 2), model

        return asyncio.run(run())

    first, made = read(engine(parts))
    again, reused = read(engine(parts))
    assert first == again and (made.usage.made, reused.usage.made, reused.usage.reused) == (1, 0, 1)


def test_the_number_of_layers_is_known_before_the_model_is_loaded(tiny_model_dir: Path, parts: tuple[Any, Any]) -> None:
    spec = ModelSpec(path=str(tiny_model_dir))
    opened = asyncio.run(open_engine(spec))
    assert TextModel(opened, CallStore(None), "test").layers == count_layers(spec) == 2
    assert engine(parts).layers == 4


def test_a_server_says_that_it_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ServerEngine.__new__(ServerEngine)
    server.name, server.fingerprint = "http://host/v1 big", "server"
    model = TextModel(server, CallStore(None), "test")
    with pytest.raises(ModelError, match=r"http://host/v1 big gives no hidden states.*\nFix: judge with local weights"):
        assert model.layers


def test_a_script_gives_states_hashed_from_the_request() -> None:
    eng = ScriptedEngine()
    one, other, again = (asyncio.run(eng.submit(about("Hi?", t))) for t in ("a", "b", "a"))
    assert one == again != other and len(numbers(one, "mean")) == 8
