"""`cai models check MODEL --placement`: whether a model follows instructions better in the system turn or in the user's.

Five instructions that a rule can check, each with six ordinary questions, greedily answered: without the instruction, with it in the
system turn, and with it at the start of the user's turn. Small models may hardly read a system turn: SmolLM2-135M doesn't.
"""

from collections.abc import Sequence

from cai.core.text.checks import follows
from cai.errors import ModelError, ReplyError
from cai.models.base import TextModel
from cai.models.placement import MeasuredPlacement, spec_name
from cai.models.requests import Sampling
from cai.recipe import ModelSpec
from cai.records import Message, Principle, ResponseCheck
from cai.session import Session

INSTRUCTIONS = (
    Principle("brief", "Answer in one short sentence.", check=(ResponseCheck(max_words=25, max_sentences=1),)),
    Principle("list", "Answer as a numbered list.", check=(ResponseCheck(matches=r"^1[.)]"),)),
    Principle("capitals", "Write in capital letters only.", check=(ResponseCheck(matches="[A-Z]", not_matches="[a-z]"),)),
    Principle("opening", "Begin your answer with the word Indeed.", check=(ResponseCheck(matches=r"^\W*[Ii]ndeed\b"),)),
    Principle("word", "Use the word river in your answer.", check=(ResponseCheck(contains_any=("river", "rivers")),)),
)
QUESTIONS = (
    "How do I boil an egg?",
    "Why is the sky blue?",
    "What should I pack for a weekend at the sea?",
    "How does a bicycle stay upright?",
    "What is a good way to learn a language?",
    "Why do cats purr?",
)
SAMPLING = Sampling(64, temperature=0.0)


async def measure_placement(session: Session, spec: ModelSpec) -> MeasuredPlacement:
    """Count the instructions that a model follows by place, of 30, with 66 calls.

    Raises:
        ModelError: the model can't be opened, or answers no question within 64 tokens, as one that reasons first may.
    """
    model = await session.open_model(spec)

    async def answers(asked: Sequence[Sequence[Message]], what: str) -> list[str]:
        return await session.each(list(enumerate(asked)), lambda item: _answer(model, item[1]), what, lambda item: f"{what} {item[0]}")

    plain = await answers([[Message("user", q)] for q in QUESTIONS], "answers, not told")
    if not any(plain):
        raise ModelError(f"{model.engine.name} answered none of {len(QUESTIONS)} questions within {SAMPLING.max_tokens} tokens")
    asked = [(i, q) for i in INSTRUCTIONS for q in QUESTIONS]
    system = [[Message("system", i.statement), Message("user", q)] for i, q in asked]
    user = [[Message("user", f"{i.statement}\n\n{q}")] for i, q in asked]
    return MeasuredPlacement(
        model=spec_name(spec),
        n=len(asked),
        untold=_followed(plain * len(INSTRUCTIONS)),
        system=_followed(await answers(system, "answers, told in the system turn")),
        user=_followed(await answers(user, "answers, told in the user's turn")),
    )


async def _answer(model: TextModel, messages: Sequence[Message]) -> str:
    try:
        return (await model.complete(messages, SAMPLING, 0)).text
    except ReplyError:  # no answer follows no instruction
        return ""


def _followed(answers: Sequence[str]) -> int:
    """Count the answers that follow their instruction; they come by instruction, then by question."""
    told = [i for i in INSTRUCTIONS for _ in QUESTIONS]
    return sum(follows(i, "other", answer) is True for i, answer in zip(told, answers, strict=True))
