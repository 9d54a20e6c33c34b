"""What a policy is rewarded for while it samples: the recipe's terms (`cai.train.rl.terms`), weighted and added up.

A term scores prompts with responses, and gives None where it can't; a response that a term can't score has no reward, and a trainer leaves
it out. Nothing is filled in: a missing term would otherwise count as 0, which may be better or worse than what the others got.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from cai.errors import TrainingError
from cai.recipe import RewardTerm
from cai.records import Constitution, Message, Prompt
from cai.train.monitor import Items, Scores
from cai.train.rl.term import Answers, EnsembleScorer, TermContext, TermScorer
from cai.train.rl.terms import TERMS


@dataclass(frozen=True)
class RewardFunction:
    """The weighted sum of a recipe's terms. Raises `TrainingError` if a term lacks what it scores with."""

    terms: tuple[RewardTerm, ...]
    """What is added up."""
    ensemble: EnsembleScorer | None = None
    """Scores conversations with responses by reward models: `score` of `cai.load_ensemble`."""
    judge: TermScorer | None = None
    """The judge's log-odds that a response follows the constitution, for the term `constitution`."""
    constitution: Constitution | None = None
    """The principles whose checks count, for the term `check`."""
    probe: TermScorer | None = None
    """The score of a probe on hidden states, for the term `probe`."""

    def __post_init__(self) -> None:
        for config in self.terms:
            for need in TERMS.get(config.term).needs:
                if getattr(self, need) is None:
                    raise TrainingError(f"policy.online.rewards: the term {config.term!r} has nothing to score with (no {need})")

    def score(self, answers: Answers) -> "Rewards":
        """Return each response's reward, and what every term gave it."""
        disagreement: Sequence[float] = ()
        by_term: dict[str, list[float | None]] = {}
        totals: list[float | None] = [0.0] * len(answers)
        for at, term in enumerate(self.terms):
            found = TERMS.get(term.term).score(answers, TermContext(term, self.ensemble, self.judge, self.constitution, self.probe))
            if len(found.values) != len(answers):
                raise TrainingError(f"the reward term {term.term!r} scored {len(found.values)} of {len(answers)} responses")
            values, disagreement = found.values, found.disagreement or disagreement
            by_term[term.term if term.term not in by_term else f"{term.term}_{at}"] = list(values)
            totals = [None if t is None or v is None else t + term.weight * v for t, v in zip(totals, values, strict=True)]
        return Rewards(totals, by_term, disagreement)


@dataclass(frozen=True, slots=True)
class Rewards:
    """What some responses are worth."""

    totals: list[float | None]
    by_term: dict[str, list[float | None]]
    """Unweighted."""
    disagreement: Sequence[float]
    """The ensemble's, one each; empty without one."""


def proxy_of(rewarding: RewardFunction, prompts: Sequence[Prompt]) -> Callable[[Items], Scores]:
    """Return a watch's proxy scorer. A response that can't be scored gets the mean of the others, so that it moves nothing.

    The scorer raises `TrainingError` where it can score none.
    """
    by_messages: dict[tuple[Message, ...], Prompt] = {p.messages: p for p in prompts}

    def score(items: Items) -> Scores:
        rewards = rewarding.score([(by_messages[tuple(messages)], text) for messages, text in items])
        known = [r for r in rewards.totals if r is not None]
        if not known:
            raise TrainingError(f"none of {len(items)} responses to the watched prompts could be rewarded")
        mean = fmean(known)
        return Scores([mean if r is None else r for r in rewards.totals], rewards.disagreement)

    return score
