"""The share of the constitution's checks that a response follows, by the principles' weights."""

from cai.core.text.checks import check_share
from cai.errors import ReplyError
from cai.recipe import Recipe
from cai.records import Constitution, Prompt
from cai.train.rl.term import Answers, Term, TermContext, TermScores


def score_by_checks(answers: Answers, context: TermContext) -> TermScores:
    """Return the share of checks that each response follows."""
    assert context.constitution is not None
    return TermScores([_share(context.constitution, prompt, text) for prompt, text in answers])


def _share(constitution: Constitution, prompt: Prompt, text: str) -> float | None:
    try:
        return check_share(constitution, prompt.kind, text)
    except ReplyError:  # a pattern ran out of time
        return None


def no_checks(recipe: Recipe, constitution: Constitution) -> list[str]:
    """Refuse a constitution without a check."""
    missing = not any(principle.check for principle in constitution.principles)
    return [f"check: no principle of {recipe.constitution} has a check to score by"] if missing else []


TERM = Term("check", score_by_checks, needs=("constitution",), problems=no_checks)
