"""A penalty for refusing what is no harm."""

from cai.core.text.refusals import is_refusal
from cai.records import Prompt
from cai.train.rl.term import Answers, Term, TermContext, TermScores


def refusal_penalty(prompt: Prompt, text: str) -> float:
    """Return −1 for refusing a prompt that isn't harmful, else 0. Refusing a harmful one is neither paid for nor punished here."""
    return -1.0 if prompt.kind != "harmful" and is_refusal(text) else 0.0


def score_by_refusal(answers: Answers, context: TermContext) -> TermScores:
    """Return each response's penalty."""
    return TermScores([refusal_penalty(prompt, text) for prompt, text in answers])


TERM = Term("refusal", score_by_refusal)
