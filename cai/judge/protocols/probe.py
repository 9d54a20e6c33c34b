"""Protocol `probe`: a linear probe on the judge's own hidden states decides (`cai.judge.probe`). Nothing is asked.

It reads no principle: its labels say what is better. `feedback.probe` names the probe, which `cai judge fit` fitted.
"""

from collections.abc import Sequence

from cai.core.flow import together
from cai.errors import RecipeError
from cai.judge.probe import NO_PROBE, probe_score
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, bounded
from cai.models.base import Work
from cai.recipe import FeedbackConfig
from cai.records import Principle, ResponsePair


async def ask_probe(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Compare the two responses' scores. The principle is not read."""
    probe = asking.probe
    if probe is None:
        raise RecipeError(NO_PROBE)
    a, b = await together(probe_score(probe, asking.model, pair.prompt.messages, text) for text in (pair.response_a, pair.response_b))
    return Opinion(bounded(a - b))


def probe_problems(config: FeedbackConfig) -> Sequence[str]:
    """Refuse a judge without a probe."""
    return [NO_PROBE] if config.probe is None else []


PROTOCOL = Protocol(
    "probe",
    ask_probe,
    lambda templates: (),
    lambda tokens, config: [Work(2, tokens.prompt + tokens.response)],
    asks=(),
    problems=probe_problems,
    reads_states=True,
)
