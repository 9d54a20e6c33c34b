"""A batch of pairs as one row without padding, in which the prompt of each pair runs once (arXiv 2410.20305).

The row holds, pair after pair, what both sides begin with (the prefix), then the rest of one side, then the rest of the other. The
second side goes on from the prefix as if the first were not there: its position ids start again where the prefix ends, and it attends to
the prefix and to itself only. Everything but attention works token by token and needs no change; attention is a function of ours
under a name of its own, which transformers calls in place of its own (`AttentionInterface`). Gradients of both sides reach the prefix.

Whether a model honours position ids and the attention function is not taken from its name but tried: `shares_prompts` runs two made-up
pairs both ways. A model that doesn't is trained on padded rows instead.

Departures from the paper: no padding at all, and no mask over the whole row, whose size would be quadratic in the batch.
"""

import contextlib
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

ATTENTION = "cai_pairs"
PairLengths = tuple[tuple[int, int, int], ...]
"""Tokens of each pair's prefix, of the rest of its first side, and of the rest of its second."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative distance of hidden states both ways, by what the forward pass computes in. A model that ignores the attention
function or the positions is off by the size of the states themselves."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedPairs:
    """One row of tokens for a batch of B pairs."""

    tokens_1T: torch.Tensor
    positions_1T: torch.Tensor
    pair_lengths: PairLengths


def pack(pairs: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> PackedPairs:
    """Return pairs as one row.

    Args:
        pairs: token ids of the prefix, of the rest of the first side and of the rest of the second, each rest at least one token.
    """
    tokens = [token for parts in pairs for part in parts for token in part]
    positions = [i for p, a, b in pairs for i in (*range(len(p) + len(a)), *range(len(p), len(p) + len(b)))]
    lengths = tuple((len(p), len(a), len(b)) for p, a, b in pairs)
    return PackedPairs(torch.tensor([tokens]), torch.tensor([positions]), lengths)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sides share at their beginning, leaving each at least one of its own.

    >>> common_prefix([1, 2, 3, 4], [1, 2, 5])
    2
    >>> common_prefix([1, 2, 3], [1, 2])
    1
    """
    longest = min(len(a), len(b)) - 1
    return next((i for i in range(longest) if a[i] != b[i]), longest)


def last_positions(pair_lengths: PairLengths) -> list[int]:
    """Return where in the row each side ends: the first sides of all pairs, then the second ones.

    >>> last_positions(((2, 1, 3), (0, 2, 1)))
    [2, 7, 5, 8]
    """
    first, second, start = [], [], 0
    for p, a, b in pair_lengths:
        first.append(start + p + a - 1)
        second.append(start + p + a + b - 1)
        start += p + a + b
    return [*first, *second]


def pair_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    pair_lengths: PairLengths,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each pair of a packed row: prefix and first side causally, the second side to the prefix and to itself.

    Args:
        module: the attention layer.
        query: (1, heads, T, d).
        key: (1, key-value heads, T, d).
        value: as `key`.
        attention_mask: without effect; the layout says it all.
        dropout: of the attention weights, in [0, 1).
        scaling: of the scores; None: 1/√d.
        pair_lengths: the row's layout.
        kwargs: what else transformers hands to an attention function.

    Raises:
        ValueError: the model asks for what is not done here: a window shorter than a side, capped scores, sinks.
    """
    window, longest = kwargs.get("sliding_window"), max(p + max(a, b) for p, a, b in pair_lengths)
    if (window is not None and window < longest) or any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ValueError("sliding windows, capped scores, sinks and position biases are not shared")
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    sizes = [size for p, a, b in pair_lengths for size in (p + a, b)]
    queries, keys, values = (torch.split(x, sizes, dim=2) for x in (query, key, value))
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling}
    mixed = []
    for i, (p, _, b) in enumerate(pair_lengths):
        one, two = 2 * i, 2 * i + 1
        mixed.append(scaled_dot_product_attention(queries[one], keys[one], values[one], is_causal=True, **options))
        seen_key, seen_value = (torch.cat((x[one][:, :, :p], x[two]), dim=2) for x in (keys, values))
        mask = _suffix_mask(p, b, query.device)
        mixed.append(scaled_dot_product_attention(queries[two], seen_key, seen_value, attn_mask=mask, **options))
    return torch.cat(mixed, dim=2).transpose(1, 2).contiguous(), None


@functools.lru_cache(maxsize=512)
def _suffix_mask(prefix: int, suffix: int, device: torch.device) -> torch.Tensor:
    """Return which of prefix and suffix each suffix token may see, (suffix, prefix + suffix). Every layer of a batch asks for it."""
    return torch.ones(suffix, prefix + suffix, dtype=torch.bool, device=device).tril(prefix)


def backbone_of(model: Any) -> Any:
    """Return the decoder below a model's head, whether or not PEFT is around it."""
    return (model.get_base_model() if hasattr(model, "peft_config") else model).base_model


def share_prompts(model: Any, wanted: str, longest: int) -> bool:
    """Set a model to packed pairs where that is wanted and right; say so where it is wanted and can't be had. Returns whether it is set.

    Args:
        model: a decoder with a head, with or without PEFT, whose attention is SDPA.
        wanted: the recipe's `share_prompt`.
        longest: longest side in tokens, prompt included.
    """
    device = next(model.parameters()).device
    if wanted == "never" or (wanted == "auto" and device.type != "cpu"):
        return False
    if (problem := _why_not(model, longest)) is None:
        return True
    _log.warning("the prompt of a pair is run for each side, because %s", problem)
    return False


def _why_not(model: Any, longest: int) -> str | None:
    """Set the model to packed pairs and return None, or leave it as it was and say what stands against them."""
    backbone = backbone_of(model)
    config = backbone.config.get_text_config()
    before = config._attn_implementation
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest:
        return f"this model attends to a window of {window} tokens, and a side has up to {longest}"
    if before != "sdpa":
        return f"this model's attention is {before}, not sdpa"
    AttentionInterface.register(ATTENTION, pair_attention)
    training = model.training
    model.eval()
    try:
        distance = _distance(backbone, config.vocab_size)
    except (TypeError, ValueError, RuntimeError, AttributeError) as e:
        problem = f"this model can't run packed pairs ({type(e).__name__}: {str(e).splitlines()[0][:120]})"
    else:
        dtype = torch.float32 if next(backbone.parameters()).dtype == torch.float32 else torch.bfloat16
        problem = f"this model gives other results on packed pairs (relative distance {distance:.2g})"
        if distance <= TOLERANCE[dtype]:
            return None
    finally:
        model.train(training)
    backbone.set_attn_implementation(before)
    return problem


def _distance(backbone: Any, vocabulary: int) -> float:
    """Run two made-up pairs on padded rows and packed, leave the model set to packed ones, and return how far the results differ."""
    generator = torch.Generator().manual_seed(0)
    device = next(backbone.parameters()).device
    pairs = [[torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths] for lengths in ((7, 5, 6), (0, 4, 3))]
    sides = [[*p, *rest] for rest_of in (1, 2) for p, rest in ((pair[0], pair[rest_of]) for pair in pairs)]
    half = next(backbone.parameters()).dtype != torch.float32
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16) if half else contextlib.nullcontext():
        plain = [backbone(input_ids=torch.tensor([ids], device=device), use_cache=False).last_hidden_state[0, -1] for ids in sides]
        packed = pack([(pair[0], pair[1], pair[2]) for pair in pairs])
        backbone.set_attn_implementation(ATTENTION)
        row = backbone(
            input_ids=packed.tokens_1T.to(device),
            position_ids=packed.positions_1T.to(device),
            pair_lengths=packed.pair_lengths,
            use_cache=False,
        ).last_hidden_state[0]
    wanted, found = torch.stack(plain).float(), row[last_positions(packed.pair_lengths)].float()
    return float((found - wanted).norm() / wanted.norm())
