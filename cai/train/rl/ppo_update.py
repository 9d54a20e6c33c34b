"""PPO's update: several passes over one batch of episodes, in minibatches of micro-batches, in one or more processes.

Every process has all episodes of the step, which are small (token ids and a few numbers per token). So batch statistics, such as those for
whitening, don't depend on the number of processes. Each process computes gradients for its share of a minibatch, and the gradients are
summed. Losses are divided by the tokens of the whole minibatch, so micro-batches and processes change the result only by rounding.

Import this module inside functions only: it loads torch.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from cai.errors import TrainingError
from cai.ids import derive_seed
from cai.recipe import PolicyConfig, PPOSpec, RewardConfig
from cai.train.reward.ensemble import aggregate_scores
from cai.train.rl.ppo_math import (
    advantages_and_returns,
    explained_variance,
    final_scores,
    learning_rate,
    masked_mean,
    policy_loss,
    token_kl,
    token_rewards,
    value_loss,
    whiten,
)
from cai.train.rl.rollout import Episode, chunks, response_positions
from cai.train.rl.shared_base import POLICY, VALUE, SharedBase

ADAM_EPSILON = 1e-5
"""ε of the TensorFlow implementations on which the literature's settings are based, not PyTorch's 1e-8 (Huang et al. 2024, detail 20)."""


@dataclass(frozen=True)
class World:
    """This process's place in the process group, and the PPO step's place in the training."""

    rank: int
    size: int
    first_optimizer_step: int
    """Number of optimizer steps before this PPO step."""
    optimizer_steps: int
    """Number of optimizer steps in the whole training."""


@dataclass(frozen=True)
class Batch:
    """The episodes of a step as padded float32 tensors, on the device of the shared base."""

    episodes: Sequence[Episode]
    logps_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    mask_BT: Tensor
    metrics: dict[str, float]
    """Metrics of the episodes."""


def make_batch(episodes: Sequence[Episode], spec: PPOSpec, reward: RewardConfig, device: Any) -> Batch:
    """Return the episodes with advantages, returns and metrics. `episodes`: all episodes of the step, in order."""
    lengths = [len(e.response_ids) for e in episodes]

    def padded(name: str) -> Tensor:
        rows = [torch.tensor(getattr(e, name), dtype=torch.float32) for e in episodes]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)

    logps_BT, ref_logps_BT, values_BT, entropy_BT = (padded(name) for name in ("logps", "ref_logps", "values", "entropies"))
    mask_BT = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
    scores = [aggregate_scores(e.scores, reward.aggregate, reward.uncertainty_penalty) for e in episodes]
    scores_B = torch.tensor([s.value for s in scores], device=device)
    ended_B = torch.tensor([e.ended for e in episodes], device=device)
    final_B = final_scores(scores_B, ended_B, missing_eos_penalty=spec.missing_eos_penalty)
    kl_BT = token_kl(logps_BT, ref_logps_BT) * mask_BT
    rewards_BT = token_rewards(final_B, kl_BT, mask_BT, spec.kl_coef)
    advantages_BT, returns_BT = advantages_and_returns(rewards_BT, values_BT, mask_BT, gamma=spec.gamma, lam=spec.lam)
    kl = float(kl_BT.sum(1).mean())
    metrics = {
        "objective/kl": kl,
        "objective/entropy": float((entropy_BT * mask_BT).sum(1).mean()),
        "objective/non_score_reward": -spec.kl_coef * kl,
        "objective/scores": float(scores_B.mean()),
        "objective/scores_std": float(scores_B.std(correction=0)),
        "objective/rlhf_reward": float(rewards_BT.sum(1).mean()),
        "objective/disagreement": fmean(s.std for s in scores),
        "val/explained_variance": explained_variance(values_BT, returns_BT, mask_BT),
        "response/length": fmean(lengths),
        "response/eos_rate": fmean(map(float, ended_B.tolist())),
    }
    return Batch(episodes, logps_BT, values_BT, whiten(advantages_BT, mask_BT), returns_BT, mask_BT, metrics)


def make_optimizer(config: PolicyConfig, shared: SharedBase) -> Any:
    """Return AdamW over the trained weights, in two groups: policy and value function; 8-bit or paged if the recipe says so."""
    trained = shared.trained()
    parameters = [{"params": [p for n, p in trained.items() if is_critic(n) is critic]} for critic in (False, True)]
    if config.optimizer == "adamw_torch":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, eps=ADAM_EPSILON, weight_decay=0.0)
    import bitsandbytes

    kind = bitsandbytes.optim.PagedAdamW8bit if config.optimizer.startswith("paged") else bitsandbytes.optim.AdamW8bit
    return kind(parameters, lr=config.learning_rate, eps=ADAM_EPSILON, weight_decay=0.0)


def is_critic(name: str) -> bool:
    """Whether a trained weight of this name belongs to the value function: its adapter or its head."""
    return name.startswith(f"{VALUE}.head.") or f".{VALUE}." in name


def update(shared: SharedBase, optimizer: Any, batch: Batch, config: PolicyConfig, step: int, seed: int, world: World) -> dict[str, float]:
    """Train policy and value function on a batch; return metrics, averaged over minibatches.

    Args:
        batch: from `make_batch`, the same in each process.
        step: number of this PPO step, from 1. Decides the minibatches, with `seed`.
    """
    spec = config.ppo
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=shared.device))
    norms, rates, done = [], [], 0
    size = len(batch.episodes) // spec.num_mini_batches
    for epoch in range(spec.num_ppo_epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "minibatches", step, epoch))
        order = torch.randperm(len(batch.episodes), generator=generator).tolist()
        for mini in chunks(order, size):
            count = int(batch.mask_BT[mini].sum())
            with shared.training():
                for micro in chunks(mini[world.rank :: world.size], config.batch_size):
                    for name, value in _differentiate(shared, batch, micro, spec, count).items():
                        sums[name] += value
            rates.append(
                learning_rate(
                    config.learning_rate,
                    world.first_optimizer_step + done,
                    world.optimizer_steps,
                    int(config.warmup_fraction * world.optimizer_steps),
                )
            )
            critic_rate = rates[-1] * (spec.critic_learning_rate or config.learning_rate) / config.learning_rate
            policy_rate = None if step <= spec.critic_warmup else rates[-1]
            norms.append(_apply(shared, optimizer, spec.max_grad_norm, (policy_rate, critic_rate), world.size))
            if not math.isfinite(norms[-1]):
                raise TrainingError(
                    f"training diverged: grad_norm is {norms[-1]} at step {step}.\n"
                    f"Fix: lower learning_rate (now {config.learning_rate:g}), raise warmup_fraction, or use precision: float32"
                )
            done += 1
    names = sorted(sums)
    totals = torch.stack([sums[name] for name in names]) / done
    if world.size > 1:
        torch.distributed.all_reduce(totals)
    means = dict(zip(names, totals.tolist(), strict=True))
    return {**means, "loss": means["loss/policy_avg"] + spec.vf_coef * means["loss/value_avg"], "grad_norm": fmean(norms), "lr": rates[-1]}


def _differentiate(shared: SharedBase, batch: Batch, micro: Sequence[int], spec: PPOSpec, count: int) -> dict[str, Tensor]:
    """Add a micro-batch's gradients; return its share of each metric.

    The value function's graph is built after the policy's is freed, so memory never holds both.
    """
    rows = [batch.episodes[i].ids for i in micro]
    lengths = [len(batch.episodes[i].response_ids) for i in micro]
    where = response_positions(rows, lengths, shared.device)
    at = list(micro)
    width = max(lengths)
    mask_BT, old_logps_BT, old_values_BT, advantages_BT, returns_BT = (
        t[at, :width] for t in (batch.mask_BT, batch.logps_BT, batch.values_BT, batch.advantages_BT, batch.returns_BT)
    )
    targets_N = torch.tensor([t for i in micro for t in batch.episodes[i].response_ids], device=shared.device)

    def spread(flat_N: Tensor) -> Tensor:
        return torch.zeros(mask_BT.shape, device=shared.device).masked_scatter(mask_BT, flat_N)

    logps_N, entropy_N = shared.logprobs(shared.hidden(POLICY, rows)[where], targets_N, spec.temperature)
    logps_BT = spread(logps_N)
    pg_loss, pg_clipped_BT = policy_loss(logps_BT, old_logps_BT, advantages_BT, mask_BT, cliprange=spec.cliprange, count=count)
    torch.autograd.backward(pg_loss)
    change_BT = (logps_BT.detach() - old_logps_BT) * mask_BT
    values_BT = spread(shared.value(shared.hidden(VALUE, rows)[where]))
    vf_loss, vf_clipped_BT = value_loss(values_BT, old_values_BT, returns_BT, mask_BT, cliprange_value=spec.cliprange_value, count=count)
    torch.autograd.backward(spec.vf_coef * vf_loss)
    return {
        "loss/policy_avg": pg_loss.detach(),
        "loss/value_avg": vf_loss.detach(),
        "policy/approxkl_avg": 0.5 * masked_mean(change_BT**2, mask_BT, count),
        "policy/clipfrac_avg": masked_mean(pg_clipped_BT, mask_BT, count),
        "policy/entropy_avg": entropy_N.sum() / count,
        "val/clipfrac_avg": masked_mean(vf_clipped_BT, mask_BT, count),
        "val/ratio": masked_mean(change_BT.exp(), mask_BT, count),
    }


def _apply(shared: SharedBase, optimizer: Any, max_norm: float, rates: tuple[float | None, float], processes: int) -> float:
    """Sum the gradients over processes, clip their global norm, and take an optimizer step; return the norm before clipping.

    `rates`: the learning rates of policy and value function; None leaves the policy as it is.
    """
    parameters = list(shared.trained().values())
    for p in parameters:
        if p.grad is None:  # a process whose share of the minibatch was empty
            p.grad = torch.zeros_like(p)
    if processes > 1:
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        torch.distributed.all_reduce(flat)
        for p, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if rate is not None:
            group["lr"] = rate
            continue
        for p in group["params"]:
            p.grad = None  # the optimizer then skips it
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
