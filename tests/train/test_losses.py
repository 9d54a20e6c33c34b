"""Values worked out by hand, and the symmetries that the losses must keep."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from cai.recipe import DPOLoss
from cai.train.losses import (
    dpo_loss,
    kto_loss,
    reward_loss,
    soft_label_loss,
    soft_target_loss,
    unsmoothed_label,
    weighted_mean,
)

reals = st.floats(-30, 30)
probabilities = st.floats(0, 1)
ONE = torch.ones(1)


def gradient_at(x: float, p: float) -> float:
    x_B = tensor([x], requires_grad=True)
    soft_label_loss(x_B, tensor([p])).sum().backward()
    assert x_B.grad is not None
    return x_B.grad.item()


def test_hard_label_is_the_papers_loss() -> None:
    # −log σ(2) = log(1 + e⁻²)
    assert soft_label_loss(tensor([2.0]), ONE).item() == pytest.approx(math.log1p(math.exp(-2.0)), abs=1e-7)


def test_label_of_a_half_at_zero_is_log_two_without_gradient() -> None:
    assert soft_label_loss(tensor([0.0]), tensor([0.5])).item() == pytest.approx(math.log(2.0))
    assert gradient_at(0.0, 0.5) == 0.0


def test_minimum_is_where_the_model_says_the_label() -> None:
    # σ(x) = 0.8 at x = log 4; there the loss is the label's entropy, 0.8·log(1/0.8) + 0.2·log(1/0.2)
    x = math.log(4.0)
    assert gradient_at(x, 0.8) == pytest.approx(0.0, abs=1e-7)
    assert gradient_at(x - 0.1, 0.8) < 0 < gradient_at(x + 0.1, 0.8)
    assert soft_label_loss(tensor([x]), tensor([0.8])).item() == pytest.approx(0.8 * math.log(1.25) + 0.2 * math.log(5.0))


def test_gradient_is_probability_minus_label() -> None:
    # d/dx −(p log σ(x) + (1−p) log σ(−x)) = σ(x) − p
    assert gradient_at(0.7, 0.3) == pytest.approx(1 / (1 + math.exp(-0.7)) - 0.3, abs=1e-6)


def test_margin_shifts_both_sides() -> None:
    # p = ¾, x = 1, m = 1: −(¾ log σ(0) + ¼ log σ(−2)) = ¾ log 2 + ¼ log(1 + e²)
    loss = soft_label_loss(tensor([1.0]), tensor([0.75]), tensor([1.0]))
    assert loss.item() == pytest.approx(0.75 * math.log(2.0) + 0.25 * math.log1p(math.exp(2.0)))


@given(reals, probabilities, st.floats(0, 5))
def test_swapping_a_pair_changes_nothing(x: float, p: float, m: float) -> None:
    there = soft_label_loss(tensor([x], dtype=torch.float64), tensor([p], dtype=torch.float64), tensor([m]))
    back = soft_label_loss(tensor([-x], dtype=torch.float64), tensor([1 - p], dtype=torch.float64), tensor([m]))
    torch.testing.assert_close(there, back, rtol=1e-5, atol=1e-5)


def test_far_out_scores_stay_finite() -> None:
    assert soft_label_loss(tensor([1e4, -1e4]), tensor([1.0, 1.0])).tolist() == [0.0, 1e4]


def test_bfloat16_scores_are_reckoned_in_float32() -> None:
    assert soft_label_loss(tensor([0.5], dtype=torch.bfloat16), ONE).dtype == torch.float32


def test_reward_loss_with_centering() -> None:
    # scores 1 and 0.5: log(1 + e^−0.5) + 0.1·1.5²
    loss = reward_loss(tensor([1.0]), tensor([0.5]), ONE, ONE, center=0.1)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)) + 0.225)


def test_dpo_loss_is_beta_times_the_difference() -> None:
    # logratios 3 and −1, β = 0.1: log(1 + e^−0.4)
    assert dpo_loss(tensor([3.0]), tensor([-1.0]), ONE, beta=0.1).item() == pytest.approx(math.log1p(math.exp(-0.4)))


def test_robust_loss_undoes_the_flips_in_expectation() -> None:
    # ε = 0.1: (0.9·ℓ(x) − 0.1·ℓ(−x)) / 0.8 at p = 1; and 0.9 of it + 0.1 of the swapped pair's is the loss without flips
    x, flip = 0.4, 0.1
    right, wrong = math.log1p(math.exp(-x)), math.log1p(math.exp(x))
    robust = [dpo_loss(tensor([4.0]), tensor([0.0]), tensor([p]), beta=0.1, loss="robust", label_smoothing=flip).item() for p in (1.0, 0.0)]
    assert robust == pytest.approx([(0.9 * right - 0.1 * wrong) / 0.8, (0.9 * wrong - 0.1 * right) / 0.8])
    assert 0.9 * robust[0] + 0.1 * robust[1] == pytest.approx(right)
    assert unsmoothed_label(tensor([0.7 * 0.9 + 0.3 * 0.1]), flip).item() == pytest.approx(0.7)


def test_ipo_goes_by_token_and_has_its_minimum_where_the_label_says() -> None:
    # logratios 6 over 3 tokens and −4 over 2: m = 2 − (−2) = 4; τ = 0.25, so 1/2τ = 2: at p = 1 (4−2)² = 4; at p = ¾ ¾·4 + ¼·36 = 12
    lengths = {"chosen_tokens_B": tensor([3]), "rejected_tokens_B": tensor([2])}
    for p, expected in ((1.0, 4.0), (0.75, 12.0)):
        assert dpo_loss(tensor([6.0]), tensor([-4.0]), tensor([p]), beta=0.25, loss="ipo", **lengths).item() == pytest.approx(expected)
    # minimum at m = (2p − 1)/2τ = 1 for p = ¾: chosen 1 per token, rejected 0
    chosen = tensor([3.0], requires_grad=True)
    dpo_loss(chosen, tensor([0.0]), tensor([0.75]), beta=0.25, loss="ipo", **lengths).sum().backward()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_sigmoid_norm_goes_by_token() -> None:
    # 6 over 3 tokens and −4 over 2: σ(β·4) with β = 0.5
    loss = dpo_loss(
        tensor([6.0]), tensor([-4.0]), ONE, beta=0.5, loss="sigmoid_norm", chosen_tokens_B=tensor([3]), rejected_tokens_B=tensor([2])
    )
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2.0)))
    with pytest.raises(ValueError, match="lengths"):
        dpo_loss(ONE, ONE, ONE, beta=0.5, loss="ipo")


@given(st.tuples(reals, reals), probabilities, st.sampled_from(["sigmoid", "robust", "ipo", "sigmoid_norm"]))
def test_swapping_a_pair_changes_no_loss_of_the_family(logratios: tuple[float, float], p: float, loss: DPOLoss) -> None:
    chosen, rejected = (tensor([x], dtype=torch.float32) for x in logratios)
    five, two = tensor([5]), tensor([2])
    settings = {"beta": 0.3, "loss": loss, "label_smoothing": 0.2}
    told = dpo_loss(chosen, rejected, tensor([p]), chosen_tokens_B=five, rejected_tokens_B=two, **settings)
    swapped = dpo_loss(rejected, chosen, tensor([1.0 - p]), chosen_tokens_B=two, rejected_tokens_B=five, **settings)
    torch.testing.assert_close(told, swapped, rtol=1e-3, atol=1e-4)


def test_kto_by_hand() -> None:
    # r = 3, z = 1, β = 0.5: σ(1); desirable 1 − σ(1), undesirable σ(1), at p = ¾ in between; a z above r turns the saturation round
    s = 1 / (1 + math.exp(-1.0))
    for p, expected in ((1.0, 1 - s), (0.0, s), (0.75, 0.75 * (1 - s) + 0.25 * s)):
        assert kto_loss(tensor([3.0]), tensor(1.0), tensor([p]), beta=0.5).item() == pytest.approx(expected)
    assert kto_loss(tensor([1.0]), tensor(3.0), ONE, beta=0.5).item() == pytest.approx(s)


def test_weight_zero_has_no_value_and_no_gradient() -> None:
    chosen = tensor([1.0, -3.0], requires_grad=True)
    loss = reward_loss(chosen, tensor([0.0, 2.0]), torch.ones(2), tensor([1.0, 0.0]), center=0.5)
    loss.backward()
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1.0)) + 0.5) / 2)
    assert chosen.grad is not None
    assert chosen.grad[1].item() == 0.0
    assert chosen.grad[0].item() != 0.0


def test_mean_is_over_examples_not_over_weights() -> None:
    assert weighted_mean(tensor([2.0, 4.0]), tensor([0.1, 0.1])).item() == pytest.approx(0.3)


@pytest.mark.parametrize("cuts", [[8], [4, 4], [1] * 8, [3, 3, 2]])
def test_micro_batches_add_up_to_the_whole_batch(cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, p, w = torch.rand((4, 8), generator=generator)
    whole = weighted_mean(dpo_loss(chosen, rejected, p, beta=0.5), w)
    cut = zip(*(t.split(cuts) for t in (chosen, rejected, p, w)), strict=True)
    parts = [weighted_mean(dpo_loss(*sides, beta=0.5), weights, 8) for *sides, weights in cut]
    torch.testing.assert_close(sum(parts), whole)


def test_soft_targets_are_the_teachers_distribution_and_forced_tokens_their_likelihood() -> None:
    student_TV, teacher_TV = tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), tensor([[0.0, 0.0], [0.0, math.log(3.0)], [9.0, 0.0]])
    loss_T = soft_target_loss(student_TV, teacher_TV, tensor([0, 0, 1]), tensor([False, False, True]))
    by_hand = [0.0, 0.25 * math.log(0.5) + 0.75 * math.log(1.5), math.log(2.0)]
    assert loss_T.tolist() == pytest.approx(by_hand, abs=1e-6)


@given(st.lists(reals, min_size=3, max_size=3), st.lists(reals, min_size=3, max_size=3))
def test_soft_targets_pull_the_student_to_the_teacher(student: list[float], teacher: list[float]) -> None:
    student_TV = tensor([student], requires_grad=True)
    loss_T = soft_target_loss(student_TV, tensor([teacher]), tensor([0]), tensor([False]))
    loss_T.sum().backward()
    assert loss_T.item() >= -1e-5 and student_TV.grad is not None
    difference_TV = student_TV.detach().softmax(-1) - tensor([teacher]).softmax(-1)
    assert torch.allclose(student_TV.grad, difference_TV, atol=1e-5)
