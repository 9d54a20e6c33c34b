"""The result of a judge protocol, an `Opinion`, and its arithmetic. Swapping a pair negates its log-odds exactly.

Under one principle, presentation orders and opposite questions are averaged in log-odds: a bias towards "A" (or "Yes") adds a constant to
the log-odds, which then cancels. Averaging probabilities would move every label towards ½ if the bias is strong.

Several principles are averaged as probabilities (a linear opinion pool), so none of them counts more than its weight. In log-odds one
saturated answer outvotes all others: +20 and nine times −2 have a mean of +0.2 (p = 0.55); the mean of their probabilities is 0.21.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cai.errors import ReplyError
from cai.judge.probe import Probe
from cai.models.base import PairTokens, TextModel, Work
from cai.models.templates import Template, Templates
from cai.recipe import FeedbackConfig, Section
from cai.records import DEFAULT_WORDING, Principle, PromptKind, ResponsePair

MAX_LOG_ODDS = 20.0
"""Bound of log-odds, so that one certain answer can't outweigh all others."""
_GRID = 2.0**40


@dataclass(frozen=True, slots=True)
class Opinion:
    """A judge's log-odds that A is better, under one principle or pooled.

    `first` and `second` are the log-odds with A shown first and second; None for pointwise protocols.
    """

    log_odds: float
    first: float | None = None
    second: float | None = None
    detail: str = ""
    mass: float | None = None
    """Mean probability of the choices together, in [0, 1]; None if no choices were read."""


@dataclass(frozen=True, slots=True)
class ProtocolContext:
    """The model, templates and settings of a protocol."""

    model: TextModel
    templates: Templates
    config: FeedbackConfig
    run_seed: int
    probe: Probe | None = None
    """The recipe's, for a protocol that reads hidden states."""


Ask = Callable[[ResponsePair, Principle, ProtocolContext], Awaitable[Opinion]]


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way to ask a model which of two responses follows a principle better."""

    name: str
    """As in a recipe's `feedback.protocol`."""
    ask: Ask
    """Judges a pair under one principle. Raises `ReplyError` if the model's answer can't be parsed."""
    templates: Callable[[Templates], Sequence[Template]]
    """Those that it asks with: their hash goes into a judgment's provenance."""
    work: Callable[[PairTokens, FeedbackConfig], Sequence[Work]]
    """The calls about one pair under one principle, for `cai plan`."""
    asks: Sequence[str] = ("statement", *DEFAULT_WORDING)
    """Fields of a principle that decide its opinion. Without any, it is asked once about a pair, whatever the principles."""
    problems: Callable[[FeedbackConfig], Sequence[str]] = lambda config: ()
    """What is wrong with its settings, a sentence each."""
    applies: Callable[[Principle, PromptKind], bool] = lambda principle, kind: True
    """Whether it can judge by a principle, for prompts of a kind that the principle applies to."""
    asks_model: bool = True
    """False if it decides without a model. It is then not measured against human labels before it is used."""
    reads_states: bool = False
    """Whether it reads hidden states, which only a model on this machine gives, by a probe that was fitted to human labels."""
    own_settings: type[Section] | None = None
    """Type of the settings that a recipe gives as `feedback.settings`; None if it has none. `cai.recipe.own_settings` reads them."""


def probability(log_odds: float) -> float:
    """Return the probability of log-odds. `probability(-x)` equals `1 - probability(x)` exactly.

    >>> probability(0.0), probability(1.7) + probability(-1.7), 1 - (1 - probability(-9.3)) == probability(-9.3)
    (0.5, 1.0, True)
    """
    above = round(_GRID / (1.0 + math.exp(-abs(log_odds)))) / _GRID
    return above if log_odds >= 0 else 1.0 - above


def log_odds_of(p: float) -> float:
    """Return the log-odds of a probability, clipped to ±`MAX_LOG_ODDS`."""
    if p in (0.0, 1.0):
        return MAX_LOG_ODDS if p else -MAX_LOG_ODDS
    return bounded(math.log(p) - math.log1p(-p))


def bounded(log_odds: float) -> float:
    """Clip log-odds to ±`MAX_LOG_ODDS`.

    Raises:
        ReplyError: the log-odds are NaN, for example because both choices have probability 0.
    """
    if math.isnan(log_odds):
        raise ReplyError("no_probability", "the model gave no probability to any choice")
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, log_odds))


def difference(logprobs: Sequence[float]) -> float:
    """Return the clipped log-odds of the first of two choices against the second. Raises `ReplyError` if both have probability 0."""
    first, second = logprobs
    return bounded(first - second if first != second or math.isfinite(first) else math.nan)


def both_orders(first: float, second: float, detail: str = "", mass: float | None = None) -> Opinion:
    """Average the log-odds that A is better, with A shown first and with A shown second."""
    return Opinion((first + second) / 2, first, second, detail, mass)


def signal(log_odds: float) -> float:
    """Return 4·(p − ½) of log-odds: the same near 0, and bounded to ±2, so that one certain answer can't outweigh all others.

    >>> round(signal(0.1), 3), round(signal(20.0), 3)
    (0.1, 2.0)
    """
    return 2.0 * math.tanh(log_odds / 2)


def pool_log_odds(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the log-odds of the weighted mean of probabilities, clipped. Opposite values give exactly the opposite result.

    Args:
        values: log-odds under each principle.
        weights: weight of each, above 0.

    >>> round(probability(pool_log_odds([20.0] + 9 * [-2.0], 10 * [1.0])), 3)
    0.207
    """
    if len(values) == 1:
        return values[0]
    mean = math.fsum(w * math.tanh(x / 2) for w, x in zip(weights, values, strict=True)) / math.fsum(weights)
    return math.copysign(MAX_LOG_ODDS, mean) if abs(mean) >= 1.0 else bounded(2.0 * math.atanh(mean))


def pool(opinions: Sequence[Opinion], weights: Sequence[float]) -> Opinion:
    """Pool opinions about one pair by `pool_log_odds`."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return pool_log_odds(known, weights) if len(known) == len(values) else None

    log_odds = mean([o.log_odds for o in opinions])
    assert log_odds is not None
    details = [o.detail for o in opinions if o.detail]
    masses = [o.mass for o in opinions if o.mass is not None]
    mass = math.fsum(masses) / len(masses) if masses else None
    return Opinion(log_odds, mean([o.first for o in opinions]), mean([o.second for o in opinions]), "\n\n".join(details), mass)
