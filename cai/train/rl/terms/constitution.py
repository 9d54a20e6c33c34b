"""The judge's log-odds that a response follows the principles, as `cai.judge.adherence` asks for them."""

from cai.models.base import Work
from cai.train.rl.term import Answers, Term, TermContext, TermScores


def score_by_judge(answers: Answers, context: TermContext) -> TermScores:
    """Return the judge's log-odds for each response."""
    assert context.judge is not None
    return TermScores(context.judge(answers))


TERM = Term(
    "constitution",
    score_by_judge,
    needs=("judge",),
    work=lambda tokens: [Work(1, tokens.prompt + tokens.response, questions=2, question_tokens=tokens.question)],
)
