"""DPO on soft labels (arXiv 2305.18290), or another of its family; the SFT adapter is the reference."""

from cai.pipeline.context import Context
from cai.pipeline.policy_method import PolicyMethod, reads_of_pairs, settings_of_pairs
from cai.pipeline.training import train_on_pairs


def dpo(c: Context) -> dict[str, int]:
    """Train on the run's preferences."""
    from cai.train.dpo import train_dpo

    return train_on_pairs(c, train_dpo)


METHOD = PolicyMethod(
    "dpo",
    dpo,
    reads_of_pairs,
    settings_of_pairs,
    lambda costs: costs.pair_training(costs.pairs),
)
