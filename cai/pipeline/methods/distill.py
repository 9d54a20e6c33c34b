"""On-policy self-distillation (arXiv 2601.19897): its own answers, and what it would say if it were told the principles."""

from cai.generate.distill import principles_in_context, template_of, under_principles
from cai.pipeline.context import Context
from cai.pipeline.policy_costs import distill_training
from cai.pipeline.policy_method import PolicyMethod, no_room
from cai.pipeline.training import progress_of, trained
from cai.recipe import Recipe
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
    out = c.run.model("policy")
    result = train_self_distilled(
        c.recipe.policy, c.recipe.trained, c.run.model("sft"), prompts, told, out, c.recipe.seed, progress_of(c), warn=c.reporter.warn
    )
    return trained(c, result, out)


def distill_problems(recipe: Recipe) -> list[str]:
    """Refuse answers that leave no room for a prompt."""
    return no_room(recipe, "online.max_tokens", recipe.policy.online)


METHOD = PolicyMethod(
    "distill",
    distill,
    lambda recipe: ("data/prompts.jsonl", "models/sft"),
    lambda recipe: (recipe.policy, recipe.distill.placement, recipe.distill.kinds, recipe.distill.per_prompt),
    distill_training,
    problems=distill_problems,
    watch=False,
)
