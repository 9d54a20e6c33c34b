"""No question at all: how much likelier each response is when the model is told to follow the principle than when told to break it.

For one response that difference of log-likelihoods is the log-odds that it was written under the principle, so the difference between two
responses is the log-odds that A is the one that was.
"""

from cai.feedback.opinions import Asking, Opinion, bounded
from cai.flow import together
from cai.records import Principle, ResponsePair
from cai.templates import Value, disarm


async def ask_likelihood(pair: ResponsePair, principle: Principle, asking: Asking) -> Opinion:
    """Score both responses under both system prompts."""
    values: dict[str, Value] = {"conversation": pair.prompt.messages, "statement": principle.statement}
    under = [template.render(values) for template in (asking.templates.likelihood_good, asking.templates.likelihood_bad)]
    a_good, a_bad, b_good, b_bad = await together(
        asking.model.score(told.messages, disarm(text)) for text in (pair.response_a, pair.response_b) for told in under
    )
    return Opinion(bounded((a_good.total - a_bad.total) / a_good.tokens - (b_good.total - b_bad.total) / b_good.tokens))
