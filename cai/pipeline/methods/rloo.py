"""RLOO (arXiv 2402.14740): the policy learns from its own samples, by what the recipe rewards; the KL to the reference is in the reward."""

from cai.pipeline.policy_costs import reward_training
from cai.pipeline.policy_method import PolicyMethod, ensemble_settings, online_problems, reads_of_samples, term_sources, with_judge
from cai.pipeline.training import train_on_rewards

METHOD = PolicyMethod(
    "rloo",
    train_on_rewards,
    reads_of_samples,
    lambda recipe: (recipe.policy, ensemble_settings(recipe), recipe.feedback),
    reward_training,
    models=with_judge,
    sources=term_sources,
    problems=online_problems,
)
