"""GRPO (arXiv 2402.03300): the policy learns from its own samples, by what the recipe rewards; the KL to the reference is in the loss."""

from dataclasses import replace
from functools import partial
from typing import Any

from cai.pipeline.costs import Costs, StagePlan, joined, uncounted, written
from cai.pipeline.memory import read_dimensions, weight_bytes
from cai.pipeline.policy_method import PolicyMethod, ensemble_settings, online_problems, reads_of_samples, term_sources, with_judge
from cai.pipeline.training import train_on_rewards
from cai.recipe import SamplingSpec
from cai.train.rl.online_method import OnlineMethod


def online_work(c: Costs) -> StagePlan:
    """Return the cost of GRPO and RLOO: samples, scored by the reward terms; one base in memory for reward models and one for gold."""
    recipe, config, online = c.recipe, c.recipe.policy, c.recipe.policy.online
    completions, answer = c.prompts * online.num_generations, written(online.max_tokens)
    sampling = SamplingSpec(max_tokens=online.max_tokens, thinking_tokens=online.thinking_tokens)
    samples = c.answers(recipe.trained, c.prompts * config.epochs, c.prompt, sampling, online.num_generations)
    scores = c.scores(completions * config.epochs, c.prompt, answer, online.num_generations)
    train = c.training(config, completions, c.prompt, (written(online.most_tokens),), config.epochs)
    both = joined("", train, uncounted(samples), scores, *c.term_calls(completions * config.epochs, answer))
    shape, bases = read_dimensions(recipe.trained), 1 + (recipe.gold is not None)
    more = bases * weight_bytes(shape, recipe.reward.precision) if shape else 0
    return replace(both, memory_bytes=None if both.memory_bytes is None else round(both.memory_bytes + more))


def grpo_classes() -> tuple[Any, Any]:
    """Return the trainer and the class of its arguments."""
    from trl import GRPOConfig

    from cai.train.rl.trainers import GRPORun

    return GRPORun, GRPOConfig


GRPO = OnlineMethod(
    "GRPO, the KL to the reference in the loss",
    beta=0.04,  # §4.2 of the paper
    classes=grpo_classes,
    arguments=lambda online: {"loss_type": online.loss_type, "scale_rewards": online.scale_rewards},
)
"""Group relative policy optimization, for `train_online`."""
METHOD = PolicyMethod(
    "grpo",
    partial(train_on_rewards, method=GRPO),
    reads_of_samples,
    lambda recipe: (recipe.policy, ensemble_settings(recipe), recipe.feedback),
    online_work,
    models=with_judge,
    sources=term_sources,
    problems=online_problems,
)
