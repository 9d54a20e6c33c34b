"""On-policy self-distillation (arXiv 2601.19897): its own answers, and what it would say if it were told the principles."""

import math

from msgspec import structs

from cai.generate.distill import principles_in_context, template_of, under_principles
from cai.pipeline.context import Context
from cai.pipeline.costs import Costs, StagePlan, joined, uncounted, written
from cai.pipeline.policy_method import PolicyMethod, no_room
from cai.pipeline.training import policy_job, trained
from cai.recipe import SamplingSpec
from cai.records import Prompt


def distill(c: Context) -> dict[str, int]:
    """Train on the prompts whose kind has principles: for others the teacher is told nothing."""
    from cai.train.rl.self_distill import train_self_distilled

    config, template = c.recipe.distill, template_of(c.templates, c.recipe.distill.placement)
    prompts = [p for p in c.read("prompts", Prompt) if p.kind in config.kinds and c.constitution.for_kind(p.kind)]
    told = {
        p.id: under_principles(p, principles_in_context(p, c.constitution, c.recipe.seed, config.per_prompt), template).messages
        for p in prompts
    }
    return trained(c, train_self_distilled(policy_job(c), prompts, told), c.run.model("policy"))


def distill_work(c: Costs) -> StagePlan:
    """Return the cost of on-policy self-distillation: one answer to a prompt and step, which a teacher reads once."""
    config, online = c.recipe.policy, c.recipe.policy.online
    per_step = config.batch_size * config.gradient_accumulation
    answers = per_step * min(config.distill.max_steps, math.ceil(config.epochs * c.prompts / per_step))
    samples = c.answers(c.recipe.trained, answers, c.prompt, SamplingSpec(max_tokens=online.most_tokens))
    once = structs.replace(config, epochs=1.0)
    return joined("", c.training(once, answers, c.prompt, (written(online.most_tokens),), 1, adapters=2), uncounted(samples))


METHOD = PolicyMethod(
    "distill",
    distill,
    lambda recipe: ("data/prompts.jsonl", "models/sft"),
    lambda recipe: (recipe.policy, recipe.distill.placement, recipe.distill.kinds, recipe.distill.per_prompt),
    distill_work,
    problems=lambda recipe: no_room(recipe, "online.max_tokens", recipe.policy.online),
    watch=False,
)
