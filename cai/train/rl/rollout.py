"""Sampling responses from the live policy, and what every role on the shared base says about them.

The sampler is the project's own (`cai.models.local.generate`), run over the unmerged policy adapter: each response has its own seed, from
the prompt's id and how often the prompt was met before, so it depends neither on the batch nor on the number of processes, and a
training that goes on after a kill samples what it would have sampled.

Import it inside functions only: it loads torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cai.errors import TrainingError
from cai.ids import content_hash, derive_seed
from cai.models.local.generate import CompletionRow, complete
from cai.train.encode import encode_turn
from cai.train.rl.shared_base import POLICY, REFERENCE, VALUE, SharedBase


@dataclass(frozen=True, slots=True)
class Task:
    """A response to sample: which of the step's it is, the prompt, and its seed."""

    index: int
    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Episode:
    """A sampled response and what was said of it, one number per token where nothing else is said."""

    index: int
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    """With the token that ended it, if one did."""
    ended: bool
    logps: Sequence[float]
    ref_logps: Sequence[float]
    entropies: Sequence[float]
    values: Sequence[float]
    """Of the state before each token."""
    scores: Sequence[float]
    """One per reward member."""

    @property
    def ids(self) -> list[int]:
        """Prompt and response."""
        return [*self.prompt_ids, *self.response_ids]


def tasks(prompts: Sequence[tuple[str, Sequence[int]]], seed: int, start: int, count: int) -> list[Task]:
    """Return the responses that a step samples, from an endless row of passes over the prompts, each pass in an order of its own.

    Args:
        prompts: ids and token ids.
        seed: the training's.
        start: responses sampled by the steps before.
        count: how many to return.
    """
    found = []
    order: list[int] = []
    for i in range(count):
        nth, at = divmod(start + i, len(prompts))
        if at == 0 or not order:
            order = sorted(range(len(prompts)), key=lambda j, nth=nth: content_hash((seed, nth, prompts[j][0])))  # type: ignore[misc]
        prompt_id, prompt_ids = prompts[order[at]]
        found.append(Task(i, prompt_ids, derive_seed(seed, prompt_id, "ppo", nth)))
    return found


def sample(
    shared: SharedBase, todo: Sequence[Task], stop_ids: frozenset[int], *, max_tokens: int, temperature: float, at_once: int
) -> list[tuple[list[int], bool]]:
    """Return a response of the live policy for each task, and whether it ended by itself.

    Args:
        shared: in evaluation mode.
        todo: what to sample.
        stop_ids: tokens that end a turn; the one that did is the response's last.
        max_tokens: longest response.
        temperature: divides the logits, above 0. All of the vocabulary may be drawn: what a nucleus left out would have probability 0.
        at_once: responses sampled together.
    """
    found: list[tuple[list[int], bool]] = []
    for start in range(0, len(todo), at_once):
        rows = [CompletionRow(t.prompt_ids, max_tokens, temperature, 1.0, t.seed) for t in todo[start : start + at_once]]
        with shared.using(POLICY):
            done = complete(shared.causal, rows, stop_ids, keep_stop=True)
        found += [(ids, not cut and ids[-1] in stop_ids) for ids, cut in done]
    return found


@torch.no_grad()
def describe(
    shared: SharedBase, todo: Sequence[Task], responses: Sequence[tuple[list[int], bool]], *, end_id: int, temperature: float, at_once: int
) -> list[Episode]:
    """Return what policy, reference, value function and reward members say of some responses.

    Reward models read a response up to its end token, as they did in training; one that was cut gets the end token for them.

    Args:
        shared: in evaluation mode.
        todo: what was asked for.
        responses: what `sample` returned.
        end_id: the tokenizer's end token.
        temperature: that of sampling.
        at_once: responses per forward pass.
    """
    found = []
    for start in range(0, len(todo), at_once):
        part = range(start, min(start + at_once, len(todo)))
        rows = [[*todo[i].prompt_ids, *responses[i][0]] for i in part]
        lengths = [len(responses[i][0]) for i in part]
        where = response_positions(rows, lengths, shared.device)
        targets = torch.tensor([t for i in part for t in responses[i][0]], device=shared.device)
        logps, entropies = shared.logprobs(shared.hidden(POLICY, rows)[where], targets, temperature)
        ref_logps, _ = shared.logprobs(shared.hidden(REFERENCE, rows)[where], targets, temperature)
        values = shared.value(shared.hidden(VALUE, rows)[where])
        scores = shared.scores([row if responses[i][1] else [*row, end_id] for i, row in zip(part, rows, strict=True)])
        per_token = torch.stack((logps, ref_logps, entropies, values)).cpu()
        at = 0
        for n, i in enumerate(part):
            (ids, ended), task = responses[i], todo[i]
            told = per_token[:, at : at + len(ids)].tolist()
            at += len(ids)
            found.append(Episode(task.index, task.prompt_ids, ids, ended, told[0], told[1], told[2], told[3], scores[:, n].tolist()))
    return found


def response_positions(rows: Sequence[Sequence[int]], lengths: Sequence[int], device: Any) -> tuple[Tensor, Tensor]:
    """Return, as row and column indices, where the states are that responses' tokens come from: one before each token, row by row.

    Args:
        rows: prompt and response.
        lengths: tokens of the responses.
        device: where the indices go.
    """
    row_N = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(list(lengths)))
    column_N = torch.cat([torch.arange(len(row) - n - 1, len(row) - 1) for row, n in zip(rows, lengths, strict=True)])
    return row_N.to(device), column_N.to(device)


def encode_prompts(tokenizer: Any, prompts: Sequence[Any], longest: int) -> tuple[list[tuple[str, list[int]]], dict[str, int]]:
    """Return id and token ids of each prompt, open for the assistant's turn, and how many were left out and why.

    Args:
        tokenizer: with a chat template.
        prompts: `Prompt` records.
        longest: tokens; longer ones are left out.

    Raises:
        TrainingError: none is left.
    """
    encoded = [(p.id, encode_turn(tokenizer, p.messages, "")[0]) for p in prompts]
    kept = [(name, ids) for name, ids in encoded if len(ids) <= longest]
    if not kept:
        raise TrainingError(
            f"no prompt to sample responses to: of {len(encoded)} none has at most {longest} tokens.\n"
            "Fix: raise policy.max_length, or lower policy.ppo.response_length, which is taken off it"
        )
    return kept, {"too_long": len(encoded) - len(kept)} if len(kept) < len(encoded) else {}


def check_finite(episodes: Sequence[Episode], shared: SharedBase) -> None:
    """Raise `TrainingError` where a role says something that is no number."""
    told: dict[str, Callable[[Episode], Sequence[float]]] = {
        "the policy's log-probabilities": lambda e: e.logps,
        "the reference's log-probabilities": lambda e: e.ref_logps,
        "the values": lambda e: e.values,
        "the scores of the reward models": lambda e: e.scores,
    }
    for name, numbers in told.items():
        if not all(torch.tensor(numbers(e)).isfinite().all() for e in episodes):
            raise TrainingError(
                f"training diverged: {name} are not all finite.\nFix: lower learning_rate or use precision: float32; if this is the "
                "first step, look for the adapter whose training went wrong"
            )


def chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield items in lists of `size`; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
