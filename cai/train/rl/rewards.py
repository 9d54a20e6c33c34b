"""What a policy is rewarded for while it samples: reward models, the constitution, and simple rules, weighted and added up.

A term scores prompts with responses, and gives None where it can't; a response that a term can't score has no reward, and a trainer leaves
it out. Nothing is filled in: a missing term would otherwise count as 0, which may be better or worse than what the others got.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from cai.core.text.refusals import is_refusal
from cai.errors import TrainingError
from cai.recipe import RewardTerm
from cai.records import Message, Prompt, RewardScore
from cai.train.rl.monitor import Items, Scores

Answers = Sequence[tuple[Prompt, str]]
"""Prompts with a response each."""
TermScorer = Callable[[Answers], Sequence[float | None]]
EnsembleScorer = Callable[[Items], Sequence[RewardScore]]


def length_penalty(text: str, words: int) -> float:
    """Return minus the words above a limit, as a share of the limit.

    >>> length_penalty("one two three", 2), length_penalty("one", 2)
    (-0.5, 0.0)
    """
    return -max(0, len(text.split()) - words) / words


def refusal_penalty(prompt: Prompt, text: str) -> float:
    """Return −1 for refusing a prompt that isn't harmful, else 0. Refusing a harmful one is neither paid for nor punished here."""
    return -1.0 if prompt.kind != "harmful" and is_refusal(text) else 0.0


@dataclass(frozen=True)
class RewardFunction:
    """The weighted sum of a recipe's terms.

    Args:
        terms: the recipe's.
        ensemble: scores with the run's reward models; needed for a `model` term.
        judge: scores under the constitution; needed for a `constitution` term.

    Raises:
        TrainingError: a term has nothing to score with.
    """

    terms: tuple[RewardTerm, ...]
    ensemble: EnsembleScorer | None = None
    judge: TermScorer | None = None

    def __post_init__(self) -> None:
        names = [t.term for t in self.terms]
        for name, scorer in (("model", self.ensemble), ("constitution", self.judge)):
            if name in names and scorer is None:
                raise TrainingError(f"policy.online.rewards: the term {name!r} has nothing to score with")

    def score(self, answers: Answers) -> "Rewards":
        """Return each response's reward, and what every term gave it."""
        disagreement: tuple[float, ...] = ()
        by_term: dict[str, list[float | None]] = {}
        totals: list[float | None] = [0.0] * len(answers)
        for at, term in enumerate(self.terms):
            values: Sequence[float | None]
            if term.term == "model":
                assert self.ensemble is not None
                found = self.ensemble([(p.messages, text) for p, text in answers])
                values = [s.value for s in found]
                disagreement = tuple(s.std for s in found if len(s.members) > 1)
            elif term.term == "constitution":
                assert self.judge is not None
                values = self.judge(answers)
            elif term.term == "length":
                values = [length_penalty(text, term.words) for _, text in answers]
            else:
                values = [refusal_penalty(prompt, text) for prompt, text in answers]
            by_term[term.term if term.term not in by_term else f"{term.term}_{at}"] = list(values)
            totals = [None if t is None or v is None else t + term.weight * v for t, v in zip(totals, values, strict=True)]
        return Rewards(totals, by_term, disagreement)


@dataclass(frozen=True, slots=True)
class Rewards:
    """What some responses are worth."""

    totals: list[float | None]
    by_term: dict[str, list[float | None]]
    """Unweighted."""
    disagreement: tuple[float, ...]
    """The ensemble's, one each; empty without one."""


def proxy_of(rewarding: RewardFunction, prompts: Sequence[Prompt]) -> Callable[[Items], Scores]:
    """Return a watch's proxy scorer. A response that can't be scored gets the mean of the others, so that it moves nothing.

    Args:
        rewarding: what the policy is trained on.
        prompts: the watch's.

    Raises:
        TrainingError: when it is called, and can score no response.
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
