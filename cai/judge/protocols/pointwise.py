"""Protocol `pointwise`: a yes-or-no question about one response at a time.

A pair's log-odds are the difference of the two responses' log-odds of Yes, so a general bias towards Yes cancels. A bias towards Yes for
one *text* stays: see `pointwise-contrast`.
"""

from cai.core.flow import together
from cai.judge.choices import Reading, mean_mass, read_choices
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, bounded
from cai.models.base import TextModel, Work
from cai.models.templates import Templates
from cai.records import Principle, Prompt, ResponsePair


async def ask_pointwise(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask about each response whether it follows the principle."""
    a, b = await together(yes_to(pair, text, principle.ask_positive, principle, asking) for text in (pair.response_a, pair.response_b))
    return Opinion(bounded(a.log_odds - b.log_odds), mass=mean_mass([a, b]))


async def yes_log_odds(prompt: Prompt, text: str, question: str, statement: str, model: TextModel, templates: Templates) -> float:
    """Return the log-odds of Yes against No for a question about one response. Raises `ReplyError` if both have probability 0."""
    return (await read_yes(prompt, text, question, statement, model, templates)).log_odds


async def read_yes(prompt: Prompt, text: str, question: str, statement: str, model: TextModel, templates: Templates) -> Reading:
    """Return `yes_log_odds`, and the probability of Yes and No together."""
    asked = templates.judge_pointwise.render(
        {"conversation": prompt.messages, "response": text, "question": question, "statement": statement}
    )
    return await read_choices(model, asked.messages, templates.judge_pointwise.choices, asked.prefill)


async def yes_to(pair: ResponsePair, text: str, question: str, principle: Principle, asking: ProtocolContext) -> Reading:
    """Return `read_yes` about one response of a pair."""
    return await read_yes(pair.prompt, text, question, principle.statement, asking.model, asking.templates)


PROTOCOL = Protocol(
    "pointwise",
    ask_pointwise,
    lambda t: (t.judge_pointwise,),
    lambda tokens, config: [Work(2, tokens.prompt + tokens.response, question_tokens=tokens.question)],
    asks=("statement", "ask_positive"),
)
