"""Values worked out by hand, and the symmetries that the losses must keep."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from cai.train.losses import dpo_loss, reward_loss, soft_label_loss, weighted_mean

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
    assert dpo_loss(tensor([3.0]), tensor([-1.0]), ONE, ONE, beta=0.1).item() == pytest.approx(math.log1p(math.exp(-0.4)))


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
    whole = dpo_loss(chosen, rejected, p, w, beta=0.5)
    parts = [dpo_loss(*part, beta=0.5, count=8) for part in zip(*(t.split(cuts) for t in (chosen, rejected, p, w)), strict=True)]
    torch.testing.assert_close(sum(parts), whole)
