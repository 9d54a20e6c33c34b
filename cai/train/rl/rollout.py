"""PPO rollouts: sample responses from the current policy, and compute log-probabilities, values and scores on the shared base.

Each response has its own seed, from the prompt's id and the number of earlier passes over the prompts. So it depends neither on the batch
nor on the number of processes, and a resumed training samples the same responses as an uninterrupted one.

Import this module inside functions only: it loads torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cai.errors import TrainingError
from cai.ids import content_hash, derive_seed
from cai.models.local.encoding import Encoder
from cai.models.local.generate import CompletionRow, complete
from cai.models.local.thinking import ThinkingBudget
from cai.train.encode import encode_turn
from cai.train.rl.shared_base import POLICY, REFERENCE, VALUE, SharedBase


@dataclass(frozen=True, slots=True)
class Task:
    """A response to sample."""

    index: int
    """Index in the step."""
    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Episode:
    """A sampled response with its log-probabilities, entropies, values and scores; one number per token unless stated otherwise."""

    index: int
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    """Includes the end token, if the response has ended."""
    ended: bool
    """Whether it has ended, with an answer if it has a reasoning."""
    logps: Sequence[float]
    ref_logps: Sequence[float]
    entropies: Sequence[float]
    values: Sequence[float]
    """Value of the state before each token."""
    scores: Sequence[float]
    """One per reward model."""

    @property
    def ids(self) -> list[int]:
        """Prompt and response."""
        return [*self.prompt_ids, *self.response_ids]


def tasks(prompts: Sequence[tuple[str, Sequence[int]]], seed: int, start: int, count: int) -> list[Task]:
    """Return the responses to sample in a step. Steps cycle through the prompts; each pass has its own order.

    Args:
        prompts: ids and token ids of the prompts.
        start: number of responses sampled in earlier steps.
    """
    todo = []
    order: list[int] = []
    for i in range(count):
        nth, at = divmod(start + i, len(prompts))
        if at == 0 or not order:
            order = sorted(range(len(prompts)), key=lambda j, nth=nth: content_hash((seed, nth, prompts[j][0])))  # type: ignore[misc]
        prompt_id, prompt_ids = prompts[order[at]]
        todo.append(Task(i, prompt_ids, derive_seed(seed, prompt_id, "ppo", nth)))
    return todo


def sample(
    shared: SharedBase,
    todo: Sequence[Task],
    stop_ids: frozenset[int],
    *,
    max_tokens: int,
    temperature: float,
    at_once: int,
    budget: ThinkingBudget | None = None,
) -> list[tuple[list[int], bool]]:
    """Return a response of the current policy for each task, and whether it ended with an end token.

    Args:
        shared: the shared base, in evaluation mode.
        stop_ids: tokens that end a turn; included at the end of a response.
        max_tokens: longest response, in tokens.
        temperature: divides the logits, above 0. There is no nucleus, because a token outside it would have probability 0.
        budget: limits of reasoning and answer, in place of `max_tokens`.
    """
    responses: list[tuple[list[int], bool]] = []
    for start in range(0, len(todo), at_once):
        rows = [CompletionRow(t.prompt_ids, max_tokens, temperature, 1.0, t.seed, budget) for t in todo[start : start + at_once]]
        with shared.using(POLICY):
            done = complete(shared.causal, rows, stop_ids, keep_stop=True)
        responses += [(ids, not cut and ids[-1] in stop_ids) for ids, cut in done]
    return responses


@torch.no_grad()
def evaluate_responses(
    shared: SharedBase,
    todo: Sequence[Task],
    responses: Sequence[tuple[list[int], bool]],
    *,
    encoder: Encoder,
    temperature: float,
    at_once: int,
) -> list[Episode]:
    """Return responses with log-probabilities under policy and reference, values, and scores of the reward models.

    Reward models score a response at the token that they were trained at: the one with which the chat template ends a turn. It replaces
    another end token, and is added to a response that was cut. They don't see a response's reasoning.

    Args:
        shared: the shared base, in evaluation mode.
        responses: the return value of `sample`.
        temperature: temperature of sampling.
    """
    episodes = []
    for start in range(0, len(todo), at_once):
        part = range(start, min(start + at_once, len(todo)))
        rows = [[*todo[i].prompt_ids, *responses[i][0]] for i in part]
        lengths = [len(responses[i][0]) for i in part]
        where = response_positions(rows, lengths, shared.device)
        targets = torch.tensor([t for i in part for t in responses[i][0]], device=shared.device)
        logps, entropies = shared.logprobs(shared.hidden(POLICY, rows)[where], targets, temperature)
        ref_logps, _ = shared.logprobs(shared.hidden(REFERENCE, rows)[where], targets, temperature)
        values = shared.value(shared.hidden(VALUE, rows)[where])
        scores = shared.scores([[*todo[i].prompt_ids, *scored_ids(encoder, *responses[i])] for i in part])
        per_token = torch.stack((logps, ref_logps, entropies, values)).cpu()
        at = 0
        for n, i in enumerate(part):
            (ids, ended), task = responses[i], todo[i]
            ended = ended and not encoder.only_reasons(ids[:-1])
            logp, ref_logp, entropy, value = per_token[:, at : at + len(ids)].tolist()
            at += len(ids)
            episodes.append(Episode(task.index, task.prompt_ids, ids, ended, logp, ref_logp, entropy, value, scores[:, n].tolist()))
    return episodes


def scored_ids(encoder: Encoder, ids: Sequence[int], ended: bool) -> list[int]:
    """Return what reward models see of a response: the answer's tokens, and the token that ends a turn.

    Args:
        ended: whether the last of them is an end token.
    """
    said = list(ids[:-1] if ended else ids)
    answer = encoder.answer(said)
    return [*(said if answer == encoder.sampled(said) else encoder.answer_ids(answer)), encoder.end_id]


def response_positions(rows: Sequence[Sequence[int]], lengths: Sequence[int], device: Any) -> tuple[Tensor, Tensor]:
    """Return row and column indices of the positions that predict the responses' tokens (one before each token), row by row.

    Args:
        rows: token ids of prompt and response.
        lengths: lengths of the responses, in tokens.
    """
    row_N = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(list(lengths)))
    column_N = torch.cat([torch.arange(len(row) - n - 1, len(row) - 1) for row, n in zip(rows, lengths, strict=True)])
    return row_N.to(device), column_N.to(device)


def encode_prompts(tokenizer: Any, prompts: Sequence[Any], longest: int) -> tuple[list[tuple[str, list[int]]], dict[str, int]]:
    """Return the id and token ids of each prompt, with the assistant's header, and the number of dropped prompts by reason.

    Args:
        longest: longest prompt in tokens; longer ones are dropped.
    """
    encoded = [(p.id, encode_turn(tokenizer, p.messages, "")[0]) for p in prompts]
    kept = [(name, ids) for name, ids in encoded if len(ids) <= longest]
    if not kept:
        raise TrainingError(
            f"no prompt to sample responses to: none of {len(encoded)} has at most {longest} tokens.\n"
            "Fix: raise policy.max_length, or lower policy.ppo.response_length and thinking_tokens, which are subtracted from it"
        )
    return kept, {"too_long": len(encoded) - len(kept)} if len(kept) < len(encoded) else {}


def check_finite(episodes: Sequence[Episode], shared: SharedBase) -> None:
    """Raise `TrainingError` if a log-probability, value or score is not finite."""
    outputs: dict[str, Callable[[Episode], Sequence[float]]] = {
        "the policy's log-probabilities": lambda e: e.logps,
        "the reference's log-probabilities": lambda e: e.ref_logps,
        "the values": lambda e: e.values,
        "the scores of the reward models": lambda e: e.scores,
    }
    for name, numbers in outputs.items():
        if not all(torch.tensor(numbers(e)).isfinite().all() for e in episodes):
            raise TrainingError(
                f"training diverged: {name} are not all finite.\nFix: lower learning_rate or use precision: float32; if this is the "
                "first step, check the adapters for weights that are not finite"
            )


def chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield items in chunks of `size`; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
