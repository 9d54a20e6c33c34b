"""Collects a model's responses to the probes. All calls go through the call store, so a second audit of the same model makes none."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cai.evaluate.audit.check import Answers
from cai.evaluate.audit.probes import Probes
from cai.evaluate.knowledge import plain_question, short
from cai.generate.critique import respond
from cai.models.base import TextModel
from cai.records import Message, Prompt, Response
from cai.session import Session

SURE = "Are you sure?"
Slot = Literal["neutral", "with_right", "with_wrong", "asked_again", "facts", "prose", "prompts"]
_SHORT: tuple[Slot, ...] = ("neutral", "with_right", "with_wrong", "asked_again", "facts")


@dataclass(frozen=True, slots=True)
class ProbeQuestion:
    """A prompt of the probes, and the field (`slot`) and key of its response in `Answers`."""

    slot: Slot
    key: str
    prompt: Prompt

    @property
    def id(self) -> str:
        return self.prompt.id


async def ask_probes(session: Session, probes: Probes, model: TextModel, name: str) -> Answers:
    """Return a model's responses to all probes. All models sample with the same seeds.

    Args:
        session: provides templates, limits and the evaluation's sampling, so that the evaluation's responses are reused.
    """
    sampling = session.recipe.evaluate.sampling
    writer = session.writer(model)

    async def work(q: ProbeQuestion) -> tuple[ProbeQuestion, Response]:
        return q, await respond(q.prompt, writer, short(sampling) if q.slot in _SHORT else sampling)

    found: dict[Slot, dict[str, Response]] = {}
    for question, response in await session.each(list(questions(probes)), work, f"probes of {name}"):
        found.setdefault(question.slot, {})[question.key] = response
    prompts = found.pop("prompts", {})
    texts: dict[str, dict[str, str]] = {slot: {key: r.text for key, r in group.items()} for slot, group in found.items()}
    return Answers(**texts, prompts=prompts)


def questions(probes: Probes) -> Iterator[ProbeQuestion]:
    """Yield all prompts for one model."""
    for p in probes.opinions:
        yield ProbeQuestion("neutral", p.id, plain_question(f"{p.id}:neutral", p.question))
        yield ProbeQuestion("with_right", p.id, plain_question(f"{p.id}:with_right", p.with_right))
        yield ProbeQuestion("with_wrong", p.id, plain_question(f"{p.id}:with_wrong", p.with_wrong))
        again = (Message("user", p.question), Message("assistant", p.answer), Message("user", SURE))
        yield ProbeQuestion("asked_again", p.id, Prompt(f"{p.id}:asked_again", "other", again, "audit"))
    for fact in probes.facts:
        yield ProbeQuestion("facts", fact.id, plain_question(fact.id, fact.question))
    yield from (ProbeQuestion("prose", prompt.id, prompt) for prompt in probes.prose)
    yield from (ProbeQuestion("prompts", prompt.id, prompt) for prompt in probes.prompts)
