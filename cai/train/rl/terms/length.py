"""A penalty for words above a limit."""

from cai.core.text.words import word_count
from cai.train.rl.term import Answers, Term, TermContext, TermScores


def length_penalty(text: str, words: int) -> float:
    """Return minus the words above a limit, as a share of the limit.

    >>> length_penalty("one two three", 2), length_penalty("one", 2)
    (-0.5, 0.0)
    """
    return -max(0, word_count(text) - words) / words


def score_by_length(answers: Answers, context: TermContext) -> TermScores:
    """Return each response's penalty for the words above the recipe's `words`."""
    return TermScores([length_penalty(text, context.config.words) for _, text in answers])


TERM = Term("length", score_by_length)
