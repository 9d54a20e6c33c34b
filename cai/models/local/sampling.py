"""Token sampling with one seed per row: a draw depends only on the row's logits, its seed and the step.

Inverse-transform sampling: one uniform number per row and step, a hash of (seed, step), is mapped through the row's inverse cumulative
distribution. With a global generator, each draw would depend on the other rows in the batch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 256
NUCLEUS = (256, 4096)
"""Numbers of most likely tokens to try for `top_p`, in turn. A row with a larger nucleus is sorted in full."""


def uniforms(seeds: NDArray[np.uint64], step: int) -> NDArray[np.float64]:
    """Return a number in (0, 1) for each seed at a step, by two rounds of SplitMix64 (Steele, Lea & Flood 2014).

    Args:
        seeds: one per row.
        step: index of the token in the completion, from 0.
    """
    with np.errstate(over="ignore"):
        bits = _mix(_mix(seeds.astype(np.uint64)) + np.uint64(step + 1) * np.uint64(0x9E3779B97F4A7C15))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> Tensor:
    """Return one token id per row.

    Args:
        logits_BV: in any floating-point type.
        temperature_B: divides the logits; 0 is greedy.
        top_p_B: nucleus: keep the smallest set of most likely tokens with at least this probability; 1 keeps all.
        uniform_B: in (0, 1), one per row.
    """
    greedy_B = temperature_B <= 0
    if bool(greedy_B.all()):
        return logits_BV.argmax(-1)
    scaled_BV = logits_BV.float() / torch.where(greedy_B, torch.ones_like(temperature_B), temperature_B)[:, None]
    probs_BV = torch.softmax(scaled_BV, -1)
    if bool((top_p_B < 1).any()):
        tokens_B = _draw_nucleus(probs_BV, top_p_B, uniform_B)
        full_B = top_p_B >= 1
        if bool(full_B.any()):
            tokens_B[full_B] = _draw_all(probs_BV[full_B], uniform_B[full_B])
    else:
        tokens_B = _draw_all(probs_BV, uniform_B)
    return torch.where(greedy_B, logits_BV.argmax(-1), tokens_B) if bool(greedy_B.any()) else tokens_B


def _draw_all(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Draw from the whole vocabulary. Inverts the cumulative distribution in two steps, block then token, which is faster than one."""
    rows, vocabulary = probs_BV.shape
    padded = torch.nn.functional.pad(probs_BV, (0, -vocabulary % _BLOCK)) if vocabulary % _BLOCK else probs_BV
    blocks = padded.view(rows, -1, _BLOCK)
    block_B, rest_B = _invert(blocks.sum(-1), uniform_B * probs_BV.sum(-1))
    inside = blocks[torch.arange(rows, device=probs_BV.device), block_B]
    token_B, _ = _invert(inside, rest_B)
    return block_B * _BLOCK + token_B


def _invert(mass_BN: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first entry with mass above 0 whose running sum exceeds the target, and the target minus the sum before that entry."""
    sums = mass_BN.double().cumsum(-1)
    passed = (sums > target_B[:, None]) & (mass_BN > 0)
    last = (mass_BN > 0).int().cumsum(-1).argmax(-1)  # rounding may put the target past the end: the last entry with mass
    index = torch.where(passed.any(-1), passed.int().argmax(-1), last)
    before = sums.gather(1, index[:, None])[:, 0] - mass_BN.gather(1, index[:, None])[:, 0].double()
    return index, target_B - before


def _draw_nucleus(probs_BV: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> Tensor:
    """Return a token from each row's nucleus, 0 for rows with `top_p` 1. Only rows with a large nucleus need a large sort."""
    tokens_B = torch.zeros_like(uniform_B, dtype=torch.long)
    left = (top_p_B < 1).nonzero()[:, 0]
    for count in (*(n for n in NUCLEUS if n < probs_BV.shape[-1]), probs_BV.shape[-1]):
        if not len(left):
            break
        top_p = top_p_B[left, None]
        mass, index = probs_BV[left].topk(count, dim=-1)
        before = mass.double().cumsum(-1) - mass
        whole = (before[:, -1:] + mass[:, -1:] >= top_p)[:, 0] | (count == probs_BV.shape[-1])
        kept = torch.where(before < top_p, mass, torch.zeros_like(mass))[whole]
        chosen, _ = _invert(kept, uniform_B[left[whole]] * kept.double().sum(-1))
        tokens_B[left[whole]] = index[whole].gather(1, chosen[:, None])[:, 0]
        left = left[~whole]
    return tokens_B
