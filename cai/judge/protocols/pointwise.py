"""Protocol `pointwise`: a yes-or-no question about one response at a time.

A pair's log-odds are the difference of the two responses' log-odds of Yes, so a general bias towards Yes cancels. A bias towards Yes for
one *text* stays: see `pointwise-contrast`.
"""

from cai.core.flow import together
from cai.judge.choices import Reading, mean_mass, read_yes
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, bounded
from cai.models.base import Work
from cai.records import Principle, ResponsePair


async def ask_pointwise(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask about each response whether it follows the principle."""
    a, b = await together(yes_to(pair, text, principle.ask_positive, principle, asking) for text in (pair.response_a, pair.response_b))
    return Opinion(bounded(a.log_odds - b.log_odds), mass=mean_mass([a, b]))


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
