"""PPO's arithmetic against values worked out by hand."""

import math

import pytest
import torch

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

TWO_ROWS = torch.tensor([[True, True, True], [True, False, False]])


def test_a_masked_mean_over_a_given_count_adds_up_over_parts() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]])
    assert masked_mean(values, TWO_ROWS) == 2.5
    parts = [masked_mean(values[i : i + 1], TWO_ROWS[i : i + 1], 4.0) for i in (0, 1)]
    assert sum(parts) == 2.5


def test_whitening_by_hand() -> None:
    # 1, 2, 3, 6 have mean 3 and squared distances 4 + 1 + 0 + 9 = 14, over n − 1: 14/3
    values, scale = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]]), math.sqrt(3 / 14)
    expected = torch.tensor([[-2 * scale, -scale, 0.0], [3 * scale, 0.0, 0.0]])
    torch.testing.assert_close(whiten(values, TWO_ROWS), expected)


def test_the_kl_is_the_log_ratio_of_the_sampled_token_without_bias() -> None:
    logps, ref = torch.tensor([[math.log(0.5), math.log(0.2)]]), torch.tensor([[math.log(0.25), math.log(0.4)]])
    torch.testing.assert_close(token_kl(logps, ref), torch.tensor([[math.log(2), -math.log(2)]]))
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    estimate = (p * token_kl(p.log()[None], q.log()[None])[0]).sum()
    assert float(estimate) == pytest.approx(float((p * (p / q).log()).sum()))


def test_a_missing_end_is_paid_for() -> None:
    scores, ended = torch.tensor([9.0, -9.0, 1.0]), torch.tensor([True, False, False])
    assert final_scores(scores, ended, missing_eos_penalty=1.0).tolist() == [9.0, -10.0, 0.0]
    assert final_scores(scores, ended, missing_eos_penalty=None).tolist() == [9.0, -9.0, 1.0]


def test_rewards_are_the_kl_at_each_token_and_the_score_at_the_last() -> None:
    kl = torch.tensor([[1.0, -2.0, 3.0], [4.0, 99.0, 99.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), kl, TWO_ROWS, 0.5)
    assert rewards.tolist() == [[-0.5, 1.0, 8.5], [18.0, 0.0, 0.0]]


def test_advantages_by_hand() -> None:
    # γ = ½, λ = ½. Row 0: δ2 = 8 − 4 = 4; δ1 = 2 + ½·4 − 2 = 2, A1 = 2 + ¼·4 = 3; δ0 = 1 + ½·2 − 1 = 1, A0 = 1 + ¼·3 = 1.75
    # Row 1 ends at once: A0 = 5 − 3 = 2, whatever stands in the padding
    rewards = torch.tensor([[1.0, 2.0, 8.0], [5.0, 77.0, 77.0]])
    values = torch.tensor([[1.0, 2.0, 4.0], [3.0, 88.0, 88.0]])
    advantages, returns = advantages_and_returns(rewards, values, TWO_ROWS, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[1.75, 3.0, 4.0], [2.0, 0.0, 0.0]]
    assert returns.tolist() == [[2.75, 5.0, 8.0], [5.0, 0.0, 0.0]]


def test_without_discount_and_bias_the_return_is_the_sum_of_what_follows() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[9.0, -3.0, 5.0]])
    _, returns = advantages_and_returns(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=1.0)
    assert returns.tolist() == [[7.0, 6.0, 4.0]]


def test_the_policy_loss_by_hand() -> None:
    # ratios 1.5, 1.5, 0.5 and 1; advantages 1 (clipped at 1.2), −1 (not clipped: the worse counts), −1 (clipped at 0.8), 2
    logps = torch.tensor([[1.5, 1.5, 0.5], [1.0, 7.0, 7.0]]).log()
    advantages = torch.tensor([[1.0, -1.0, -1.0], [2.0, 5.0, 5.0]])
    loss, clipped = policy_loss(logps, torch.zeros(2, 3), advantages, TWO_ROWS, cliprange=0.2, count=4.0)
    assert float(loss) == pytest.approx((-1.2 + 1.5 + 0.8 - 2.0) / 4)
    assert clipped.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_the_policy_gradient_is_the_advantage_where_nothing_is_clipped_and_zero_where_it_is() -> None:
    logps = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss, _ = policy_loss(
        logps, torch.zeros(1, 2), torch.tensor([[3.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool), cliprange=0.2, count=1.0
    )
    loss.backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [[-3.0, 0.0]]


def test_padding_that_would_overflow_does_no_harm() -> None:
    logps = torch.tensor([[0.0, 1000.0, 1000.0], [0.0, 1000.0, 1000.0]], requires_grad=True)
    mask = torch.tensor([[True, False, False]] * 2)
    loss, _ = policy_loss(logps, torch.zeros(2, 3), torch.ones(2, 3), mask, cliprange=0.2, count=2.0)
    loss.backward()
    assert loss.detach().item() == -1.0
    assert logps.grad is not None
    assert bool(logps.grad.isfinite().all())


def test_the_value_loss_by_hand() -> None:
    # old 0, return 2: a value of 1 is clipped to 0.2, whose error is larger; a value of −1 is further off free than clipped
    values, returns = torch.tensor([[1.0, -1.0, 0.1], [3.0, 9.0, 9.0]]), torch.tensor([[2.0, 2.0, 2.0], [3.0, 0.0, 0.0]])
    loss, clipped = value_loss(values, torch.zeros(2, 3), returns, TWO_ROWS, cliprange_value=0.2, count=4.0)
    # last: value 3 = return 3, but clipped to 0.2: error 2.8²
    assert float(loss) == pytest.approx(0.5 * (1.8**2 + 3.0**2 + 1.9**2 + 2.8**2) / 4)
    assert clipped.tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_explained_variance_by_hand() -> None:
    mask, returns = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((1, 4), 2.5), returns, mask) == 0.0
    # errors −½, ½, −½, ½: variance ¼ of 5/4
    assert explained_variance(returns + torch.tensor([[0.5, -0.5, 0.5, -0.5]]), returns, mask) == pytest.approx(0.8)
    assert explained_variance(returns, torch.ones(1, 4), mask) == 0.0


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(2.0, step, 10, 2) for step in range(11)]
    assert rates[:4] == [0.0, 1.0, 2.0, 1.75]
    assert rates[10] == 0.0
