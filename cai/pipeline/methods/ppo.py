"""PPO on the training prompts against the reward ensemble (Bai et al. 2022, §4.2)."""

from functools import partial

from cai.pipeline.context import Context
from cai.pipeline.policy_costs import ppo_training
from cai.pipeline.policy_method import PolicyMethod, ensemble_settings, no_room, reads_of_samples
from cai.pipeline.rewarding import log_monitor_point, monitor_prompts, warn_if_unmonitored
from cai.pipeline.training import progress_of, trained
from cai.recipe import GOLD
from cai.records import Prompt


def ppo(c: Context) -> dict[str, int]:
    """Train on the training prompts; watched, where there is a gold reward model."""
    from cai.train.rl.ppo import train_ppo

    warn_if_unmonitored(c)
    result = train_ppo(
        c.recipe.policy,
        c.recipe.trained,
        c.run.model("sft"),
        [c.run.model(name) for name in c.recipe.reward.member_names],
        c.recipe.reward,
        list(c.read("prompts", Prompt)),
        c.run.model("policy"),
        c.recipe.seed,
        progress_of(c),
        gold=c.run.model(GOLD) if c.recipe.gold else None,
        monitor_prompts=monitor_prompts(c) if c.recipe.gold else (),
        warn=c.reporter.warn,
        on_observation=partial(log_monitor_point, c),
    )
    return trained(c, result, c.run.model("policy"))


METHOD = PolicyMethod(
    "ppo",
    ppo,
    reads_of_samples,
    lambda recipe: (recipe.policy, ensemble_settings(recipe), None),
    ppo_training,
    problems=lambda recipe: no_room(recipe, "ppo.response_length", recipe.policy.ppo),
)
