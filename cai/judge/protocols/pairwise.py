"""Two responses side by side: the paper's two-option question (Bai et al. 2022, §4.1), asked in both orders and answered at once."""

from cai.core.flow import together
from cai.judge.choices import mean_mass, read_choices
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, both_orders
from cai.models.base import Work
from cai.models.templates import Rendered, Template
from cai.records import Principle, ResponsePair

OPTIONS = ("A", "B")


async def ask_pairwise(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Ask which response is better, in both orders, and read the log-probabilities of A and B."""
    rendered = [shown(p, principle, asking.templates.judge_pairwise) for p in (pair, pair.swapped())]
    first, second = await together(read_choices(asking.model, r.messages, OPTIONS, r.prefill) for r in rendered)
    return both_orders(first.log_odds, -second.log_odds, mass=mean_mass([first, second]))


def shown(pair: ResponsePair, principle: Principle, template: Template) -> Rendered:
    """Return a pair as a template shows it, with a principle's question."""
    return template.render(
        {
            "conversation": pair.prompt.messages,
            "first": pair.response_a,
            "second": pair.response_b,
            "question": principle.compare,
            "statement": principle.statement,
        }
    )


PROTOCOL = Protocol(
    "pairwise",
    ask_pairwise,
    lambda t: (t.judge_pairwise,),
    lambda tokens, config: [Work(2, tokens.prompt + 2 * tokens.response, question_tokens=tokens.comparison)],
    asks=("statement", "compare"),
)
