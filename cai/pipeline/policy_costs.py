"""What training a policy costs, by method. A method declares one of these functions, or its own."""

import math
from dataclasses import replace

from msgspec import structs

from cai.pipeline.costs import Costs, StagePlan, Tokens, joined, uncounted, written
from cai.pipeline.memory import read_dimensions, training_bytes, weight_bytes
from cai.pipeline.speed import device
from cai.recipe import ModelSpec, Recipe, SamplingSpec
from cai.train.rl.terms import TERMS


def adapted_spec(recipe: Recipe) -> ModelSpec:
    """Return the spec of the trained model with an adapter of the run."""
    return structs.replace(recipe.trained, adapter="models/sft")


def pair_training(c: Costs, examples: float, sides: int = 2, passes: float = 1.0) -> StagePlan:
    """Return the cost of a training on pairs from the SFT adapter, whose shape it has. A frozen copy is the reference.

    Args:
        passes: forward passes of the reference over all examples; DPO keeps its log-probabilities after the first epoch.
    """
    recipe = c.recipe
    lora = structs.replace(recipe.policy.lora, layers=recipe.sft.lora.layers)
    answers = (written(recipe.pairs.sampling.max_tokens),) * sides
    return c.training(structs.replace(recipe.policy, lora=lora), examples, c.prompt, answers, passes, adapters=2)


def round_training(c: Costs) -> StagePlan:
    """Return the cost of DPO in rounds: each samples pairs, labels them and trains on them."""
    recipe, rounds, sampling = c.recipe, c.recipe.policy.rounds, c.recipe.pairs.sampling
    drawn = min(c.prompts, rounds.prompts or c.prompts) * recipe.pairs.per_prompt
    answer, samples = written(sampling.max_tokens), c.answers(adapted_spec(recipe), drawn, c.prompt, sampling, 2)
    labels = c.judged(drawn, c.prompt, answer) if rounds.labels == "judge" else c.scores(2 * drawn, c.prompt, answer, 2)
    return joined("", *[samples, labels, pair_training(c, drawn)] * rounds.count)


def reward_training(c: Costs) -> StagePlan:
    """Return the cost of GRPO and RLOO: samples, scored by the reward terms; one base in memory for reward models and one for gold."""
    recipe, config, online = c.recipe, c.recipe.policy, c.recipe.policy.online
    completions, answer = c.prompts * online.num_generations, written(online.max_tokens)
    sampling = SamplingSpec(max_tokens=online.max_tokens, thinking_tokens=online.thinking_tokens)
    samples = c.answers(recipe.trained, c.prompts * config.epochs, c.prompt, sampling, online.num_generations)
    scores = c.scores(completions * config.epochs, c.prompt, answer, online.num_generations)
    asked = term_calls(c, completions * config.epochs, answer)
    train = c.training(config, completions, c.prompt, (written(online.most_tokens),), config.epochs)
    both = joined("", train, uncounted(samples), scores, *asked)
    shape, bases = read_dimensions(recipe.trained), 1 + (recipe.gold is not None)
    more = bases * weight_bytes(shape, recipe.reward.precision) if shape else 0
    return replace(both, memory_bytes=None if both.memory_bytes is None else round(both.memory_bytes + more))


def term_calls(c: Costs, completions: float, answer: Tokens) -> list[StagePlan]:
    """Return the cost of what the recipe's reward terms ask the judge about completions of this length."""
    return [
        (c if term.asks_principles else replace(c, asked=1)).asked_of_judge(term.work, completions, c.prompt, answer)
        for term in (TERMS.get(reward.term) for reward in c.recipe.policy.online.rewards)
    ]


def distill_training(c: Costs) -> StagePlan:
    """Return the cost of on-policy self-distillation: one answer to a prompt and step, which a teacher reads once."""
    config, online = c.recipe.policy, c.recipe.policy.online
    per_step = config.batch_size * config.gradient_accumulation
    answers = per_step * min(config.distill.max_steps, math.ceil(config.epochs * c.prompts / per_step))
    samples = c.answers(c.recipe.trained, answers, c.prompt, SamplingSpec(max_tokens=online.most_tokens))
    once = structs.replace(config, epochs=1.0)
    return joined("", c.training(once, answers, c.prompt, (written(online.most_tokens),), 1, adapters=2), uncounted(samples))


def ppo_training(c: Costs) -> StagePlan:
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
