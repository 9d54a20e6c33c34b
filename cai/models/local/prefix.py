"""Run a set of prompts through the model, each shared beginning once.

Judging asks many questions about one text, few-shot prompts share their examples, and every prompt shares the system prompt. So the
prompts are grouped by common beginnings, such that the tokens to compute are fewest; each group's beginning is run once, its keys
and values are repeated for the group's rows, and only what differs is run per row. Beginnings share beginnings in their turn: two
responses to one prompt have it in common, and all texts the system prompt. Rows of similar length go together in sub-batches small
enough for the processor's cache, so little is spent on padding.

The same rows in the same order always make the same sub-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cai.models.local.kv_cache import KVCache, join
from cai.models.local.precision import tokens_at_once

SHORTEST_SHARED_TOKENS = 16
"""A beginning shorter than this isn't worth a forward pass of its own."""
PASS_TOKENS = 32
"""What a pass costs beside its tokens, in tokens: on two cores it takes 30 ms over a single one, and 1 ms more for each other
(docs/log.md). Beginnings that together save fewer tokens aren't worth one."""


@dataclass(frozen=True)
class Group:
    """Prompts (by index) that share their first `length` tokens."""

    length: int
    rows: tuple[int, ...]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences share at the start.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    shared = min(len(a), len(b))
    for i in range(shared):
        if a[i] != b[i]:
            return i
    return shared


def share_prefixes(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Group prompts by shared beginning so that the fewest tokens are computed.

    Sorted prompts put every possible group side by side, so the best grouping is the cheapest way to cut the sorted list, found by
    dynamic programming in time quadratic in the number of prompts. At least one token of each prompt is left to its own row.

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
    """Run prompts, sharing beginnings.

    Args:
        model: a causal language model.
        prompts: token ids, none empty.
        keep: how many of each prompt's last positions to return logits for; 0 where only the memory is wanted.
        room: columns to leave free in the memory for what follows; None if nothing does, and no memory is wanted.

    Returns:
        Logits `[B, keep, vocabulary]` in the model's precision (rows in the given order, aligned on the right: a shorter prompt's
        first entries mean nothing), and the memory of all rows.
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
        slots = KVCache(model, width) if shared is None else shared.take(taken, width)
        found = slots.forward(*_left_padded([tails[i] for i in rows], model), keep=keep)
        if logits is None:
            logits = found.new_zeros(len(prompts), keep, found.shape[-1])
        logits[torch.tensor(rows), -found.shape[1] :] = found
        order += rows
        if room is not None:
            parts.append(slots)
    assert logits is not None
    if room is None:
        return logits, None
    del shared
    whole = room == 0 and len(parts) == 1 and order == sorted(order)
    return logits, parts[0] if whole else join(parts, torch.tensor(order, device=model.device), room)


def _worth_it(groups: list[Group]) -> list[Group]:
    """Return groups, none of them sharing anything where all together save too little."""
    saved = sum((len(g.rows) - 1) * g.length for g in groups)
    return groups if saved >= PASS_TOKENS else [Group(0, g.rows) for g in groups]


def _with_even_tails(groups: list[Group], prompts: Sequence[Sequence[int]], keep: int) -> list[Group]:
    """Leave at least `keep` tokens to each row, and cut lone prompts like the grouped ones, so that none makes all the others wide."""
    capped = [Group(max(0, min(g.length, min(len(prompts[i]) for i in g.rows) - keep)), g.rows) for g in groups]
    widest = max((len(prompts[i]) - g.length for g in capped if g.length for i in g.rows), default=None)
    if widest is None:
        return capped
    return [g if g.length else Group(max(0, len(prompts[g.rows[0]]) - widest), g.rows) if len(g.rows) == 1 else g for g in capped]


def sub_batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Cut rows, longest first, into lists whose padded size stays within a budget of tokens, such that padding and passes cost least.

    >>> sub_batches([100, 10, 100, 10], 512)
    [[0, 2], [1, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best: list[tuple[int, int]] = [(0, 0)]  # tokens' worth of the first n rows, and where the last of their lists starts
    for end in range(1, len(order) + 1):
        found = []
        for start in range(end - 1, -1, -1):
            padded = max(1, lengths[order[start]]) * (end - start)
            if padded > budget and start < end - 1:
                break
            found.append((best[start][0] + padded + PASS_TOKENS, start))
        best.append(min(found))
    cuts = []
    end = len(order)
    while end:
        start = best[end][1]
        cuts.append(order[start:end])
        end = start
    return cuts[::-1]


def _left_padded(rows: list[list[int]], model: Any) -> tuple[Tensor, Tensor]:
    """Return ids and which of them are real, both `[B, longest]`."""
    width = max(1, max(len(r) for r in rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        if row:
            ids[i, width - len(row) :] = torch.tensor(row)
            valid[i, width - len(row) :] = True
    return ids.to(model.device), valid.to(model.device)
