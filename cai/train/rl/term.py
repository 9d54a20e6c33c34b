"""What a reward term declares: its name, how it scores responses, what it needs for that, and the calls that this makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cai.models.base import PairTokens, Work
from cai.recipe import Recipe, RewardTerm, Section
from cai.records import Constitution, Prompt, RewardScore
from cai.train.monitor import Items

Answers = Sequence[tuple[Prompt, str]]
"""Prompts with a response each."""
TermScorer = Callable[[Answers], Sequence[float | None]]
EnsembleScorer = Callable[[Items], Sequence[RewardScore]]


@dataclass(frozen=True, slots=True)
class TermScores:
    """What a term says of some responses."""

    values: Sequence[float | None]
    """One each; None where a response can't be scored."""
    disagreement: Sequence[float] = ()
    """Standard deviation over the members of an ensemble, one each; empty for anything else."""


@dataclass(frozen=True, slots=True)
class TermContext:
    """What a term may score with. A scorer is there only where some term of the recipe needs it."""

    config: RewardTerm
    """The term as the recipe has it."""
    ensemble: EnsembleScorer | None = None
    """The run's reward models."""
    judge: TermScorer | None = None
    """The run's judge: log-odds that a response follows the constitution; None where its answer can't be read."""
    constitution: Constitution | None = None
    """The run's constitution."""
    probe: TermScorer | None = None
    """The recipe's probe on the judge's hidden states; None where a response can't be read."""


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that a policy can be rewarded for."""

    name: str
    """As in a recipe's `policy.online.rewards`."""
    score: Callable[[Answers, TermContext], TermScores]
    """Gives each response a number, and None to one that it can't score, which then has no reward."""
    needs: tuple[Literal["ensemble", "judge", "constitution", "probe"], ...] = ()
    """What of its context it scores with."""
    work: Callable[[PairTokens], Sequence[Work]] = lambda tokens: ()
    """The judge's calls about one response under one principle, for `cai plan`."""
    asks_principles: bool = True
    """Whether these calls are made under each principle; False: once, whatever the principles."""
    problems: Callable[[Recipe, Constitution], Sequence[str]] = lambda recipe, constitution: ()
    """Why a run of this recipe can't score by it, a sentence each: told before anything runs."""
    own_settings: type[Section] | None = None
    """Type of the settings that a recipe gives beside the term as `settings`; None if it has none. `cai.recipe.own_settings` reads them."""
