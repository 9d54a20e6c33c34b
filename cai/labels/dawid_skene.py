"""Estimates the better response and the reliability of each annotator from their labels alone, after Dawid & Skene (1979).

The paper (Applied Statistics 28:20-28) fits a confusion matrix per annotator by maximum likelihood. With the few labels per pair and per
annotator that are usual here, this is overconfident. Departures from the paper:

1. One accuracy per annotator, as likely for either side: sides are ordered by a hash, so that they mean nothing.
2. A Beta prior of the accuracies, whose mean (at least ½) and strength are fitted to all annotators (empirical Bayes), and variational
   Bayes instead of point estimates (Liu, Peng & Ihler 2012, Variational inference for crowdsourcing), so that an annotator with few labels
   is close to the others and never certain.
3. A third class of pairs, about which everybody flips a coin: people agree less about some pairs, and otherwise all annotators would seem
   unreliable, and pairs that they agree about doubtful. Prior of its share: Beta(3, 7), as from 10 pairs of which 3 are such. A few labels
   per pair hardly tell careless annotators and doubtful pairs apart, so the prior matters: one that holds most pairs for clear is
   overconfident where many are not.
4. A tie counts as half an answer for each side.

Limit: it is overconfident where raters are hardly better than a coin. Three of accuracy 0.55, all on 200 pairs: 0.64 sure, 0.56 right, log
loss 0.707; votes have 0.706 with a smoothing of 1 and 0.686 with 2, and knowing nothing has 0.693. No prior was found that mends this and
keeps what is won where raters differ (docs/log.md). Where Krippendorff's alpha is near 0, pool by votes with smoothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_ROUNDS = 500
TOLERANCE = 1e-6
"""Convergence: maximum change of any probability in one iteration."""
COIN_PRIOR = (3.0, 7.0)
IMAGINED = (6.0, 2.0)
"""Right and wrong answers of one imagined annotator, to whom the prior of the accuracies is fitted too. It matters where there are few."""
_MEANS = tuple(0.5 + 0.02 * i for i in range(25))
_STRENGTHS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""Candidates for the mean and the strength of the accuracies' prior, in pseudo-labels."""


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """Estimates for items and annotators."""

    p_first: dict[str, float]
    """Item to the probability that its first response is better."""
    accuracy: dict[str, float]
    """Annotator to accuracy, on pairs that have a better response."""


def dawid_skene(answers: Mapping[str, Mapping[str, float]]) -> DawidSkene:
    """Fit the model. Only items with several annotators are informative about reliability.

    Args:
        answers: item, to annotator, to answer: 1 for the first, 0 for the second, ½ for a tie.

    Raises:
        ValueError: there are no items, or an item has no answer.

    >>> votes = {f"{i}": {"ann": i % 2, "bob": i % 2, "eve": 1 - i % 2} for i in range(20)}
    >>> fitted = dawid_skene(votes)
    >>> fitted.p_first["1"] > 0.9, fitted.accuracy["eve"] < 0.3
    (True, True)
    """
    import numpy as np

    if not answers or not all(answers.values()):
        raise ValueError("dawid_skene: every item needs an answer")
    people = {name: j for j, name in enumerate(sorted({name for mine in answers.values() for name in mine}))}
    rows = [(i, people[name], answer) for i, mine in enumerate(answers.values()) for name, answer in mine.items()]
    item, who, said = (np.array(column) for column in zip(*rows, strict=True))
    p, accuracy = fit(item, who, said, len(answers), len(people))
    return DawidSkene(dict(zip(answers, map(float, p), strict=True)), dict(zip(people, map(float, accuracy), strict=True)))


def fit(item: Any, who: Any, said: Any, items: int, people: int) -> tuple[Any, Any]:
    """Fit the model to a list of answers.

    Args:
        item: index of each answer's item, in [0, `items`).
        who: index of each answer's annotator, in [0, `people`).
        said: the answers, in [0, 1]: 1 for the first response.
        items: number of items; each has an answer.
        people: number of annotators; one without answers gets the prior's mean.

    Returns:
        The probability per item that the first response is better; the accuracy per annotator.
    """
    import numpy as np
    from scipy.special import digamma, gammaln

    def per_item(values: Any) -> Any:
        return np.bincount(item, values, items)

    def per_person(values: Any) -> Any:
        return np.bincount(who, values, people)

    count = np.bincount(item, minlength=items)
    share = per_item(said) / count
    q = 0.1 + 0.7 * np.stack([share, 1 - share, np.zeros(items)], axis=1)  # first better, second better, coin
    means, strengths = (grid.ravel() for grid in np.meshgrid(_MEANS, _STRENGTHS))
    priors = np.stack([means * strengths, (1 - means) * strengths], axis=1)
    normaliser = gammaln(priors.sum(axis=1)) - gammaln(priors).sum(axis=1)
    prior = np.array(IMAGINED)
    imagined = digamma(prior) - digamma(prior.sum())
    answered = np.bincount(who, minlength=people) > 0
    accuracy = np.full(people, prior[0] / prior.sum())
    for _ in range(MAX_ROUNDS):
        right = prior[0] + per_person(q[item, 0] * said + q[item, 1] * (1 - said))
        wrong = prior[1] + per_person(q[item, 0] * (1 - said) + q[item, 1] * said)
        accuracy = right / (right + wrong)
        logs = np.stack([digamma(right), digamma(wrong)]) - digamma(right + wrong)
        fit_of_priors = (answered.sum() + 1) * normaliser + (priors - 1) @ (logs[:, answered].sum(axis=1) + imagined)
        prior = priors[np.argmax(fit_of_priors)]
        coin = (q[:, 2].sum() + COIN_PRIOR[0]) / (items + sum(COIN_PRIOR))
        agrees, differs = logs[0][who], logs[1][who]
        log_q = np.stack(
            [
                np.log((1 - coin) / 2) + per_item(said * agrees + (1 - said) * differs),
                np.log((1 - coin) / 2) + per_item((1 - said) * agrees + said * differs),
                np.log(coin) - count * np.log(2.0),
            ],
            axis=1,
        )
        updated = np.exp(log_q - log_q.max(axis=1, keepdims=True))
        updated /= updated.sum(axis=1, keepdims=True)
        moved = float(np.abs(updated - q).max())
        q = updated
        if moved < TOLERANCE:
            break
    return q[:, 0] + q[:, 2] / 2, accuracy
