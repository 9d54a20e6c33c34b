"""Agreement among annotators, and of a judge with annotators: Krippendorff's alpha, Cohen's kappa, gold questions, annotator groups.

A hash of the texts orders a pair's two responses, so that chance agreement is estimated correctly. Values are 1 for the first response, 0
for the second, ½ for a tie. Alpha uses an interval scale and kappa linear weights, so a tie lies in between; without ties, both reduce to
the unweighted measures. All measures have 95 % confidence intervals: bootstrap over pairs, or Wilson intervals for rates.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from cai.labels.dawid_skene import fit
from cai.labels.pooling import by_pair
from cai.records import EvalResult, HumanLabel
from cai.stats import wilson

RESAMPLES = 1000
RELIABILITY_RESAMPLES = 100
MIN_SHARED = 10
"""Minimum number of shared pairs for a kappa of two annotators, or of annotators and a judge."""
Answers = Mapping[str, Mapping[str, float]]
"""Pair, to annotator, to answer."""


def people_agreement(labels: Sequence[HumanLabel], seed: int = 0) -> list[EvalResult]:
    """Return the agreement among annotators: `alpha` of all, `kappa` of every two with enough shared pairs, `reliability` of each.

    Reliability is estimated by Dawid–Skene. The result is empty if no pair has labels of two annotators. Labels without an annotator are
    left out.
    """
    answers = answers_of(labels)
    shared = {key: mine for key, mine in answers.items() if len(mine) > 1}
    if not shared:
        return []
    people = sorted({who for mine in answers.values() for who in mine})
    note = f"{sum(map(len, shared.values()))} labels by {len(people)} people of pairs that several labelled"
    found = [alpha("alpha", "people", shared, seed, note)]
    for one, other in combinations(people, 2):
        both = [(mine[one], mine[other]) for mine in shared.values() if one in mine and other in mine]
        if len(both) >= MIN_SHARED:
            found.append(kappa("kappa", f"{one} and {other}", both, seed))
    return [*(r for r in found if r is not None), *_reliability(shared, people, seed)]


def group_agreement(labels: Sequence[HumanLabel], seed: int = 0) -> list[EvalResult]:
    """Return, per attribute value, `alpha` within the group and `agrees_with_others`: how often its majority equals that of all others."""
    answers = answers_of(labels)
    groups: dict[tuple[str, str], set[str]] = defaultdict(set)
    for label in labels:
        if label.annotator:
            for attribute in label.attributes.items():
                groups[attribute].add(label.annotator)
    found: list[EvalResult | None] = []
    for (name, value), members in sorted(groups.items()):
        model = f"{name} = {value}"
        mine = {k: {w: p for w, p in said.items() if w in members} for k, said in answers.items()}
        rest = {k: {w: p for w, p in said.items() if w not in members} for k, said in answers.items()}
        shared = {k: said for k, said in mine.items() if len(said) > 1}
        found.append(alpha("alpha", model, shared, seed, f"{len(members)} people"))
        right = [_same(_mean(mine[k]), _mean(rest[k])) for k in answers if mine[k] and rest[k] and _mean(rest[k]) != 0.5]
        found.append(share("agrees_with_others", model, right, f"{len(members)} people"))
    return [r for r in found if r is not None]


def gold_accuracy(labels: Sequence[HumanLabel], gold: Mapping[str, float]) -> list[EvalResult]:
    """Return each annotator's accuracy on gold questions; a tie counts half.

    Args:
        labels: labels of all annotators.
        gold: pair to the right answer, for the responses in hashed order.
    """
    right: dict[str, list[float]] = defaultdict(list)
    for key, mine in answers_of(labels).items():
        if gold.get(key, 0.5) != 0.5:
            for who, said in mine.items():
                right[who].append(_same(said, gold[key]))
    return [r for who in sorted(right) if (r := share("gold_accuracy", who, right[who])) is not None]


def judge_agreement(name: str, judged: Mapping[str, float], people: Mapping[str, float], seed: int = 0) -> list[EvalResult]:
    """Return a judge's agreement with annotators on the pairs that both labelled: `agrees`, `kappa`, `alpha`.

    Args:
        name: name of the judge, for `EvalResult.model`.
        judged: pair to the judge's probability that the first response is better.
        people: pair to the annotators' answer; ties are left out.
        seed: seed of the bootstrap.
    """
    keys = [k for k in judged if people.get(k, 0.5) != 0.5]
    both = [(_side(people[k]), _side(judged[k])) for k in keys]
    results = [share("agrees", name, [_same(judged[k], people[k]) for k in keys])]
    if len(keys) >= MIN_SHARED:
        results.append(kappa("kappa", name, both, seed))
        results.append(alpha("alpha", name, {k: {"people": p, "judge": j} for k, (p, j) in zip(keys, both, strict=True)}, seed))
    return [r for r in results if r is not None]


def answers_of(labels: Sequence[HumanLabel]) -> dict[str, dict[str, float]]:
    """Return the answers by pair and annotator, for the responses in hashed order."""
    return {key: {who: label.p_a for who, label in mine.items()} for key, mine in by_pair(labels).items()}


def alpha(name: str, model: str, answers: Answers, seed: int, note: str = "") -> EvalResult | None:
    """Return Krippendorff's alpha (2011, interval metric) over pairs with at least two answers; None if it is undefined."""
    import krippendorff
    import numpy as np

    items = [list(mine.values()) for mine in answers.values() if len(mine) > 1]
    values = sorted({v for item in items for v in item})
    if len(values) < 2:
        return None
    counts = np.array([[item.count(v) for v in values] for item in items])

    def measured(rows: Any) -> float:
        used = rows.sum(axis=0) > 0
        if used.sum() < 2:
            return float("nan")
        domain = [v for v, there in zip(values, used, strict=True) if there]
        return float(krippendorff.alpha(value_counts=rows[:, used], value_domain=domain, level_of_measurement="interval"))

    generator = np.random.default_rng(seed)
    drawn = [measured(counts[generator.integers(0, len(items), len(items))]) for _ in range(RESAMPLES)]
    return _with_interval(name, model, measured(counts), drawn, len(items), note)


def kappa(name: str, model: str, both: Sequence[tuple[float, float]], seed: int, note: str = "") -> EvalResult | None:
    """Return Cohen's kappa (1960; linear weights, 1968) of two raters of the same pairs; None if it is undefined.

    The bootstrap draws tables of counts from a multinomial, so all resamples are computed at once.

    Args:
        name: name of the result.
        model: rater or model that the result is about.
        both: two answers per item, in [0, 1]; below ½, ½ and above ½ are the three categories.
        seed: seed of the bootstrap.
        note: note of the result.
    """
    import numpy as np

    table = np.zeros((3, 3))
    for one, other in both:
        table[round(2 * _side(one)), round(2 * _side(other))] += 1
    n = len(both)
    if n == 0 or np.isnan(point := float(weighted_kappa(table))):
        return None
    generator = np.random.default_rng(seed)
    drawn = weighted_kappa(generator.multinomial(n, table.ravel() / n, size=RESAMPLES).reshape(-1, 3, 3))
    return _with_interval(name, model, point, drawn, n, note)


def weighted_kappa(tables: Any) -> Any:
    """Return the linearly weighted kappa of square tables of counts (last two axes): 1 − observed / expected disagreement."""
    import numpy as np

    tables = np.asarray(tables, dtype=np.float64)
    k = tables.shape[-1]
    weights = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    expected = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :] / tables.sum(axis=(-1, -2))[..., None, None]
    observed, by_chance = ((weights * x).sum(axis=(-1, -2)) for x in (tables, expected))
    return np.where(by_chance > 0, 1.0 - observed / np.where(by_chance > 0, by_chance, 1.0), np.nan)


def share(name: str, model: str, right: Sequence[float], note: str = "") -> EvalResult | None:
    """Return a rate with its Wilson interval; None without items."""
    if not right:
        return None
    low, high = wilson(sum(right), len(right))
    return EvalResult(name, model, sum(right) / len(right), len(right), low, high, note)


def _reliability(shared: Answers, people: Sequence[str], seed: int) -> list[EvalResult]:
    """Estimate each annotator's accuracy, with bootstrap intervals over pairs."""
    import numpy as np

    said = np.full((len(shared), len(people)), np.nan)
    for i, mine in enumerate(shared.values()):
        for who, answer in mine.items():
            said[i, people.index(who)] = answer

    def accuracy(rows: Any) -> Any:
        _, sensitivity, specificity, prior = fit(rows, 0.01)
        found = prior * sensitivity + (1 - prior) * specificity
        return np.where((~np.isnan(rows)).any(axis=0), found, np.nan)

    generator = np.random.default_rng(seed)
    drawn = np.array([accuracy(said[generator.integers(0, len(said), len(said))]) for _ in range(RELIABILITY_RESAMPLES)])
    points, counts = accuracy(said), (~np.isnan(said)).sum(axis=0)
    results = [
        _with_interval("reliability", who, float(points[i]), drawn[:, i], int(counts[i]), "Dawid–Skene")
        for i, who in enumerate(people)
        if counts[i]
    ]
    return [r for r in results if r is not None]


def _with_interval(name: str, model: str, value: float, drawn: Any, n: int, note: str) -> EvalResult | None:
    import numpy as np

    known = np.asarray(drawn, dtype=np.float64)
    known = known[~np.isnan(known)]
    if np.isnan(value) or not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return EvalResult(name, model, value, n, float(low), float(high), note)


def _mean(said: Mapping[str, float]) -> float:
    return sum(said.values()) / len(said)


def _side(p: float) -> float:
    return 0.5 if p == 0.5 else float(p > 0.5)


def _same(p: float, wanted: float) -> float:
    """Return 1 if both prefer the same response, ½ if the first is a tie, else 0."""
    return 0.5 if p == 0.5 else float((p > 0.5) == (wanted > 0.5))
