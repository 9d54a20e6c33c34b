"""The `constitution` reward: the judge's log-odds that one response follows the principles.

As in `pointwise-contrast`, it is half the difference of the log-odds of Yes to a principle's two questions. A reward compares completions
of one prompt, so principles are drawn by prompt, and all completions of a prompt are judged by the same principles.
"""

from cai.core.flow import together
from cai.errors import ConstitutionError
from cai.ids import rendezvous_order
from cai.judge.choices import yes_log_odds
from cai.judge.protocol import ProtocolContext, bounded, pool_log_odds
from cai.models.base import TextModel
from cai.models.templates import Templates
from cai.recipe import FeedbackConfig
from cai.records import Constitution, Principle, Prompt


def principles_for(prompt: Prompt, constitution: Constitution, config: FeedbackConfig, run_seed: int) -> tuple[Principle, ...]:
    """Return the principles by which responses to a prompt are judged. Raises `ConstitutionError` if none applies."""
    applying = constitution.for_kind(prompt.kind)
    if not applying:
        raise ConstitutionError(f"constitution {constitution.id}: no principle applies to {prompt.kind} prompts such as {prompt.id}")
    if config.principles == "ensemble":
        return applying
    order = rendezvous_order(prompt.id, [(p.id, p.weight) for p in applying], run_seed)
    return tuple(constitution.principle(i) for i in order[: config.per_label])


async def adherence(prompt: Prompt, response: str, constitution: Constitution, asking: ProtocolContext) -> float:
    """Return the judge's log-odds that a response follows the principles, pooled by their weights (equally if they were drawn).

    Args:
        prompt: the prompt; its kind and id select the principles.
        response: the response to judge.
        constitution: the principles.
        asking: the judge with its templates, whether to use all principles that apply or to draw some, and the seed of the draw.

    Raises:
        ReplyError: an answer of the judge can't be parsed.
        ConstitutionError: no principle applies to the prompt's kind.
    """
    principles = principles_for(prompt, constitution, asking.config, asking.run_seed)
    follows = await together(principle_log_odds(p, prompt, response, asking.model, asking.templates) for p in principles)
    weights = [1.0 if asking.config.principles == "sample" else p.weight for p in principles]
    return pool_log_odds(follows, weights)


async def principle_log_odds(principle: Principle, prompt: Prompt, response: str, model: TextModel, templates: Templates) -> float:
    """Return the judge's log-odds that a response follows one principle. Raises `ReplyError` if an answer can't be parsed."""
    yes, no = await together(
        yes_log_odds(prompt, response, question, principle.statement, model, templates)
        for question in (principle.ask_positive, principle.ask_negative)
    )
    return bounded((yes - no) / 2)
