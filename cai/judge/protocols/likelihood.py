"""Protocol `likelihood`: each response's log-likelihood if a system prompt asks to follow the principle, and if it asks to break it.

For one response, the difference of both log-likelihoods is the log-odds that it was written under the principle. The difference between two
responses is the log-odds that A is the one written under it. It is measured per token: sums grow with length, so a small constant offset
per token would become a length bias.
"""

from cai.core.flow import together
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, bounded
from cai.models.base import Work
from cai.models.templates import Value, disarm
from cai.records import Principle, ResponsePair

REFERENCE_TOKENS = 10.0
"""Length to which the difference per token is scaled. It affects the confidence of labels and not their order. Scaling to the length of the
text would be overconfident: a small model with differences near 0.03 per token is right about 55 % of the time."""


async def ask_likelihood(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Score both responses under both system prompts."""
    values: dict[str, Value] = {"conversation": pair.prompt.messages, "statement": principle.statement}
    under = [template.render(values) for template in (asking.templates.likelihood_good, asking.templates.likelihood_bad)]
    a_good, a_bad, b_good, b_bad = await together(
        asking.model.score(told.messages, disarm(text)) for text in (pair.response_a, pair.response_b) for told in under
    )
    per_token = (a_good.total - a_bad.total) / a_good.tokens - (b_good.total - b_bad.total) / b_good.tokens
    return Opinion(bounded(REFERENCE_TOKENS * per_token))


PROTOCOL = Protocol(
    "likelihood",
    ask_likelihood,
    lambda t: (t.likelihood_good, t.likelihood_bad),
    lambda tokens, config: [Work(4, tokens.prompt + tokens.response + tokens.statement)],
    asks=("statement",),
)
