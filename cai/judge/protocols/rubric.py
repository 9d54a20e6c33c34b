"""Protocol `rubric`: the judge grades one response at a time, from 1 to 5, by the levels that its prompt states.

As in G-Eval (arXiv 2303.16634, §2) a grade is read as the probabilities of all five numbers, and not as the one that the model writes. As
in Prometheus (arXiv 2310.08491, §3) the levels are in the prompt. Two independent grades compare the responses:
P(A is better) = P(grade of A > grade of B) + ½ P(both are equal), which is exactly 1 − P when the two are swapped.

Departures from the papers:

1. No reasoning or feedback is written before the grade, and there is no reference answer.
2. The levels are the same for all principles, in the template `judge_rubric`. Prometheus has a rubric for each instruction.
3. G-Eval's score is the mean grade, which is kept in an opinion's detail. A label needs a probability, so the distributions are compared.
"""

import math
from collections.abc import Sequence

from cai.core.flow import together
from cai.judge.choices import Distribution, mean_mass, read_distribution
from cai.judge.protocol import Opinion, Protocol, ProtocolContext, bounded
from cai.models.base import TextModel, Work
from cai.models.templates import Templates
from cai.records import Principle, Prompt, ResponsePair

GRADES = ("1", "2", "3", "4", "5")


async def ask_rubric(pair: ResponsePair, principle: Principle, asking: ProtocolContext) -> Opinion:
    """Grade each response by the principle."""
    texts = (pair.response_a, pair.response_b)
    a, b = await together(read_grade(pair.prompt, text, principle, asking.model, asking.templates) for text in texts)
    detail = f"{principle.id}: grade of A {mean_grade(a):.2f}, of B {mean_grade(b):.2f}"
    return Opinion(better_log_odds(a.probabilities, b.probabilities), detail=detail, mass=mean_mass([a, b]))


async def read_grade(prompt: Prompt, text: str, principle: Principle, model: TextModel, templates: Templates) -> Distribution:
    """Return the probabilities of the grades of one response.

    Raises:
        ReplyError: no grade has any probability.
        NoLogprobsError: the server gives no log-probabilities.
    """
    asked = templates.judge_rubric.render({"conversation": prompt.messages, "response": text, "statement": principle.statement})
    return await read_distribution(model, asked.messages, GRADES, asked.prefill)


def mean_grade(grade: Distribution) -> float:
    """Return the expected grade, in [1, 5]: G-Eval's score."""
    return math.fsum(number * p for number, p in enumerate(grade.probabilities, 1))


def better_log_odds(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the log-odds that a draw from one distribution of grades is above a draw from another; equal ones count half to each.

    Args:
        a: probabilities of the grades of A, the lowest first.
        b: the same of B.

    >>> round(better_log_odds([0.0, 0.0, 0.0, 0.2, 0.8], [0.5, 0.0, 0.0, 0.5, 0.0]), 3)  # ln(0.95 / 0.05)
    2.944
    """
    above, below = _above(a, b), _above(b, a)
    if not above or not below:
        return bounded(math.inf if above else -math.inf)
    return bounded(math.log(above) - math.log(below))


def _above(a: Sequence[float], b: Sequence[float]) -> float:
    """Return P(a > b) + ½ P(a = b). Correctly rounded, so that it depends on no order."""
    wins = [p * q for i, p in enumerate(a) for q in b[:i]]
    ties = [p * q / 2 for p, q in zip(a, b, strict=True)]
    return math.fsum([*wins, *ties])


PROTOCOL = Protocol(
    "rubric",
    ask_rubric,
    lambda t: (t.judge_rubric,),
    lambda tokens, config: [Work(2, tokens.prompt + tokens.response, question_tokens=tokens.grading)],
    asks=("statement",),
)
