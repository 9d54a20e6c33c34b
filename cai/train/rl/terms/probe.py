"""A probe's score of a response, in log-odds against another response to the same prompt. See `cai.judge.probe`."""

from cai.models.base import Work
from cai.train.rl.term import Answers, Term, TermContext, TermScores


def score_by_probe(answers: Answers, context: TermContext) -> TermScores:
    """Return the probe's score of each response."""
    assert context.probe is not None
    return TermScores(context.probe(answers))


TERM = Term(
    "probe", score_by_probe, needs=("probe",), work=lambda tokens: [Work(1, tokens.prompt + tokens.response)], asks_principles=False
)
