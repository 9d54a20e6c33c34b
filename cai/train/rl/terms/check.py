"""The share of the constitution's checks that a response follows, by the principles' weights."""

from cai.core.text.checks import follows
from cai.errors import ReplyError
from cai.records import Constitution, Prompt
from cai.train.rl.term import Answers, Term, TermContext, TermScores


def check_share(prompt: Prompt, text: str, constitution: Constitution) -> float | None:
    """Return the share, in [0, 1]; None if no principle has a check for this kind of prompt, or a pattern ran out of time."""
    try:
        found = [(p.weight, verdict) for p in constitution.principles if (verdict := follows(p, prompt.kind, text)) is not None]
    except ReplyError:
        return None
    return sum(weight * verdict for weight, verdict in found) / sum(weight for weight, _ in found) if found else None


def score_by_checks(answers: Answers, context: TermContext) -> TermScores:
    """Return the share of checks that each response follows."""
    assert context.constitution is not None
    return TermScores([check_share(prompt, text, context.constitution) for prompt, text in answers])


TERM = Term("check", score_by_checks, needs=("constitution",))
