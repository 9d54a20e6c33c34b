"""DPO in rounds, each on pairs that the policy of the round before answered and the judge or the reward models labelled."""

from cai.pipeline.context import Context
from cai.pipeline.policy_costs import round_training
from cai.pipeline.policy_method import PolicyMethod, ensemble_settings, judge_sources, with_judge
from cai.pipeline.reward_models import reward_models
from cai.pipeline.rewarding import warn_if_unmonitored
from cai.pipeline.training import progress_of, trained
from cai.recipe import Recipe


def online_dpo(c: Context) -> dict[str, int]:
    """Train in rounds."""
    from cai.pipeline.online_dpo import train_rounds

    warn_if_unmonitored(c)
    return {"rounds": c.recipe.policy.rounds.count, **trained(c, train_rounds(c, progress_of(c)), c.run.model("policy"))}


def online_dpo_reads(recipe: Recipe) -> tuple[str, ...]:
    """Return what a run's rounds read: the reward models too, where these label."""
    judges = reward_models(recipe) if recipe.policy.rounds.labels == "reward" else ()
    return ("data/prompts.jsonl", "data/eval_prompts.jsonl", "models/sft", *judges)


METHOD = PolicyMethod(
    "online-dpo",
    online_dpo,
    online_dpo_reads,
    lambda recipe: (recipe.policy, recipe.pairs, recipe.feedback, recipe.preferences, ensemble_settings(recipe)),
    round_training,
    models=with_judge,
    sources=judge_sources,
    watch=False,
    rounds=True,
)
