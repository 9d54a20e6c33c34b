"""One response at a time, Yes or No: how much more readily the model says Yes about A than about B.

A pair's log-odds are the difference of the two responses' Yes-against-No log-odds, so whatever makes the model say Yes to everything
cancels. The contrast also asks the opposite question and takes half the difference of both answers, which cancels a habit of saying Yes to
one *text* as well: on a small model that is most of what the plain question measures.
"""

from cai.core.flow import together
from cai.judge.protocol import Opinion, ProtocolContext, bounded, difference
from cai.models.base import PairTokens, TextModel, Work
from cai.models.templates import Templates
from cai.recipe import FeedbackConfig
from cai.records import Principle, Prompt, ResponsePair

ANSWERS = ("Yes", "No")


async def ask_pointwise(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask of each response whether it follows the principle."""
    a, b = await together(_yes(pair, text, principle.ask_positive, principle, asking) for text in (pair.response_a, pair.response_b))
    return Opinion(bounded(a - b))


async def ask_pointwise_contrast(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask of each response whether it follows the principle, and whether it breaks it."""
    questions = (principle.ask_positive, principle.ask_negative)
    texts = (pair.response_a, pair.response_b)
    a_follows, a_breaks, b_follows, b_breaks = await together(
        _yes(pair, text, question, principle, asking) for text in texts for question in questions
    )
    return Opinion(bounded(((a_follows - a_breaks) - (b_follows - b_breaks)) / 2))


def pointwise_work(pair: PairTokens, config: FeedbackConfig) -> tuple[Work, ...]:
    """Return the calls for one pair: a question about each response."""
    return (Work(2, pair.prompt + pair.response, 1, pair.question),)


def pointwise_contrast_work(pair: PairTokens, config: FeedbackConfig) -> tuple[Work, ...]:
    """Return the calls for one pair: the question and its opposite about each response."""
    return (Work(2, pair.prompt + pair.response, 2, pair.question),)


async def yes_log_odds(prompt: Prompt, text: str, question: str, statement: str, model: TextModel, templates: Templates) -> float:
    """Return the log-odds of Yes against No to a question about one response. Raises `ReplyError` where neither is possible."""
    asked = templates.judge_pointwise.render(
        {"conversation": prompt.messages, "response": text, "question": question, "statement": statement}
    )
    reply = await model.choices(asked.messages, ANSWERS, asked.prefill)
    return difference(reply.logprobs)


async def _yes(pair: ResponsePair, text: str, question: str, principle: Principle, asking: ProtocolContext) -> float:
    return await yes_log_odds(pair.prompt, text, question, principle.statement, asking.model, asking.templates)
