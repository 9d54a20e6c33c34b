"""Which of two responses is better, and how reliable each annotator is, from their labels alone (Dawid & Skene 1979).

Two classes, one confusion matrix per annotator, expectation-maximisation that starts from the shares of votes. Departures from the
paper (Applied Statistics 28:20-28): (1) a tie is half an answer for either side; (2) `smoothing` answers are imagined in every cell of
a matrix, so that an annotator with few labels is never certain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_ROUNDS = 5000
TOLERANCE = 1e-7
"""Change of any item's probability in a round below which the fit is done. Where people are noisy the rounds change little long before the
fit is near its end: 1e-4 left a pair's probability up to 0.94 from it, in draws of six near-guessers."""


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """What the labels say of the items and of the annotators."""

    p_first: dict[str, float]
    """Item to the probability that its first side is better."""
    accuracy: dict[str, float]
    """Annotator to how often they are right, over the estimated share of both classes."""
    sensitivity: dict[str, float]
    """Annotator to the probability that they say "first" where the first is better."""
    specificity: dict[str, float]
    """Annotator to the probability that they say "second" where the second is better."""


def dawid_skene(answers: Mapping[str, Mapping[str, float]], smoothing: float = 0.01) -> DawidSkene:
    """Fit the model.

    It needs items that several annotators answered: single answers it can only repeat.

    Args:
        answers: item to annotator to answer: 1 first, 0 second, ½ a tie.
        smoothing: answers imagined in every cell of an annotator's matrix; above 0.

    Raises:
        ValueError: there is no item, one has no answer, or smoothing isn't above 0.

    >>> votes = {"x": {"ann": 1.0, "bob": 1.0, "eve": 0.0}, "y": {"ann": 0.0, "bob": 0.0, "eve": 1.0}}
    >>> fitted = dawid_skene(votes)
    >>> fitted.p_first["x"] > 0.99, fitted.accuracy["eve"] < 0.05
    (True, True)
    """
    import numpy as np

    if smoothing <= 0 or not answers or not all(answers.values()):
        raise ValueError("dawid_skene: smoothing must be above 0, and every item needs an answer")
    who = sorted({name for mine in answers.values() for name in mine})
    said = np.full((len(answers), len(who)), np.nan)
    for i, mine in enumerate(answers.values()):
        for name, answer in mine.items():
            said[i, who.index(name)] = answer
    p, sensitivity, specificity, prior = fit(said, smoothing)
    accuracy = prior * sensitivity + (1 - prior) * specificity
    per_person = [dict(zip(who, map(float, values), strict=True)) for values in (accuracy, sensitivity, specificity)]
    return DawidSkene(dict(zip(answers, map(float, p), strict=True)), *per_person)


def fit(said: Any, smoothing: float) -> tuple[Any, Any, Any, float]:
    """Fit the model to a matrix of items by annotators, NaN where there is no answer.

    Returns:
        Probability that the first side is better, per item; sensitivity and specificity, per annotator; share of first sides.
    """
    import numpy as np

    there = ~np.isnan(said)
    first, second = np.where(there, said, 0.0), np.where(there, 1.0 - said, 0.0)
    p = first.sum(axis=1) / there.sum(axis=1)
    for _ in range(MAX_ROUNDS):
        first_right, first_wrong = first.T @ p + smoothing, second.T @ p + smoothing
        second_right, second_wrong = second.T @ (1 - p) + smoothing, first.T @ (1 - p) + smoothing
        sensitivity = first_right / (first_right + first_wrong)
        specificity = second_right / (second_right + second_wrong)
        prior = float((p.sum() + smoothing) / (len(p) + 2 * smoothing))
        log_odds = np.log(prior) - np.log1p(-prior)
        log_odds = log_odds + first @ (np.log(sensitivity) - np.log1p(-specificity))
        log_odds = log_odds + second @ (np.log1p(-sensitivity) - np.log(specificity))
        updated = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -500, 500)))
        moved = float(np.abs(updated - p).max())
        p = updated
        if moved < TOLERANCE:
            break
    return p, sensitivity, specificity, prior
