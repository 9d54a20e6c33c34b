"""A model that reasons before it answers: each part has its own limit of tokens, in a template that opens the reasoning or doesn't."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from cai.errors import ReplyError
from cai.generate.critique import as_sampling
from cai.models.base import TextModel
from cai.models.local.engine import LocalEngine
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.local.thinking import ThinkingBudget
from cai.models.requests import CompleteRequest, Completion, Sampling
from cai.models.store import CallStore
from cai.recipe import ModelSpec, SamplingSpec
from cai.records import Message

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PLAIN = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OPENED = PLAIN.replace("assistant\n", "assistant\n<think>\n")
ASKED = (Message("user", "Is it?"),)
Says = Callable[[str, str, Sampling], Completion]


def words(*texts: str) -> Callable[[Sequence[int]], str]:
    return lambda ids: "".join(texts[i] for i in ids)


def cut_at(texts: list[str], max_tokens: int, thinking_tokens: int, opened: str = "") -> int:
    """How many of these tokens a completion gets, asked as `complete` asks."""
    budget = ThinkingBudget(lambda ids: opened + "".join(texts[i] for i in ids), max_tokens, thinking_tokens)
    limit = budget.first
    for n in range(1, len(texts) + 1):
        if n == limit:
            limit = budget(range(n))
        if n >= limit:
            return n
    return len(texts)


LONG = [" word"] * 30


@pytest.mark.parametrize("thoughts", [0, 1, 5, 11])
@pytest.mark.parametrize("most", [1, 4, 20])
def test_the_answers_limit_counts_from_the_end_of_the_reasoning(thoughts: int, most: int) -> None:
    thought = ["<think>", *[" hm"] * thoughts, "</think>", "\n\n"]
    assert cut_at(thought + LONG, most, 15) == len(thought) + most
    assert cut_at(thought[1:] + LONG, most, 15, "<think>\n") == len(thought) - 1 + most


def test_a_reasoning_that_does_not_end_is_cut_at_its_own_limit() -> None:
    assert [cut_at(["<think>", *LONG], 8, n) for n in (1, 8, 20)] == [1, 8, 20]
    assert cut_at(LONG, 8, 20, "<think>\n") == 20


def test_an_answer_without_a_reasoning_has_its_own_limit_alone() -> None:
    assert [cut_at(LONG, most, 12) for most in (4, 12, 25)] == [4, 12, 25]


def test_tags_that_are_several_tokens_are_read_as_one() -> None:
    assert cut_at(["<", "think", ">", " hm", "</", "think", ">", "\n", *LONG], 4, 12) == 8 + 4


@pytest.fixture(scope="module")
def engine_of(tiny_model_dir: Path) -> Callable[[str], LocalEngine]:
    spec = ModelSpec(path=str(tiny_model_dir), precision="float32")
    model = load_causal_lm(spec)

    def make(template: str) -> LocalEngine:
        tokenizer = load_tokenizer(spec)
        tokenizer.chat_template = template
        return LocalEngine(model, tokenizer, name="tiny", fingerprint=template, batch_size=4, max_length=256)

    return make


@pytest.fixture
def said(engine_of: Callable[[str], LocalEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Says:
    """What the local engine makes of a model that would write this text."""

    def say(template: str, text: str, sampling: Sampling) -> Completion:
        engine = engine_of(template)
        script = [*load_ids(engine, text), engine._encoder.end_id]
        given = iter(script)

        def scripted(logits: Any, *rest: Any) -> Any:
            import torch

            return torch.tensor([next(given)])

        monkeypatch.setattr("cai.models.local.generate.draw", scripted)

        async def run() -> Completion:
            with CallStore(tmp_path / "calls.sqlite") as store:
                try:
                    return await TextModel(engine, store, "test").complete(ASKED, sampling, 0)
                finally:
                    await engine.close()

        return asyncio.run(run())

    return say


def load_ids(engine: LocalEngine, text: str) -> list[int]:
    return list(engine._encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(("template", "before"), [(PLAIN, "<think>\n"), (OPENED, "")])
def test_the_local_engine_gives_reasoning_and_answer_their_own_limits(said: Says, template: str, before: str) -> None:
    text, sampling = f"{before}Let me see. It is so.\n</think>\n\nYes, it is.", Sampling(64, 1.0, 1.0, 100)
    whole = said(template, text, sampling)
    assert (whole.text, whole.reasoning, whole.truncated) == ("Yes, it is.", "Let me see. It is so.", False)
    brief = said(template, text, replace(sampling, max_tokens=4))
    assert whole.text.startswith(brief.text) and 0 < len(brief.text) < len(whole.text)
    assert (brief.reasoning, brief.truncated) == (whole.reasoning, True)
    with pytest.raises(ReplyError, match="raise thinking_tokens"):
        said(template, text, replace(sampling, thinking_tokens=8))
    shared = replace(sampling, max_tokens=8, thinking_tokens=UNSET)
    with pytest.raises(ReplyError, match="raise thinking_tokens"):
        said(template, text, shared)


def test_a_prompt_needs_room_for_both(engine_of: Callable[[str], LocalEngine]) -> None:
    with pytest.raises(ReplyError, match="and 300 to follow"):
        asyncio.run(engine_of(PLAIN).submit(CompleteRequest(ASKED, Sampling(100, 1.0, 1.0, 200), 0)))


def test_without_a_budget_a_request_is_what_it_was() -> None:
    import msgspec

    assert as_sampling(SamplingSpec(max_tokens=9)) == Sampling(9)
    assert msgspec.json.encode(Sampling(9)) == b'{"max_tokens":9,"temperature":1.0,"top_p":1.0}'
    assert as_sampling(SamplingSpec(max_tokens=9, thinking_tokens=5)).most_tokens == 14
