"""Packed pairs: the layout by hand, and which models may have them."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from cai.train.packing import ATTENTION, last_positions, pack, pair_attention, share_prompts
from cai.train.trainers import DPOCollator, collate_packed_reward

SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def row(prompt: list[int], chosen: list[int], rejected: list[int], number: int = 0) -> dict[str, Any]:
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "p_chosen": 1.0, "weight": 1.0, "row": number}


def test_the_second_side_goes_on_where_the_prefix_ends() -> None:
    packed = pack([([1, 2], [3], [4, 5]), ([], [6], [7])])
    assert packed.tokens_1T.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert packed.positions_1T.tolist() == [[0, 1, 2, 2, 3, 0, 0]]
    assert packed.pair_lengths == ((2, 1, 2), (0, 1, 1))
    assert last_positions(packed.pair_lengths) == [2, 5, 4, 6]


def test_packed_and_padded_batches_predict_the_same_tokens_for_the_same_sides() -> None:
    rows = [row([1, 2, 3], [4, 5, 6], [7, 8], 5), row([9], [10], [11, 12], 6)]
    padded, packed = (DPOCollator(0, packed)(rows) for packed in (False, True))
    assert packed["input_ids"].tolist() == [[1, 2, 3, 4, 5, 3, 7, 9, 9, 11]]
    assert packed["shift_labels"].tolist() == [[-100, -100, 4, 5, 6, 7, 8, 10, 11, 12]]
    assert padded["shift_labels"][0].tolist() == [-100, -100, 4, 5, 6, -100]
    for batch in (padded, packed):
        counts = batch["shift_labels"] != -100
        told = sorted(zip(*(batch[n][counts].tolist() for n in ("sides", "shift_labels")), strict=True))
        assert told == [
            (0, 4),
            (0, 5),
            (0, 6),
            (1, 10),
            (2, 7),
            (2, 8),
            (3, 11),
            (3, 12),
        ]
        assert batch["completion_tokens"].tolist() == [3, 1, 2, 2]
        assert batch["rows"].tolist() == [5, 6]


def test_a_reward_batch_shares_what_both_sides_begin_with_and_scores_their_ends() -> None:
    # the second pair lost unlike beginnings to truncation, so it shares nothing; the third's rejected is the beginning of its chosen
    rows = [row([], [1, 2, 3], [1, 2, 4, 5]), row([], [6, 7], [8, 6]), row([], [1, 2, 3], [1, 2])]
    batch = collate_packed_reward(rows)
    assert batch["pair_lengths"] == ((2, 1, 2), (0, 2, 2), (1, 2, 1))
    assert batch["input_ids"][0, batch["ends"]].tolist() == [3, 7, 3, 5, 6, 2]


def build(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config._attn_implementation = "sdpa"
    kinds = {LlamaConfig: LlamaForCausalLM, MistralConfig: MistralForCausalLM, GPT2Config: GPT2LMHeadModel}
    model: PreTrainedModel = kinds[type(config)](config)
    return model


def test_what_neither_side_sees_of_the_other_changes_nothing() -> None:
    model = build(LlamaConfig(**SMALL, initializer_range=0.3))
    assert share_prompts(model, "always", 20)
    states = []
    for first_side in ([3, 4, 5], [6, 7, 8]):
        packed = pack([([1, 2], first_side, [9, 10])])
        with torch.no_grad():
            out = model.model(
                input_ids=packed.tokens_1T, position_ids=packed.positions_1T, pair_lengths=packed.pair_lengths, use_cache=False
            )
        states.append(out.last_hidden_state[0])
    assert torch.equal(states[0][5:], states[1][5:]) and torch.equal(states[0][:2], states[1][:2])
    assert not torch.allclose(states[0][2:5], states[1][2:5])


class DeafAttention(torch.nn.Module):
    """A decoder that takes every argument and heeds no positions: what a model with code of its own may do."""

    def __init__(self, inner: PreTrainedModel) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.set_attn_implementation = inner.set_attn_implementation

    def forward(self, position_ids: Any = None, **kwargs: Any) -> Any:
        return self.inner(**kwargs)


@pytest.mark.parametrize(
    ("config", "longest", "reason"),
    [
        (MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=16), 20, "sliding window is 16 tokens"),
        (MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=32), 20, None),
        (GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64), 20, None),
    ],
)
def test_models_are_tried_not_known_by_name(config: Any, longest: int, reason: str | None, caplog: pytest.LogCaptureFixture) -> None:
    model = build(config)
    with caplog.at_level(logging.WARNING, "cai"):
        assert share_prompts(model, "auto", longest) is (reason is None)
    assert [r.getMessage() for r in caplog.records if reason is None or reason not in r.getMessage()] == []
    assert len(caplog.records) == (reason is not None)
    assert model.config._attn_implementation == (ATTENTION if reason is None else "sdpa")
    assert model.training


def test_a_model_that_ignores_positions_trains_on_padded_rows(caplog: pytest.LogCaptureFixture) -> None:
    model = build(LlamaConfig(**SMALL, initializer_range=0.3))
    model.model = DeafAttention(model.model)
    with caplog.at_level(logging.WARNING, "cai"):
        assert not share_prompts(model, "always", 20)
    assert "gives other results on packed pairs" in caplog.text
    assert model.config._attn_implementation == "sdpa"


def test_never_is_never_and_changes_nothing() -> None:
    model = build(LlamaConfig(**SMALL))
    assert not share_prompts(model, "never", 20)
    assert model.config._attn_implementation == "sdpa"


def test_what_the_function_does_not_do_it_refuses() -> None:
    x = torch.zeros(1, 1, 4, 8)
    for asked in ({"sliding_window": 2}, {"softcap": 30.0}):
        with pytest.raises(ValueError, match="packed pairs don't support"):
            pair_attention(torch.nn.Module(), x, x, x, None, pair_lengths=((1, 2, 1),), **asked)


def test_the_tiny_model_shares(tiny_model_dir: Path) -> None:
    assert share_prompts(LlamaForCausalLM.from_pretrained(tiny_model_dir, attn_implementation="sdpa"), "auto", 20)
