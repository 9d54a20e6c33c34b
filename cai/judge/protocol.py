"""What every judge protocol gives, an `Opinion`, and the arithmetic on it: log-odds that cancel exactly under a swap.

Averages are taken in log-odds. A model's habit of saying "A" (or "Yes") adds to the log-odds of whatever stands there, so in log-odds the
two presentation orders cancel it and leave the signal; averaged as probabilities, a strong habit flattens every label towards ½. It also
weighs principles by how sure the judge is under them (a logarithmic opinion pool).
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cai.errors import ReplyError
from cai.models.base import PairTokens, TextModel, Work
from cai.models.templates import Template, Templates
from cai.recipe import FeedbackConfig
from cai.records import Principle, ResponsePair

MAX_LOG_ODDS = 20.0
"""Larger log-odds are cut to this, so that one certain answer can't outweigh every other."""
_GRID = 2.0**40


@dataclass(frozen=True, slots=True)
class Opinion:
    """How a pair looks under one principle: log-odds that A is better.

    `first` and `second` are the log-odds with A shown first and second; None where responses are looked at one at a time.
    """

    log_odds: float
    first: float | None = None
    second: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProtocolContext:
    """What a protocol works with."""

    model: TextModel
    templates: Templates
    config: FeedbackConfig
    run_seed: int


Ask = Callable[[ResponsePair, Principle, ProtocolContext], Awaitable[Opinion]]


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way to ask a model which of two responses follows a principle better."""

    name: str
    ask: Ask
    """Raises `ReplyError` where the model's answer can't be read as a verdict."""
    templates: Callable[[Templates], Sequence[Template]]
    work: Callable[[PairTokens, FeedbackConfig], Sequence[Work]]
    """Returns the calls for one pair under one principle. Texts that are followed by a question are the same under every principle."""


def probability(log_odds: float) -> float:
    """Return the probability of some log-odds, such that `probability(-x)` is exactly `1 - probability(x)` and back.

    >>> probability(0.0), probability(1.7) + probability(-1.7), 1 - (1 - probability(-9.3)) == probability(-9.3)
    (0.5, 1.0, True)
    """
    above = round(_GRID / (1.0 + math.exp(-abs(log_odds)))) / _GRID
    return above if log_odds >= 0 else 1.0 - above


def log_odds_of(p: float) -> float:
    """Return the log-odds of a probability, within `MAX_LOG_ODDS`."""
    if p in (0.0, 1.0):
        return MAX_LOG_ODDS if p else -MAX_LOG_ODDS
    return bounded(math.log(p) - math.log1p(-p))


def bounded(log_odds: float) -> float:
    """Return log-odds cut to `MAX_LOG_ODDS` either way.

    Raises:
        ReplyError: they are not a number (both choices impossible, say).
    """
    if math.isnan(log_odds):
        raise ReplyError("no_probability", "the model gave no probability to any choice")
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, log_odds))


def difference(logprobs: Sequence[float]) -> float:
    """Return the bounded log-odds of the first of two choices against the second. Raises `ReplyError` where neither is possible."""
    first, second = logprobs
    return bounded(first - second if first != second or math.isfinite(first) else math.nan)


def both_orders(first: float, second: float, detail: str = "") -> Opinion:
    """Join the log-odds that A is better with A shown first and with A shown second."""
    return Opinion((first + second) / 2, first, second, detail)


def pool(opinions: Sequence[Opinion], weights: Sequence[float]) -> Opinion:
    """Return the weighted mean of opinions about one pair, in log-odds."""
    total = math.fsum(weights)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return math.fsum(w * v for w, v in zip(weights, known, strict=True)) / total if len(known) == len(values) else None

    log_odds = mean([o.log_odds for o in opinions])
    assert log_odds is not None
    details = [o.detail for o in opinions if o.detail]
    return Opinion(log_odds, mean([o.first for o in opinions]), mean([o.second for o in opinions]), "\n\n".join(details))
