"""The decode loop, choices and scores against what `transformers` gives, over several kinds of attention."""

import random
from typing import Any

import pytest
import torch
import transformers as hf

from cai.errors import ModelError
from cai.models.local.cpu import speed_up
from cai.models.local.generate import ChoiceQuery, CompletionRow, compare, complete, score
from cai.models.local.kv_cache import KVCache, attention_windows
from cai.models.local.prefix import run_prompts
from tests.models.architectures import KINDS, SIZES, prompts

STOP = 2


def tiny(kind: str) -> Any:
    config, model, extra = KINDS[kind]
    torch.manual_seed(0)
    made = model._from_config(config(**{**SIZES, **extra}), attn_implementation="sdpa").eval().requires_grad_(False)
    for p in made.parameters():
        if p.dim() > 1:
            p.mul_(3)  # sharper than a fresh model, so that greedy choices are not ties
    return made


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


def generated(model: Any, prompt: list[int], tokens: int) -> list[int]:
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=tokens)
    new: list[int] = out[0, len(prompt) :].tolist()
    return new[: new.index(STOP)] if STOP in new else new


def logprob(model: Any, prompt: list[int], text: list[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1].float()
    return float(torch.log_softmax(logits, -1).gather(1, torch.tensor(text)[:, None]).sum())


def test_greedy_completions_are_those_of_generate(model: Any) -> None:
    rows = [CompletionRow(p, 6 + 5 * i, 0.0, 1.0, i) for i, p in enumerate(prompts())]
    for row, (ids, truncated) in zip(rows, complete(model, rows, frozenset([STOP])), strict=True):
        assert ids == generated(model, list(row.prompt), row.max_tokens)
        assert truncated == (len(ids) == row.max_tokens)


def test_the_quick_attention_changes_nothing(model: Any) -> None:
    rows = [CompletionRow(p, 12, 0.0, 1.0, i) for i, p in enumerate(prompts())]
    plain = complete(model, rows, frozenset([STOP]))
    speed_up(model)
    assert model.config._attn_implementation != "sdpa"
    assert complete(model, rows, frozenset([STOP])) == plain
    model.set_attn_implementation("sdpa")


def test_choices_match_the_unshared_path(model: Any) -> None:
    questions = [ChoiceQuery(p, [[5], [7], [9, 10, 11]]) for p in prompts()]
    for question, found in zip(questions, compare(model, questions), strict=True):
        assert found == pytest.approx([logprob(model, list(question.prompt), list(c)) for c in question.choices], abs=1e-4)


def test_scores_match_one_forward_pass(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.models.local.generate.SCORE_POSITIONS", 20)  # several chunks
    items = [(p, [9, 10, 11, *[i + 5] * 3 * i]) for i, p in enumerate(prompts())]
    assert score(model, items) == pytest.approx([logprob(model, p, t) for p, t in items], abs=1e-4)


def test_sampled_rows_do_not_depend_on_company_or_order(llama: Any) -> None:
    rows = [CompletionRow(p, 20, 1.0, 1.0 if i % 2 else 0.9, 100 + i) for i, p in enumerate(prompts(8))]
    together = complete(llama, rows, frozenset([STOP]))
    assert complete(llama, rows[::-1], frozenset([STOP])) == together[::-1]
    assert [complete(llama, [row], frozenset([STOP]))[0] for row in rows] == together
    other_seeds = complete(llama, [CompletionRow(r.prompt, 20, 1.0, r.top_p, r.seed + 50) for r in rows], frozenset([STOP]))
    assert all(a != b for a, b in zip(together, other_seeds, strict=True))


def test_rows_that_end_are_dropped_from_the_memory(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    forward = KVCache.forward

    def watched(self: KVCache, ids: torch.Tensor, valid: torch.Tensor, keep: int = 1) -> torch.Tensor:
        widths.append(len(ids))
        return forward(self, ids, valid, keep)

    monkeypatch.setattr(KVCache, "forward", watched)
    complete(llama, [CompletionRow(p, 2 if i < 6 else 20, 0.0, 1.0, i) for i, p in enumerate(prompts())], frozenset())
    assert widths[-18:] == [3] * 18


def test_a_shared_text_is_computed_once(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0
    forward = KVCache.forward

    def watched(self: KVCache, ids: torch.Tensor, valid: torch.Tensor, keep: int = 1) -> torch.Tensor:
        nonlocal computed
        computed += ids.numel()
        return forward(self, ids, valid, keep)

    monkeypatch.setattr(KVCache, "forward", watched)
    r = random.Random(1)
    texts = [[r.randrange(3, 300) for _ in range(100)] for _ in range(2)]
    compare(llama, [ChoiceQuery([*text, q, q + 1, q + 2], [[5], [6]]) for text in texts for q in range(10, 26)])
    assert computed == 2 * 100 + 32 * 3
    computed, prompt = 0, texts[0][:70]
    compare(llama, [ChoiceQuery([*prompt, *text[70:], q, q + 1, q + 2], [[5], [6]]) for text in texts for q in range(10, 26)])
    assert computed == 70 + 2 * 30 + 32 * 3, "two texts about one prompt have it in common"


def test_memory_asked_for_holds_the_prompts(llama: Any) -> None:
    """What follows a prompt run in parts equals what follows it run whole."""
    some = prompts()
    logits, kv_cache = run_prompts(llama, some, room=4)
    assert kv_cache is not None
    step = torch.full((len(some), 1), 17)
    after = kv_cache.forward(step, torch.ones_like(step, dtype=torch.bool))[:, -1]
    with torch.inference_mode():
        for i, prompt in enumerate(some):
            whole = llama(torch.tensor([[*prompt, 17]])).logits[0].float()
            torch.testing.assert_close(logits[i, -1], whole[-2], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(after[i], whole[-1], atol=1e-4, rtol=1e-4)


def test_a_memory_that_grows_lets_go_of_the_old_one_layer_by_layer(llama: Any) -> None:
    _, kv_cache = run_prompts(llama, prompts(), room=1)
    assert kv_cache is not None
    rows, step = torch.tensor([2, 0]), torch.full((2, 1), 17)
    kept, moved = kv_cache.take(rows, 3), kv_cache.take(rows, 3, last=True)
    assert all(layer.keys is None and layer.values is None for layer in kv_cache.cache.layers)
    torch.testing.assert_close(kept.forward(step, step > 0), moved.forward(step, step > 0), atol=0.0, rtol=0.0)


def test_layers_without_attention_are_refused_by_name() -> None:
    config = hf.LlamaConfig(num_hidden_layers=2)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="linear_attention"):
        attention_windows(config)


def test_the_token_that_ended_a_turn_comes_along_when_it_is_asked_for(llama: Any) -> None:
    rows = [CompletionRow(p, 12, 1.5, 1.0, seed) for seed, p in enumerate(prompts())]
    stops = frozenset(range(2, 60))  # a fifth of the vocabulary, so that most rows end early
    plain, kept = complete(llama, rows, stops), complete(llama, rows, stops, keep_stop=True)
    assert any(not cut for _, cut in plain)
    for (ids, cut), (with_stop, also_cut) in zip(plain, kept, strict=True):
        assert cut == also_cut
        assert ids == with_stop if cut else (ids == with_stop[:-1] and with_stop[-1] in stops)
