"""Intervals over items that come in clusters: coverage where a prompt has many pairs, and no change where each has one."""

import numpy as np
import pytest

from cai.stats import clustered_half_width, clustered_share, paired_bootstrap, wilson
from cai.train.reward.metrics import measure_margins


@pytest.mark.parametrize(
    ("prompts", "per_prompt", "correlation", "mean"), [(20, 28, 0.1, 0.7), (10, 28, 0.1, 0.7), (50, 28, 0.1, 0.7), (20, 4, 0.3, 0.65)]
)
def test_a_shares_interval_covers_the_truth_where_a_prompt_has_many_pairs(
    prompts: int, per_prompt: int, correlation: float, mean: float
) -> None:
    generator, k = np.random.default_rng(0), (1 - correlation) / correlation
    clusters = [i for i in range(prompts) for _ in range(per_prompt)]
    covered, by_pair, differences = [], [], []
    for trial in range(300):
        chance = generator.beta(mean * k, (1 - mean) * k, prompts)
        values = (generator.random(len(clusters)) < chance[clusters]).astype(float).tolist()
        low, high = clustered_share(values, clusters)
        covered.append(low <= mean <= high)
        low, high = wilson(sum(values), len(values))
        by_pair.append(low <= mean <= high)
        if trial < 60:
            _, low, high = paired_bootstrap(values, trial, clusters)
            differences.append(low <= mean <= high)
    assert 0.92 < np.mean(covered) > np.mean(by_pair)
    assert np.mean(differences) > 0.88


def test_items_of_their_own_cluster_are_as_without_clusters() -> None:
    values = [1.0, 0.0, 0.5, 1.0, 1.0]
    assert clustered_share(values, "abcde") == wilson(3.5, 5)
    assert paired_bootstrap(values, 0, "abcde") == paired_bootstrap(values, 0)


def test_copies_of_an_item_add_nothing() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    copied = clustered_share(values * 10, list(range(8)) * 10)
    assert copied[0] < wilson(6, 8)[0] and copied[1] > wilson(6, 8)[1]  # a little wider, for the estimated variance
    assert clustered_share([1.0] * 40, list(range(4)) * 10) == wilson(4, 4)


def test_one_cluster_says_nothing() -> None:
    _, low, high = paired_bootstrap([1.0, 0.5, 1.0], 0, "ppp")
    assert low < 0 < high
    assert clustered_half_width([1.0, 0.5], "pp") is None
    assert clustered_share([1.0, 1.0], "pp") == wilson(1, 1)


def test_a_reward_models_intervals_are_over_conversations() -> None:
    margins = [1.0, 1.0, 1.0, -1.0] * 10
    alone, together = (measure_margins(margins, [1.0] * 40, c) for c in (None, [str(i % 4) for i in range(40)]))
    assert (alone.accuracy, alone.low, alone.high) == (together.accuracy, *wilson(30, 40))
    assert together.low < alone.low < alone.high < together.high
    assert together.overconfidence_low < alone.overconfidence_low
