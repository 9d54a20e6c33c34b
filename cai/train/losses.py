"""Losses of preference learning, as pure functions of tensors.

Shapes: B is the number of pairs in the batch. A label is a probability `p_chosen` in [0, 1]; a weight is at least 0.

Departures from the papers and from TRL, which has neither soft labels nor weights:

1. Labels are soft. The negative log-likelihood −log σ(x) of "chosen is better" becomes its expectation under the label,
   −(p·log σ(x) + (1−p)·log σ(−x)), with its minimum at σ(x) = p. At p = 1 it is the paper's loss; at p = ½ it pulls x to 0.
2. Weights multiply an example's whole loss, and the sum is divided by the *number* of examples, not by the sum of the weights, so a
   weight has the same effect in any batch. The number is that of the whole optimizer step, over all accumulated micro-batches and
   processes: 8 × 1 equals 1 × 8, also when the last micro-batch is short.
3. In IPO log-ratios are per token. TRL does the same, on the advice of the paper's authors.
"""

from typing import TYPE_CHECKING

from cai.recipe import DPOLoss

if TYPE_CHECKING:
    from torch import Tensor


def soft_label_loss(x_B: "Tensor", p_chosen_B: "Tensor", margin_B: "Tensor | None" = None) -> "Tensor":
    """Return −(p·log σ(x − m) + (1−p)·log σ(−x − m)) for each pair: cross-entropy of a Bradley–Terry model under a soft label.

    Swapping a pair (x → −x, p → 1−p) doesn't change the loss.

    Args:
        x_B: log-odds that chosen is better, (B,); any real.
        p_chosen_B: the label, (B,), in [0, 1]; 1: chosen is certainly better, ½: no preference. (`unsmoothed_label` may leave this range.)
        margin_B: margin m of the loss (Llama 2, eq. 2), (B,), at least 0.

    Returns:
        (B,), at least 0 for labels in [0, 1], in float32 or better.
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
        center: coefficient of (chosen + rejected)², which keeps scores near 0 (arXiv 2312.09244, §2); 0 turns it off.

    Returns:
        A scalar.
    """
    loss_B = soft_label_loss(chosen_B - rejected_B, p_chosen_B, margin_B)
    if center:
        loss_B = loss_B + center * (chosen_B.float() + rejected_B.float()) ** 2
    return weighted_mean(loss_B, weight_B, count)


def unsmoothed_label(p_chosen_B: "Tensor", flip: float) -> "Tensor":
    """Return (p − ε) / (1 − 2ε): the label before a fraction ε of the labels was flipped, which made it p.

    In a loss that is linear in the label this is robust DPO (arXiv 2403.00409, eq. 12), whose expectation over flipped labels is the
    loss under the true labels. The result is outside [0, 1] for p < ε or p > 1 − ε: at p = 1 the loss is unbounded below.

    Args:
        p_chosen_B: labels, (B,), in [0, 1].
        flip: ε, in [0, ½).
    """
    return (p_chosen_B - flip) / (1.0 - 2.0 * flip)


def dpo_loss(
    chosen_logratio_B: "Tensor",
    rejected_logratio_B: "Tensor",
    p_chosen_B: "Tensor",
    *,
    beta: float,
    loss: DPOLoss = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_tokens_B: "Tensor | None" = None,
    rejected_tokens_B: "Tensor | None" = None,
) -> "Tensor":
    """Return a loss of the DPO family for each pair, under its soft label.

    Let m = chosen − rejected log-ratio.

    - `sigmoid` (arXiv 2305.18290, eq. 7): cross-entropy of σ(β·m) under the label.
    - `robust`: the same, under the label from `unsmoothed_label`.
    - `sigmoid_norm`: `sigmoid` with log-ratios per token.
    - `ipo` (arXiv 2310.12036, eq. 17): p·(m − 1/2β)² + (1−p)·(m + 1/2β)² with log-ratios per token; its minimum is at m = (2p−1)/2β.

    Args:
        chosen_logratio_B: log π(chosen) − log π_ref(chosen), summed over the completion's tokens, in nats, (B,).
        rejected_logratio_B: the same for rejected, (B,).
        p_chosen_B: labels in [0, 1], (B,).
        beta: strength of the pull towards the reference, above 0; higher stays closer to it. The τ of `ipo`.
        label_smoothing: fraction of labels assumed to be flipped, in [0, ½), for which `robust` corrects; the others ignore it.
        chosen_tokens_B: length of chosen in tokens, (B,); needed by `ipo` and `sigmoid_norm`.
        rejected_tokens_B: the same for rejected.

    Returns:
        (B,), in float32 or better.
    """
    chosen_B, rejected_B, p_B = chosen_logratio_B.float(), rejected_logratio_B.float(), p_chosen_B.float()
    if loss == "robust":
        p_B = unsmoothed_label(p_B, label_smoothing)
    if loss in ("ipo", "sigmoid_norm"):
        if chosen_tokens_B is None or rejected_tokens_B is None:
            raise ValueError(f"loss {loss} is per token and needs the completions' lengths")
        chosen_B, rejected_B = chosen_B / chosen_tokens_B, rejected_B / rejected_tokens_B
    margin_B = chosen_B - rejected_B
    if loss == "ipo":
        target = 1.0 / (2.0 * beta)
        return p_B * (margin_B - target) ** 2 + (1.0 - p_B) * (margin_B + target) ** 2
    return soft_label_loss(beta * margin_B, p_B)


def soft_target_loss(logits_TV: "Tensor", teacher_logits_TV: "Tensor", ids_T: "Tensor", forced_T: "Tensor") -> "Tensor":
    """Return the loss of context distillation for each token (Askell et al. 2021, arXiv 2112.00861, §2.2): KL(teacher ‖ student).

    It is the forward KL divergence over the whole vocabulary, at temperature 1. A sampled token is one draw from the teacher's
    distribution, which says more, and has no noise for the student to learn. A forced token wasn't the teacher's choice: its loss is
    −log p(token).

    Args:
        logits_TV: the student's, (T, V).
        teacher_logits_TV: the teacher's, for the same tokens after its own prompt, (T, V), without gradient.
        ids_T: the tokens that follow, (T,).
        forced_T: whether a token was given and not sampled, (T,).

    Returns:
        (T,), at least 0, in nats, in float32.
    """
    logps_TV = logits_TV.float().log_softmax(-1)
    teacher_logps_TV = teacher_logits_TV.float().log_softmax(-1)
    kl_T = (teacher_logps_TV.exp() * (teacher_logps_TV - logps_TV)).sum(-1)
    nll_T = -logps_TV.gather(-1, ids_T[:, None])[:, 0]
    return nll_T.where(forced_T, kl_T)


def kto_loss(logratio_B: "Tensor", kl: "Tensor", p_desirable_B: "Tensor", *, beta: float) -> "Tensor":
    """Return the KTO loss (arXiv 2402.01306, eq. 7, both λ 1) of single completions, in expectation under soft labels.

    A desirable completion costs 1 − σ(β·(r − z)), an undesirable one 1 − σ(β·(z − r)) = σ(β·(r − z)).

    Args:
        logratio_B: r, log π − log π_ref of a completion, in nats, (B,).
        kl: z, the batch's estimate of KL(π‖π_ref), at least 0 and without gradient, a scalar.
        p_desirable_B: probability that the completion is desirable, in [0, 1], (B,).
        beta: rate at which the value saturates, above 0.

    Returns:
        (B,), in [0, 1].
    """
    value_B = (beta * (logratio_B.float() - kl)).sigmoid()
    p_B = p_desirable_B.float()
    return p_B * (1.0 - value_B) + (1.0 - p_B) * value_B
