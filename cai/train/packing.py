"""Packed pairs: a batch of pairs as one row without padding, in which the prompt of each pair runs once (arXiv 2410.20305).

For each pair, the row holds the common prefix of both sides, the rest of the first side, and the rest of the second. The second side
continues the prefix: its position ids start at the end of the prefix, and it attends only to the prefix and to itself. Only attention
needs a change; `pair_attention` is registered with transformers (`AttentionInterface`). The prefix receives gradients from both sides.

`share_prompts` tests whether a model honours position ids and the attention function: it runs two random pairs both ways. A model that
gives other results is trained on padded rows.

Departures from the paper: there is no padding, and no mask over the whole row, whose size would be quadratic in the batch.
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
"""Lengths of each pair's prefix, of the rest of its first side and of the rest of its second side, in tokens."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative difference between hidden states of packed and padded pairs, by precision of the forward pass. For a model that
ignores the attention function or the positions, the difference is about 1."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedPairs:
    """A batch of B pairs as one row of T tokens."""

    tokens_1T: torch.Tensor
    positions_1T: torch.Tensor
    pair_lengths: PairLengths


def pack(pairs: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> PackedPairs:
    """Pack pairs into one row.

    Args:
        pairs: token ids of the prefix, of the rest of the first side, and of the rest of the second. Each rest has at least one token.
    """
    tokens = [token for parts in pairs for part in parts for token in part]
    positions = [i for p, a, b in pairs for i in (*range(len(p) + len(a)), *range(len(p), len(p) + len(b)))]
    lengths = tuple((len(p), len(a), len(b)) for p, a, b in pairs)
    return PackedPairs(torch.tensor([tokens]), torch.tensor([positions]), lengths)


def last_positions(pair_lengths: PairLengths) -> list[int]:
    """Return the position of each side's last token in the row: the first sides of all pairs, then the second sides.

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
    """Causal attention within each pair of a packed row. The second side attends to the prefix and to itself, not to the first side.

    Args:
        query: (1, heads, T, d).
        key: (1, key-value heads, T, d).
        value: as `key`.
        attention_mask: ignored; `pair_lengths` determines the mask.
        dropout: dropout rate of the attention weights, in [0, 1).
        scaling: factor of the scores; None: 1/√d.

    Raises:
        ValueError: the model needs an unsupported feature: a window shorter than a side, capped scores, attention sinks, a position bias.
    """
    window, longest = kwargs.get("sliding_window"), max(p + max(a, b) for p, a, b in pair_lengths)
    if (window is not None and window < longest) or any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ValueError("packed pairs don't support sliding windows, capped scores, attention sinks or position biases")
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
    """Return which prefix and suffix positions each suffix token attends to, (suffix, prefix + suffix). Cached for a batch's layers."""
    return torch.ones(suffix, prefix + suffix, dtype=torch.bool, device=device).tril(prefix)


def backbone_of(model: Any) -> Any:
    """Return the decoder below a model's head, with or without PEFT."""
    return (model.get_base_model() if hasattr(model, "peft_config") else model).base_model


def share_prompts(model: Any, wanted: str, longest: int) -> bool:
    """Set a model to packed pairs if the recipe asks for it and the model supports it; log a warning if it doesn't.

    Args:
        model: a decoder with a head, with or without PEFT, with SDPA attention.
        longest: longest side in tokens, prompt included.

    Returns:
        Whether the model takes packed pairs.
    """
    device = next(model.parameters()).device
    if wanted == "never" or (wanted == "auto" and device.type != "cpu"):
        return False
    if (problem := _why_not(model, longest)) is None:
        return True
    _log.warning("the prompt of each pair is run twice, once per side, because %s", problem)
    return False


def _why_not(model: Any, longest: int) -> str | None:
    """Set the model to packed pairs and return None, or leave it unchanged and return the reason why not."""
    backbone = backbone_of(model)
    config = backbone.config.get_text_config()
    before = config._attn_implementation
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest:
        return f"this model's sliding window is {window} tokens, and a prompt with its response has up to {longest}"
    if before != "sdpa":
        return f"this model's attention implementation is {before}, not sdpa"
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
    """Return the relative difference of results on two random pairs, padded and packed. Leaves the model set to packed pairs."""
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
    expected, actual = torch.stack(plain).float(), row[last_positions(packed.pair_lengths)].float()
    return float((actual - expected).norm() / expected.norm())
