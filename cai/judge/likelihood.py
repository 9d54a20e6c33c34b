"""No question at all: how much likelier each response is when the model is told to follow the principle than when told to break it.

For one response that difference of log-likelihoods is the log-odds that it was written under the principle, so the difference between two
responses is the log-odds that A is the one that was. It is taken per token: a sum grows with length, and a model that finds every text a
little likelier under one of the prompts would prefer the shorter or the longer one by that alone.
"""

from cai.core.flow import together
from cai.judge.protocol import Opinion, ProtocolContext, bounded
from cai.models.base import PairTokens, Work
from cai.models.templates import Value, disarm
from cai.recipe import FeedbackConfig
from cai.records import Principle, ResponsePair

REFERENCE_TOKENS = 10.0
"""Length to which the difference per token is scaled. It changes no order, only how sure a label is: a whole text's worth would be far too
sure for a small model, which is right about 55 % of the time with differences near 0.03 a token."""


async def ask_likelihood(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Score both responses under both system prompts."""
    values: dict[str, Value] = {"conversation": pair.prompt.messages, "statement": principle.statement}
    under = [template.render(values) for template in (asking.templates.likelihood_good, asking.templates.likelihood_bad)]
    a_good, a_bad, b_good, b_bad = await together(
        asking.model.score(told.messages, disarm(text)) for text in (pair.response_a, pair.response_b) for told in under
    )
    per_token = (a_good.total - a_bad.total) / a_good.tokens - (b_good.total - b_bad.total) / b_good.tokens
    return Opinion(bounded(REFERENCE_TOKENS * per_token))


def likelihood_work(pair: PairTokens, config: FeedbackConfig) -> tuple[Work, ...]:
    """Return the calls for one pair: two responses under two system prompts."""
    return (Work(4, pair.statement + pair.prompt + pair.response),)
