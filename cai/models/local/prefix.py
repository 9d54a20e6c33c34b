"""Prefix sharing: run a set of prompts through the model, each shared prefix once.

Prompts are grouped by shared prefix so that the fewest tokens are computed. Each group's prefix is run once, its keys and values are
repeated for the group's rows, and only the remaining tokens are run per row. Prefixes are shared recursively: two responses to one prompt
share that prompt, and all prompts share the system prompt. Rows of similar length run together, in sub-batches small enough for the
processor's cache.

The same rows in the same order always form the same sub-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cai.models.local.kv_cache import KVCache, join
from cai.models.local.precision import tokens_at_once

SHORTEST_SHARED_TOKENS = 16
"""Shortest prefix that is worth its own forward pass."""
PASS_TOKENS = 32
"""Fixed cost of a forward pass, in tokens: on two cores it takes 30 ms for one token and 1 ms for each further one (docs/log.md).
Prefixes that save fewer tokens in total are not shared."""


@dataclass(frozen=True)
class Group:
    """Prompts (by index) that share their first `length` tokens."""

    length: int
    rows: tuple[int, ...]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common prefix of two sequences, in tokens.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def share_prefixes(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Group prompts by shared prefix so that the fewest tokens are computed.

    In the sorted list every possible group is contiguous, so the best grouping is the cheapest way to cut that list. Dynamic
    programming finds it in time quadratic in the number of prompts. At least one token of each prompt is left for its own row.

    >>> share_prefixes([[1] * 20 + [2], [1] * 20 + [3], [9, 9]])
    [Group(length=20, rows=(0, 1)), Group(length=0, rows=(2,))]
    """
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i], i))
    lengths = [len(prompts[i]) for i in order]
    adjacent = [common_prefix(prompts[a], prompts[b]) for a, b in pairwise(order)]
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # tokens to compute for the first n; start and shared length of the last group
    for end in range(1, len(order) + 1):
        shared = total = 0
        candidates = []
        for start in range(end - 1, -1, -1):
            total += lengths[start]
            if start == end - 1:
                shared, usable = lengths[start] - 1, 0
            else:
                shared = min(shared, adjacent[start], lengths[start] - 1)
                if shared < SHORTEST_SHARED_TOKENS:
                    break
                usable = shared
            candidates.append((best[start][0] + total - (end - start - 1) * usable, start, usable))
        best.append(min(candidates))
    groups = []
    end = len(order)
    while end:
        _, start, shared = best[end]
        groups.append(Group(shared, tuple(order[start:end])))
        end = start
    return groups[::-1]


def run_prompts(model: Any, prompts: Sequence[Sequence[int]], keep: int = 1, room: int | None = None) -> tuple[Tensor, KVCache | None]:
    """Run prompts, each shared prefix once.

    Args:
        prompts: token ids, none empty.
        keep: number of last positions of each prompt to return logits for; 0 if only the KV cache is needed.
        room: positions to leave free in the KV cache; None returns no cache.

    Returns:
        Logits `[B, keep, vocabulary]` in the model's precision, and the KV cache of all rows. Rows are in the given order and aligned on
        the right; the first entries of a prompt shorter than `keep` are undefined.
    """
    groups = _with_even_tails(_worth_it(share_prefixes(prompts)), prompts, keep)
    group_of = {row: g for g, group in enumerate(groups) for row in group.rows}
    heads = [list(prompts[group.rows[0]][: group.length]) for group in groups]
    shared = run_prompts(model, heads, keep=0, room=0)[1] if any(heads) else None

    tails = [list(prompt[groups[group_of[i]].length :]) for i, prompt in enumerate(prompts)]
    logits: Tensor | None = None
    parts: list[KVCache] = []
    order: list[int] = []
    for rows in sub_batches([len(t) for t in tails], tokens_at_once(model.device.type)):
        width = max(1, *(len(tails[i]) for i in rows))
        taken = torch.tensor([group_of[i] for i in rows], device=model.device)
        kv_cache = KVCache(model, width) if shared is None else shared.take(taken, width)
        tail_logits = kv_cache.forward(*padded([tails[i] for i in rows], "left", model), keep=keep)
        if logits is None:
            logits = tail_logits.new_zeros(len(prompts), keep, tail_logits.shape[-1])
        logits[torch.tensor(rows), -tail_logits.shape[1] :] = tail_logits
        order += rows
        if room is not None:
            parts.append(kv_cache)
    assert logits is not None
    if room is None:
        return logits, None
    del shared
    whole = room == 0 and len(parts) == 1 and order == sorted(order)
    return logits, parts[0] if whole else join(parts, torch.tensor(order, device=model.device), room)


def _worth_it(groups: list[Group]) -> list[Group]:
    """Return the groups, without their shared prefixes if these save fewer than `PASS_TOKENS` tokens in total."""
    saved = sum((len(g.rows) - 1) * g.length for g in groups)
    return groups if saved >= PASS_TOKENS else [Group(0, g.rows) for g in groups]


def _with_even_tails(groups: list[Group], prompts: Sequence[Sequence[int]], keep: int) -> list[Group]:
    """Leave at least `keep` tokens to each row, and split single prompts like the grouped ones, so that they add no padding to them."""
    capped = [Group(max(0, min(g.length, min(len(prompts[i]) for i in g.rows) - keep)), g.rows) for g in groups]
    widest = max((len(prompts[i]) - g.length for g in capped if g.length for i in g.rows), default=None)
    if widest is None:
        return capped
    return [g if g.length else Group(max(0, len(prompts[g.rows[0]]) - widest), g.rows) if len(g.rows) == 1 else g for g in capped]


def sub_batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Split rows, longest first, into sub-batches within a budget of padded tokens, at the lowest cost of padding and passes.

    >>> sub_batches([100, 10, 100, 10], 512)
    [[0, 2], [1, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first n rows in tokens, and where their last sub-batch starts
    for end in range(1, len(order) + 1):
        candidates = []
        for start in range(end - 1, -1, -1):
            padded = max(1, lengths[order[start]]) * (end - start)
            if padded > budget and start < end - 1:
                break
            candidates.append((best[start][0] + padded + PASS_TOKENS, start))
        best.append(min(candidates))
    cuts = []
    end = len(order)
    while end:
        start = best[end][1]
        cuts.append(order[start:end])
        end = start
    return cuts[::-1]


def padded(rows: Sequence[Sequence[int]], side: Literal["left", "right"], model: Any) -> tuple[Tensor, Tensor]:
    """Return token ids, padded with 0, and a mask that is False at padding: `[B, longest]`, of one column if all rows are empty."""
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_side=side)
    real = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True, padding_side=side)
    if not ids.shape[1]:
        ids, real = ids.new_zeros(len(rows), 1), real.new_zeros(len(rows), 1)
    return ids.to(model.device), real.to(model.device)
