"""PPO on the training prompts against the reward ensemble (Bai et al. 2022, §4.2)."""

import math
from dataclasses import replace
from functools import partial

from msgspec import structs

from cai.pipeline.context import Context
from cai.pipeline.costs import Costs, StagePlan, joined, uncounted, written
from cai.pipeline.memory import read_dimensions, training_bytes
from cai.pipeline.policy_method import PolicyMethod, ensemble_settings, no_room, reads_of_samples
from cai.pipeline.rewarding import log_monitor_point, monitor_prompts, warn_if_unmonitored
from cai.pipeline.speed import device
from cai.pipeline.training import policy_job, trained
from cai.recipe import GOLD, SamplingSpec
from cai.records import Prompt


def ppo(c: Context) -> dict[str, int]:
    """Train on the training prompts; watched, where there is a gold reward model."""
    from cai.train.rl.ppo import PPOWatch, train_ppo

    warn_if_unmonitored(c)
    members, prompts = [c.run.model(name) for name in c.recipe.reward.member_names], list(c.read("prompts", Prompt))
    watch = PPOWatch(c.run.model(GOLD), monitor_prompts(c), partial(log_monitor_point, c)) if c.recipe.gold else None
    result = train_ppo(policy_job(c), members, c.recipe.reward, prompts, watch)
    return trained(c, result, c.run.model("policy"))


def ppo_work(c: Costs) -> StagePlan:
    """Return the cost of PPO: a step samples responses, scores them with every role, and trains two roles on them several times."""
    recipe, config, settings = c.recipe, c.recipe.policy, c.recipe.policy.ppo
    per_step = config.batch_size * config.gradient_accumulation * settings.num_mini_batches
    steps = math.ceil((settings.total_episodes or max(1, int(config.epochs * c.prompts))) / per_step)
    answer = written(min(settings.most_tokens, config.max_length))
    frozen = 1 + recipe.reward.members + recipe.wants_watch  # the reference, the reward models, gold
    passes, once = 2 * settings.num_ppo_epochs, structs.replace(config, epochs=1.0)
    train = c.training(once, passes * steps * per_step, c.prompt, (answer,), (2 + frozen) / passes)
    sampler = structs.replace(recipe.trained, precision=config.precision, batch_size=settings.local_rollout_forward_batch_size)
    samples = c.answers(sampler, steps * per_step, c.prompt, SamplingSpec(max_tokens=settings.most_tokens))
    both, shape = replace(joined("", train, uncounted(samples)), train_steps=steps), read_dimensions(recipe.trained)
    if shape is None:
        return both
    wide = structs.replace(config, lora=structs.replace(config.lora, rank=2 * config.lora.rank))  # as large as the two trained adapters
    tokens = config.batch_size * min((c.prompt + answer).longest, config.max_length)
    memory = training_bytes(shape, wide, tokens, 0.0, device(), adapters=1 + math.ceil(frozen / 2))
    return replace(both, memory_bytes=max(round(memory), samples.memory_bytes or 0))


METHOD = PolicyMethod(
    "ppo",
    ppo,
    reads_of_samples,
    lambda recipe: (recipe.policy, ensemble_settings(recipe), None),
    ppo_work,
    problems=lambda recipe: no_room(recipe, "ppo.response_length", recipe.policy.ppo),
)
