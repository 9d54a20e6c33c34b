"""KTO (arXiv 2402.01306) on the two sides of the same pairs."""

from cai.pipeline.context import Context
from cai.pipeline.costs import Costs, StagePlan
from cai.pipeline.policy_method import PolicyMethod, reads_of_pairs, settings_of_pairs
from cai.pipeline.training import train_on_pairs
from cai.recipe import Recipe


def kto(c: Context) -> dict[str, int]:
    """Train on both sides of the run's preferences."""
    from cai.train.kto import train_kto

    return train_on_pairs(c, train_kto)


def kto_work(c: Costs) -> StagePlan:
    """Return the cost of a training on single sides, each with its own prompt and with another's, under two models; one of four trains."""
    return c.pair_training(2 * c.pairs, 1, 3 * c.recipe.policy.epochs)


def kto_problems(recipe: Recipe) -> list[str]:
    """Refuse a batch of one."""
    small = recipe.policy.batch_size < 2
    return ["policy.batch_size: 1, and KTO estimates a divergence over a batch. Make it 2 or more"] if small else []


METHOD = PolicyMethod("kto", kto, reads_of_pairs, settings_of_pairs, kto_work, problems=kto_problems)
