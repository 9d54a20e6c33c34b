"""The losses of preference learning, on plain tensors: no model, no trainer, no state.

Shapes: B is pairs in the batch. A label is a probability `p_chosen` in [0, 1], a weight is at least 0.

Departures from the papers, and from TRL, which has neither soft labels nor weights:

1. Labels are soft. The negative log-likelihood −log σ(x) of "chosen is better" becomes its expectation under the label,
   −(p·log σ(x) + (1−p)·log σ(−x)); its minimum is where σ(x) = p. At p = 1 it is the paper's loss; at p = ½ it pulls x to 0.
2. Weights multiply an example's whole loss, and the sum is divided by the *number* of examples, not by the sum of the weights. So a
   weight means the same in whatever batch the example lands: a batch of ten examples of weight 0.1 moves the model a tenth as much as
   ten of weight 1, and a batch of weight 0 doesn't move it. (Divided by the sum of the weights both would move it fully, or be 0/0.)
   The number is that of the whole optimizer step, over all accumulated micro-batches and processes: 8 × 1 is 1 × 8, also when the last
   micro-batch is short.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def soft_label_loss(x_B: "Tensor", p_chosen_B: "Tensor", margin_B: "Tensor | None" = None) -> "Tensor":
    """Return −(p·log σ(x − m) + (1−p)·log σ(−x − m)) for each pair: cross-entropy of a Bradley–Terry model under a soft label.

    Swapping a pair (x → −x, p → 1−p) leaves it as it is.

    Args:
        x_B: log-odds that chosen is better, (B,); any real.
        p_chosen_B: the label, (B,), in [0, 1]; 1 means chosen is certainly better, ½ that nothing is known.
        margin_B: how far apart the two must be before the loss fades (Llama 2, eq. 2), (B,), at least 0.

    Returns:
        (B,), at least 0 in float32 or better.
    """
    from torch.nn.functional import logsigmoid

    x_B, p_chosen_B = x_B.float(), p_chosen_B.float()
    m_B = 0.0 if margin_B is None else margin_B.float()
    return -(p_chosen_B * logsigmoid(x_B - m_B) + (1.0 - p_chosen_B) * logsigmoid(-x_B - m_B))


def weighted_mean(loss_B: "Tensor", weight_B: "Tensor", count: "Tensor | float | None" = None) -> "Tensor":
    """Return Σ weight·loss / count.

    Args:
        loss_B: (B,).
        weight_B: (B,), at least 0.
        count: examples in the whole optimizer step; None takes B.
    """
    return (weight_B.float() * loss_B).sum() / (loss_B.numel() if count is None else count)


def reward_loss(
    chosen_B: "Tensor",
    rejected_B: "Tensor",
    p_chosen_B: "Tensor",
    weight_B: "Tensor",
    *,
    center: float = 0.0,
    margin_B: "Tensor | None" = None,
    count: "Tensor | float | None" = None,
) -> "Tensor":
    """Return the Bradley–Terry loss of a reward model with soft labels and weights.

    Args:
        chosen_B: scores of the chosen responses, (B,).
        rejected_B: scores of the rejected ones, (B,).
        p_chosen_B: labels in [0, 1], (B,).
        weight_B: at least 0, (B,).
        center: coefficient of (chosen + rejected)², which keeps scores near 0 (arXiv 2312.09244, §2); 0 leaves them free.
        margin_B: as in `soft_label_loss`.
        count: as in `weighted_mean`.

    Returns:
        A scalar.
    """
    loss_B = soft_label_loss(chosen_B - rejected_B, p_chosen_B, margin_B)
    if center:
        loss_B = loss_B + center * (chosen_B.float() + rejected_B.float()) ** 2
    return weighted_mean(loss_B, weight_B, count)


def dpo_loss(
    chosen_logratio_B: "Tensor",
    rejected_logratio_B: "Tensor",
    p_chosen_B: "Tensor",
    weight_B: "Tensor",
    *,
    beta: float,
    count: "Tensor | float | None" = None,
) -> "Tensor":
    """Return the DPO loss (arXiv 2305.18290, eq. 7) with soft labels and weights.

    Args:
        chosen_logratio_B: log π(chosen) − log π_ref(chosen), summed over the completion's tokens, in nats, (B,).
        rejected_logratio_B: the same for rejected, (B,).
        p_chosen_B: labels in [0, 1], (B,).
        weight_B: at least 0, (B,).
        beta: inverse strength of the pull away from the reference, above 0; higher stays closer to it.
        count: as in `weighted_mean`.

    Returns:
        A scalar.
    """
    return weighted_mean(soft_label_loss(beta * (chosen_logratio_B - rejected_logratio_B), p_chosen_B), weight_B, count)
