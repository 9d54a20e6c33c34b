"""The mathematics of PPO on responses, as pure functions of tensors.

Shapes: B responses of T tokens, padded on the right. `mask_BT` is True on a response's tokens, including its end token, and False on
padding. Log-probabilities are in nats.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def masked_mean(values_BT: "Tensor", mask_BT: "Tensor", count: "Tensor | float | None" = None) -> "Tensor":
    """Return the sum over the positions in the mask, divided by their number or by `count`.

    Args:
        values_BT: (B, T); finite outside the mask.
        mask_BT: (B, T).
        count: the divisor; None takes the number of positions in the mask. A micro-batch passes the count of its whole minibatch, so that
            the gradients of the micro-batches add up to the minibatch's.
    """
    return (values_BT * mask_BT).sum() / (mask_BT.sum() if count is None else count)


def whiten(values_BT: "Tensor", mask_BT: "Tensor") -> "Tensor":
    """Return values scaled to mean 0 and variance 1 over the mask; 0 outside the mask.

    Args:
        values_BT: (B, T).
        mask_BT: (B, T), with at least two positions in it.
    """
    mean = masked_mean(values_BT, mask_BT)
    variance = masked_mean((values_BT - mean) ** 2, mask_BT, mask_BT.sum() - 1)
    return (values_BT - mean) * (variance + 1e-8).rsqrt() * mask_BT


def token_kl(logps_BT: "Tensor", ref_logps_BT: "Tensor") -> "Tensor":
    """Return log π/π_ref at each sampled token: an unbiased estimate of KL(policy ‖ reference), of either sign.

    As a reward, it gives the gradient of the KL divergence. Estimators of lower variance (k3) don't.

    Args:
        logps_BT: under the policy that sampled the tokens, (B, T).
        ref_logps_BT: under the reference, (B, T).
    """
    return logps_BT - ref_logps_BT


def final_scores(scores_B: "Tensor", ended_B: "Tensor", *, missing_eos_penalty: float | None) -> "Tensor":
    """Return the score that each response is rewarded with at its last token.

    Args:
        scores_B: scores of the reward models, (B,).
        ended_B: whether the response ended with its end token, (B,).
        missing_eos_penalty: subtracted from responses that were cut at the limit; None subtracts nothing.
    """
    return scores_B if missing_eos_penalty is None else scores_B - missing_eos_penalty * (~ended_B)


def token_rewards(final_B: "Tensor", kl_BT: "Tensor", mask_BT: "Tensor", kl_coef: float) -> "Tensor":
    """Return the reward of each token: −kl_coef·KL, plus the response's score at its last token (Ziegler et al. 2019, eq. 2).

    Args:
        final_B: from `final_scores`, (B,).
        kl_BT: from `token_kl`, (B, T).
        mask_BT: (B, T), with at least one token in each row, padded on the right.
        kl_coef: at least 0.
    """
    rewards_BT = -kl_coef * kl_BT * mask_BT
    last_B1 = mask_BT.sum(1, keepdim=True) - 1
    return rewards_BT.scatter_add(1, last_B1, final_B[:, None].to(rewards_BT.dtype))


def advantages_and_returns(
    rewards_BT: "Tensor", values_BT: "Tensor", mask_BT: "Tensor", *, gamma: float, lam: float
) -> tuple["Tensor", "Tensor"]:
    """Return advantages by generalised advantage estimation (arXiv 1506.02438, eq. 16), and returns, both 0 outside the mask.

    Args:
        rewards_BT: (B, T).
        values_BT: value of the state before each token, (B, T). After the last token the value is 0, also for a response that was cut:
            the episode has ended.
        mask_BT: (B, T).
        gamma: discount, in [0, 1]; 1 for responses.
        lam: λ, in [0, 1]; 1 gives Monte-Carlo advantages (low bias, high variance), 0 one-step ones.
    """
    import torch

    rewards_BT, values_BT = rewards_BT * mask_BT, values_BT * mask_BT
    reversed_advantages: list[torch.Tensor] = []
    advantage_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(advantage_B)
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * advantage_B
        next_value_B = values_BT[:, t]
        reversed_advantages.append(advantage_B)
    advantages_BT = torch.stack(reversed_advantages[::-1], 1) * mask_BT
    return advantages_BT, advantages_BT + values_BT


def policy_loss(
    logps_BT: "Tensor", old_logps_BT: "Tensor", advantages_BT: "Tensor", mask_BT: "Tensor", *, cliprange: float, count: "Tensor | float"
) -> tuple["Tensor", "Tensor"]:
    """Return PPO's clipped policy loss (arXiv 1707.06347, eq. 7), summed over the mask and divided by `count`, and where it was clipped.

    Args:
        logps_BT: log-probabilities under the current policy, (B, T).
        old_logps_BT: log-probabilities under the policy that sampled, (B, T).
        advantages_BT: (B, T).
        mask_BT: (B, T).
        cliprange: clip range of the probability ratio around 1, above 0.
        count: tokens in the whole minibatch.

    Returns:
        A scalar, and (B, T) with 1 where the clipped term is the larger one.
    """
    import torch

    ratio_BT = (logps_BT - old_logps_BT).masked_fill(~mask_BT, 0.0).exp()
    free_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1.0 - cliprange, 1.0 + cliprange)
    return masked_mean(torch.maximum(free_BT, clipped_BT), mask_BT, count), ((clipped_BT > free_BT) & mask_BT).float()


def value_loss(
    values_BT: "Tensor",
    old_values_BT: "Tensor",
    returns_BT: "Tensor",
    mask_BT: "Tensor",
    *,
    cliprange_value: float,
    count: "Tensor | float",
) -> tuple["Tensor", "Tensor"]:
    """Return PPO's clipped value loss: half the squared error, summed over the mask and divided by `count`, and where it was clipped.

    Args:
        values_BT: current values, (B, T).
        old_values_BT: values when the responses were sampled, (B, T).
        returns_BT: targets, (B, T).
        mask_BT: (B, T).
        cliprange_value: clip range around the old values, above 0.
        count: tokens in the whole minibatch.

    Returns:
        A scalar, and (B, T) with 1 where the clipped term is the larger one.
    """
    import torch

    near_BT = old_values_BT + (values_BT - old_values_BT).clamp(-cliprange_value, cliprange_value)
    free_BT, clipped_BT = (values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2
    return 0.5 * masked_mean(torch.maximum(free_BT, clipped_BT), mask_BT, count), ((clipped_BT > free_BT) & mask_BT).float()


def explained_variance(values_BT: "Tensor", returns_BT: "Tensor", mask_BT: "Tensor") -> float:
    """Return the fraction of the returns' variance that the values explain: 1: all, 0: no better than the mean; may be negative."""
    returns_N, errors_N = returns_BT[mask_BT].double(), (returns_BT - values_BT)[mask_BT].double()
    variance = float(returns_N.var(correction=0))
    return 1.0 - float(errors_N.var(correction=0)) / variance if variance > 0.0 else 0.0


def learning_rate(base: float, step: int, total: int, warmup: int) -> float:
    """Return the learning rate of an optimizer step: linear warm-up, then linear decay to 0, as in the other trainings.

    Args:
        step: index of the optimizer step, from 0.

    >>> [learning_rate(1.0, step, 4, 1) for step in range(4)]
    [0.0, 1.0, 0.6666666666666667, 0.33333333333333337]
    """
    return base * (step / max(1, warmup) if step < warmup else max(0.0, (total - step) / max(1, total - warmup)))
