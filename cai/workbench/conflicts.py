"""Ask a model which principles contradict each other where their words don't show it."""

from dataclasses import dataclass
from itertools import combinations

from cai.core.flow import together
from cai.errors import ReplyError
from cai.judge.choices import read_choices
from cai.judge.protocol import probability
from cai.models.base import TextModel
from cai.models.templates import Template, load_named_templates
from cai.records import Constitution, Principle, PromptKind
from cai.session import Session


@dataclass(frozen=True, slots=True)
class Conflict:
    """What a model says of two principles."""

    first: str
    second: str
    """Ids."""
    kinds: tuple[PromptKind, ...]
    """Kinds of prompt that draw both."""
    p: float
    """Probability in [0, 1] that one response can't follow both: the mean of the log-odds in both orders."""


async def find_conflicts(session: Session, constitution: Constitution) -> tuple[list[Conflict], int]:
    """Ask about every two principles that a prompt can draw together.

    Returns:
        All pairs, the likeliest conflict first, and the number of pairs that the model gave no answer about.
    """
    [template] = load_named_templates(("conflict",), session.workspace.root / session.recipe.templates)
    model = session.judge_model
    pairs = [(a, b, kinds) for a, b in combinations(constitution.principles, 2) if (kinds := _shared(a, b))]

    failed: list[ReplyError] = []

    async def ask(a: Principle, b: Principle, kinds: tuple[PromptKind, ...]) -> Conflict | None:
        try:
            odds = await together(_log_odds(model, template, *both) for both in ((a, b), (b, a)))
        except ReplyError as e:
            failed.append(e)
            return None
        return Conflict(a.id, b.id, kinds, probability(sum(odds) / 2))

    answered = await together(ask(*pair) for pair in pairs)
    found = [conflict for conflict in answered if conflict is not None]
    if failed and not found:
        raise failed[0]
    return sorted(found, key=lambda c: (-c.p, c.first, c.second)), len(failed)


def _shared(a: Principle, b: Principle) -> tuple[PromptKind, ...]:
    return tuple(kind for kind in a.applies_to if kind in b.applies_to)


async def _log_odds(model: TextModel, template: Template, first: Principle, second: Principle) -> float:
    asked = template.render({"first": first.statement, "second": second.statement})
    return (await read_choices(model, asked.messages, template.choices, asked.prefill)).log_odds
