"""Complete, compare, score and read the hidden states of batches of token ids with a `transformers` causal language model.

`cai` has its own decode loop because `transformers.generate` draws from one global generator, keeps finished rows until the last one
finishes, and copies its KV cache at every step. Greedy decoding in float32 gives the same tokens as `generate`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cai.errors import ModelError
from cai.models.local.precision import tokens_at_once
from cai.models.local.prefix import padded, run_prompts
from cai.models.local.sampling import draw, uniforms
from cai.models.local.thinking import ThinkingBudget

_ROOM = 32
"""Positions that the KV cache grows by. Attention reads unwritten positions too, and growing copies the written ones."""
_KEEP_FRACTION = 0.8
"""Finished rows are dropped once fewer than this share of the rows is still running. Each drop copies the rows that stay."""
SCORE_POSITIONS = 512
"""Positions whose logits are in memory at one time."""
_VOCABULARY_PART = 8192
"""Rows of the output layer that are converted to float32 at one time."""


@dataclass(frozen=True)
class CompletionRow:
    """One completion to sample."""

    prompt: Sequence[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    budget: ThinkingBudget | None = None
    """Limits of reasoning and answer, in place of `max_tokens`; None: the row is cut at `max_tokens`."""


@dataclass(frozen=True)
class ChoiceQuery:
    """Choices to compare after a prompt; each choice is a non-empty list of token ids."""

    prompt: Sequence[int]
    choices: Sequence[Sequence[int]]


def nothing() -> None:
    """Do nothing: the default for `check`."""


@torch.inference_mode()
def complete(
    model: Any,
    rows: Sequence[CompletionRow],
    stop_ids: frozenset[int],
    check: Callable[[], None] = nothing,
    *,
    keep_stop: bool = False,
    on_token: Callable[[int, int], None] = lambda row, token: None,
) -> list[tuple[list[int], bool]]:
    """Complete a batch of prompts.

    Args:
        check: called at every step; an exception from it ends the batch.
        keep_stop: also return the token that ended the turn, for training on the samples.
        on_token: called with the row and each new token, except the one that ended the turn.

    Returns:
        The new tokens of each row, and whether it was cut at its limit.
    """
    device = model.device
    logits, kv_cache = run_prompts(model, [r.prompt for r in rows], room=_ROOM)
    assert kv_cache is not None
    done: list[list[int]] = [[] for _ in rows]
    truncated = [False] * len(rows)
    running = list(range(len(rows)))  # the row of the batch that each row of the KV cache belongs to
    live = set(running)
    limits = [r.max_tokens if r.budget is None else r.budget.first for r in rows]
    seeds = np.array([r.seed for r in rows], dtype=np.uint64)
    temperature = torch.tensor([r.temperature for r in rows], dtype=torch.float32, device=device)
    top_p = torch.tensor([r.top_p for r in rows], dtype=torch.float32, device=device)
    logits = logits[:, -1]
    for step in count():
        check()
        where = torch.tensor(running, device=device)
        noise = torch.from_numpy(uniforms(seeds[running], step)).to(device)
        tokens = draw(logits, temperature[where], top_p[where], noise)
        for row, token in zip(running, tokens.tolist(), strict=True):
            if row not in live:
                continue
            if token in stop_ids:
                done[row] += [token] * keep_stop
                live.remove(row)
                continue
            done[row].append(token)
            on_token(row, token)
            if len(done[row]) == limits[row] and (budget := rows[row].budget) is not None:
                limits[row] = budget(done[row])
            if len(done[row]) >= limits[row]:
                truncated[row] = True
                live.remove(row)
        if not live:
            break
        if len(live) < _KEEP_FRACTION * len(running) or kv_cache.length == kv_cache.capacity:
            kept = torch.tensor([i for i, row in enumerate(running) if row in live], device=device)
            kv_cache = kv_cache.take(kept, _ROOM, last=True)
            tokens = tokens[kept]
            running = [row for row in running if row in live]
        logits = kv_cache.forward(tokens[:, None], torch.ones(len(running), 1, dtype=torch.bool, device=device))[:, -1]
    return list(zip(done, truncated, strict=True))


@torch.inference_mode()
def compare(model: Any, questions: Sequence[ChoiceQuery]) -> list[tuple[float, ...]]:
    """Return the log-probability of each choice of each question. One-token choices share one row; each longer choice has its own."""
    prompts: list[Sequence[int]] = []
    reads: list[list[tuple[int, int, Sequence[int]]]] = []  # per row: question, choice, and the choice's tokens
    for q, question in enumerate(questions):
        short = [(q, c, choice) for c, choice in enumerate(question.choices) if len(choice) == 1]
        if short:
            prompts.append(question.prompt)
            reads.append(short)
        for c, choice in enumerate(question.choices):
            if len(choice) > 1:
                prompts.append([*question.prompt, *choice[:-1]])
                reads.append([(q, c, choice)])
    keep = max(len(tokens) for row in reads for _, _, tokens in row)
    with float_logits(model):
        logits, _ = run_prompts(model, prompts, keep=keep)
    normalizers = logits.float().logsumexp(-1).cpu()
    logprobs = [[0.0] * len(question.choices) for question in questions]
    for row, choices in enumerate(reads):
        for q, c, tokens in choices:
            at = torch.arange(keep - len(tokens), keep)
            logprobs[q][c] = float((logits[row, at, torch.tensor(tokens)].cpu().float() - normalizers[row, at]).double().sum())
    return [tuple(of_question) for of_question in logprobs]


@contextmanager
def float_logits(model: Any) -> Iterator[None]:
    """Compute logits in float32 inside the block.

    In bfloat16 a logit near 20 has steps of 1/8. Two choices then often tie exactly, which hides a judge's weak preferences. Few
    positions need logits, so the cost is small. The vocabulary is processed in parts to limit memory.
    """
    head = model.get_output_embeddings()
    weight = getattr(head, "plain_weight", None)
    weight = getattr(head, "weight", None) if weight is None else weight
    if weight is None or weight.dtype not in (torch.bfloat16, torch.float16) or weight.layout != torch.strided:
        yield
        return
    bias = head.bias

    def in_float(hidden: Tensor) -> Tensor:
        wide = hidden.float()
        parts = [wide @ part.float().T for part in weight.split(_VOCABULARY_PART)]
        logits = torch.cat(parts, dim=-1)
        return logits if bias is None else logits + bias.float()

    plain = head.forward
    head.forward = in_float
    try:
        yield
    finally:
        head.forward = plain


@torch.inference_mode()
def score(model: Any, items: Sequence[tuple[Sequence[int], Sequence[int]]], check: Callable[[], None] = nothing) -> list[float]:
    """Return the log-probability of each text after its prompt, both as token ids, neither empty.

    The texts are run a few positions at a time, so that memory never holds logits for more than a few hundred positions.
    """
    longest = max(len(text) for _, text in items)
    first, kv_cache = run_prompts(model, [prompt for prompt, _ in items], room=longest)
    assert kv_cache is not None
    rows = torch.arange(len(items), device=model.device)
    targets, real = padded([text for _, text in items], "right", model)
    totals = _logprobs(first[:, -1:], targets[:, :1]).double().sum(1)
    at = 1
    while at < longest:
        check()
        if not bool(real[rows, at].all()):  # finished texts leave the batch
            kept = real[rows, at].nonzero()[:, 0]
            rows, kv_cache = rows[kept], kv_cache.take(kept, longest - at + 1, last=True)
        width = min(max(1, SCORE_POSITIONS // len(rows)), longest - at)
        logits = kv_cache.forward(targets[rows, at - 1 : at + width - 1], real[rows, at - 1 : at + width - 1], keep=width)
        logprobs = _logprobs(logits, targets[rows, at : at + width]).double()
        totals[rows] += logprobs.masked_fill(~real[rows, at : at + width], 0.0).sum(1)
        at += width
    return [float(t) for t in totals]


@torch.inference_mode()
def hidden_states(
    model: Any, items: Sequence[tuple[Sequence[int], Sequence[int]]], layers: Sequence[int], check: Callable[[], None] = nothing
) -> tuple[Tensor, Tensor]:
    """Return hidden states of texts after their prompts, both as token ids, neither empty.

    Prompts are run as in `score`: what they share, once. Layers above the last one that is asked for are not run.

    Args:
        layers: counted from 1.

    Returns:
        Mean over each text's tokens, and state at its last token, each `[layers, B, hidden]` in float32.
    """
    with first_layers(model, max(layers)):
        return _pooled_states(model, items, layers, check)


@contextmanager
def first_layers(model: Any, count: int) -> Iterator[None]:
    """Run only the first layers of a decoder inside the block. Raises `ModelError` if it doesn't have its layers in a list."""
    base = model.base_model
    every = getattr(base, "layers", None)
    if not isinstance(every, torch.nn.ModuleList):
        raise ModelError(
            f"{type(base).__name__}: its hidden states can't be read, because its layers are not a list named `layers`.\n"
            "Fix: probe another model, or judge by another protocol"
        )
    base.layers = every[:count]
    try:
        yield
    finally:
        base.layers = every


def _pooled_states(
    model: Any, items: Sequence[tuple[Sequence[int], Sequence[int]]], layers: Sequence[int], check: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(text) for _, text in items], device=model.device)
    longest = int(lengths.max())
    kv_cache = run_prompts(model, [prompt for prompt, _ in items], keep=0, room=longest)[1]
    assert kv_cache is not None
    rows = torch.arange(len(items), device=model.device)
    ids, real = padded([text for _, text in items], "right", model)
    size = model.get_input_embeddings().weight.shape[1]
    sums, last = (torch.zeros(len(layers), len(items), size, device=model.device) for _ in range(2))
    at = 0
    while at < longest:
        check()
        if not bool(real[rows, at].all()):  # finished texts leave the batch
            kept = real[rows, at].nonzero()[:, 0]
            rows, kv_cache = rows[kept], kv_cache.take(kept, longest - at, last=True)
        width = min(max(1, tokens_at_once(model.device.type) // len(rows)), longest - at)
        here = slice(at, at + width)
        states = kv_cache.states(ids[rows, here], real[rows, here], layers)
        sums[:, rows] += states.masked_fill(~real[rows, here, None], 0.0).sum(2)
        ended = (lengths[rows] <= at + width).nonzero()[:, 0]
        last[:, rows[ended]] = states[:, ended, lengths[rows[ended]] - 1 - at]
        at += width
    return sums / lengths[:, None], last


def _logprobs(logits_BQV: Tensor, targets_BQ: Tensor) -> Tensor:
    return torch.log_softmax(logits_BQV.float(), -1).gather(2, targets_BQ[:, :, None])[:, :, 0]
