"""Protocols `pointwise` and `pointwise-contrast`: yes-or-no questions about one response at a time.

A pair's log-odds are the difference of the two responses' log-odds of Yes, so a general bias towards Yes cancels. `pointwise-contrast` also
asks the opposite question and takes half the difference of both, which cancels a bias towards Yes for one *text* too. On a small model,
that bias is most of what the plain question measures.
"""

from cai.core.flow import together
from cai.judge.protocol import Opinion, ProtocolContext, bounded, difference
from cai.models.base import TextModel
from cai.models.templates import Templates
from cai.records import Principle, Prompt, ResponsePair

ANSWERS = ("Yes", "No")


async def ask_pointwise(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask about each response whether it follows the principle."""
    a, b = await together(_yes(pair, text, principle.ask_positive, principle, asking) for text in (pair.response_a, pair.response_b))
    return Opinion(bounded(a - b))


async def ask_pointwise_contrast(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask about each response whether it follows the principle, and whether it breaks it."""
    questions = (principle.ask_positive, principle.ask_negative)
    texts = (pair.response_a, pair.response_b)
    a_follows, a_breaks, b_follows, b_breaks = await together(
        _yes(pair, text, question, principle, asking) for text in texts for question in questions
    )
    return Opinion(bounded(((a_follows - a_breaks) - (b_follows - b_breaks)) / 2))


async def yes_log_odds(prompt: Prompt, text: str, question: str, statement: str, model: TextModel, templates: Templates) -> float:
    """Return the log-odds of Yes against No for a question about one response. Raises `ReplyError` if both have probability 0."""
    asked = templates.judge_pointwise.render(
        {"conversation": prompt.messages, "response": text, "question": question, "statement": statement}
    )
    reply = await model.choices(asked.messages, ANSWERS, asked.prefill)
    return difference(reply.logprobs)


async def _yes(pair: ResponsePair, text: str, question: str, principle: Principle, asking: ProtocolContext) -> float:
    return await yes_log_odds(pair.prompt, text, question, principle.statement, asking.model, asking.templates)
