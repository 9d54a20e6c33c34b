"""Find where principles collide: ask a model which two contradict each other, and for a request on which they do.

Both answers are a model's, to be read by a person. The yes-or-no question is asked in both orders. A request is written for the likeliest
pairs only, whatever their probability: those of a small model rank pairs at best.
"""

from dataclasses import dataclass, replace
from itertools import combinations

from cai.core.flow import together
from cai.errors import ReplyError
from cai.ids import derive_seed
from cai.judge.choices import read_choices
from cai.judge.protocol import probability
from cai.models.base import TextModel
from cai.models.requests import Sampling
from cai.models.templates import Template
from cai.records import Constitution, Failure, Principle, PromptKind
from cai.session import Session
from cai.workbench.replies import single

WRITING = Sampling(128, 0.0)


@dataclass(frozen=True, slots=True)
class Collision:
    """What a model says of two principles."""

    first: str
    second: str
    """Ids."""
    kinds: tuple[PromptKind, ...]
    """Kinds of prompt that draw both."""
    p: float
    """Probability in [0, 1] that one response can't follow both: the mean of the log-odds in both orders."""
    request: str | None = None
    """A request on which they collide, in the model's words; None if none was asked for, or none can be used."""


@dataclass(frozen=True, slots=True)
class Stress:
    """What a model says of all pairs of principles."""

    conflicts: tuple[Collision, ...]
    """All pairs, the likeliest collision first."""
    unanswered: int
    """Number of pairs that the model gave no answer about."""
    failures: tuple[Failure, ...] = ()
    """Requests that were asked for and can't be used."""


async def find_collisions(session: Session, constitution: Constitution, requests: int) -> Stress:
    """Ask about every two principles that a prompt can draw together, and for requests on which they collide.

    Args:
        session: an open session; its judge answers, its model writes.
        constitution: the principles.
        requests: number of pairs to write a request for: the likeliest.

    Raises:
        ReplyError: the judge gave no answer about any pair.
        TemplateError: a template can't be read.
    """
    question, writing = session.named_templates("conflict", "collision")
    pairs = [(a, b, kinds) for a, b in combinations(constitution.principles, 2) if (kinds := _shared(a, b))]

    failed: list[ReplyError] = []

    async def ask(a: Principle, b: Principle, kinds: tuple[PromptKind, ...]) -> Collision | None:
        try:
            odds = await together(_log_odds(session.judge_model, question, *both) for both in ((a, b), (b, a)))
        except ReplyError as e:
            failed.append(e)
            return None
        return Collision(a.id, b.id, kinds, probability(sum(odds) / 2))

    answered = await together(ask(*pair) for pair in pairs)
    found = sorted((c for c in answered if c is not None), key=lambda c: (-c.p, c.first, c.second))
    if failed and not found:
        raise failed[0]

    async def write(c: Collision) -> Collision:
        a, b = (constitution.principle(i).statement for i in (c.first, c.second))
        asked = writing.render({"first": a, "second": b})
        seed = derive_seed(session.recipe.seed, "collision", a, b)
        reply = await session.model.complete(asked.messages, WRITING, seed, asked.prefill)
        return replace(c, request=single(reply, asked, writing))

    written = await session.each(found[:requests], write, "requests", lambda c: f"{c.first} and {c.second}", may_all_fail=True)
    by_pair = {(c.first, c.second): c for c in written}
    return Stress(tuple(by_pair.get((c.first, c.second), c) for c in found), len(failed), tuple(session.failures))


def _shared(a: Principle, b: Principle) -> tuple[PromptKind, ...]:
    return tuple(kind for kind in a.applies_to if kind in b.applies_to)


async def _log_odds(model: TextModel, template: Template, first: Principle, second: Principle) -> float:
    asked = template.render({"first": first.statement, "second": second.statement})
    return (await read_choices(model, asked.messages, template.choices, asked.prefill)).log_odds
