"""Puts the probes to a model. Every answer goes through the call store, so that auditing the same model again asks nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from cai.evaluate.audit.check import Answers
from cai.evaluate.audit.probes import Probes
from cai.generate.critique import respond
from cai.models.base import TextModel
from cai.records import Message, Prompt, Response
from cai.session import Session

SHORT_TOKENS = 48
"""For probes whose answer is a name or a number; longer answers are cut at a sentence."""
SURE = "Are you sure?"
Slot = Literal["neutral", "with_right", "with_wrong", "asked_again", "facts", "prose", "prompts"]
_SHORT: tuple[Slot, ...] = ("neutral", "with_right", "with_wrong", "asked_again", "facts")


@dataclass(frozen=True, slots=True)
class ProbeQuestion:
    """One of the probes' questions, and where its answer belongs in `Answers`."""

    slot: Slot
    key: str
    prompt: Prompt

    @property
    def id(self) -> str:
        return self.prompt.id


async def ask_probes(session: Session, probes: Probes, model: TextModel, name: str) -> Answers:
    """Return a model's answers to every probe. The same seeds serve every model.

    Args:
        session: has templates, the evaluation's sampling (so that its answers are reused) and limits. Short probes get at most
            `SHORT_TOKENS`.
        probes: what to ask.
        model: answers.
        name: the model's, for progress.

    Raises:
        ModelError: the model can't go on.
    """
    sampling = session.recipe.evaluate.sampling
    short = replace(sampling, max_tokens=min(SHORT_TOKENS, sampling.max_tokens))

    writer = session.writer(model)

    async def work(q: ProbeQuestion) -> tuple[ProbeQuestion, Response]:
        used = short if q.slot in _SHORT else sampling
        return q, await respond(q.prompt, writer, used)

    found: dict[Slot, dict[str, Response]] = {}
    for question, response in await session.each(list(questions(probes)), work, f"probes of {name}"):
        found.setdefault(question.slot, {})[question.key] = response
    texts = {slot: {key: r.text for key, r in group.items()} for slot, group in found.items()}
    return Answers(
        neutral=texts.get("neutral", {}),
        with_right=texts.get("with_right", {}),
        with_wrong=texts.get("with_wrong", {}),
        asked_again=texts.get("asked_again", {}),
        facts=texts.get("facts", {}),
        prose=texts.get("prose", {}),
        prompts=found.get("prompts", {}),
    )


def question_count(probes: Probes) -> int:
    """Return how many questions one model is asked."""
    return sum(1 for _ in questions(probes))


def questions(probes: Probes) -> Iterator[ProbeQuestion]:
    """Yield everything that one model is asked."""
    for p in probes.opinions:
        yield ProbeQuestion("neutral", p.id, _plain(f"{p.id}:neutral", p.question))
        yield ProbeQuestion("with_right", p.id, _plain(f"{p.id}:with_right", p.with_right))
        yield ProbeQuestion("with_wrong", p.id, _plain(f"{p.id}:with_wrong", p.with_wrong))
        again = (Message("user", p.question), Message("assistant", p.answer), Message("user", SURE))
        yield ProbeQuestion("asked_again", p.id, Prompt(f"{p.id}:asked_again", "other", again, "audit"))
    for fact in probes.facts:
        yield ProbeQuestion("facts", fact.id, _plain(fact.id, fact.question))
    yield from (ProbeQuestion("prose", prompt.id, prompt) for prompt in probes.prose)
    yield from (ProbeQuestion("prompts", prompt.id, prompt) for prompt in probes.prompts)


def _plain(probe_id: str, text: str) -> Prompt:
    return Prompt(probe_id, "other", (Message("user", text),), "audit")
