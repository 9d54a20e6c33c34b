"""The run's reward models, as the recipe aggregates them."""

from cai.train.rl.term import Answers, Term, TermContext, TermScores


def score_by_models(answers: Answers, context: TermContext) -> TermScores:
    """Return the ensemble's score of each response; its members' disagreement too, where there are several."""
    assert context.ensemble is not None
    found = context.ensemble([(prompt.messages, text) for prompt, text in answers])
    return TermScores([s.value for s in found], tuple(s.std for s in found if len(s.members) > 1))


TERM = Term("model", score_by_models, needs=("ensemble",))
