"""Protocol `check`: a principle's own `check` decides, without a model.

A response that follows the check is better than one that doesn't, and two that both do, or both don't, are equal. Only principles with a
check for the prompt's kind are used.
"""

from cai.core.text.checks import checks_for, follows
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, log_odds_of
from cai.records import Principle, ResponsePair

CERTAINTY = 0.98
"""Label of a pair in which one response follows a principle and the other doesn't. Below 1, because a response can follow a rule in its
letter only."""


async def ask_check(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Compare which responses follow the principle's check. Raises `ReplyError` if a pattern runs out of time."""
    a, b = (follows(principle, pair.prompt.kind, text) for text in (pair.response_a, pair.response_b))
    return Opinion(log_odds_of(CERTAINTY) * (bool(a) - bool(b)))


PROTOCOL = Protocol(
    "check",
    ask_check,
    lambda templates: (),
    lambda tokens, config: [],
    asks=("check",),
    asks_model=False,
    applies=lambda principle, kind: bool(checks_for(principle, kind)),
)
