"""One response at a time, Yes or No, to a principle's question and to the opposite one: half the difference of both answers.

That cancels a habit of saying Yes to one *text* as well: on a small model that is most of what the plain question measures.
"""

from cai.core.flow import together
from cai.judge.choices import mean_mass
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, bounded
from cai.judge.protocols.pointwise import yes_to
from cai.models.base import Work
from cai.records import Principle, ResponsePair


async def ask_pointwise_contrast(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask of each response whether it follows the principle, and whether it breaks it."""
    questions = (principle.ask_positive, principle.ask_negative)
    texts = (pair.response_a, pair.response_b)
    readings = await together(yes_to(pair, text, question, principle, asking) for text in texts for question in questions)
    a_follows, a_breaks, b_follows, b_breaks = (r.log_odds for r in readings)
    return Opinion(bounded(((a_follows - a_breaks) - (b_follows - b_breaks)) / 2), mass=mean_mass(readings))


PROTOCOL = Protocol(
    "pointwise-contrast",
    ask_pointwise_contrast,
    lambda t: (t.judge_pointwise,),
    lambda tokens, config: [Work(2, tokens.prompt + tokens.response, questions=2, question_tokens=tokens.question)],
    asks=("statement", "ask_positive", "ask_negative"),
)
