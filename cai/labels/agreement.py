"""Agreement among annotators, and of a judge with annotators: Krippendorff's alpha, Cohen's kappa, gold questions, annotator groups.

A hash of the texts orders a pair's two responses, so that chance agreement is estimated correctly. Values are 1 for the first response, 0
for the second, ½ for a tie. Alpha uses an interval scale and kappa linear weights, so a tie lies in between; without ties, both reduce to
the unweighted measures. All measures have 95 % confidence intervals over conversations, whose pairs are not independent: a bootstrap that
draws whole conversations, or for rates Wilson's interval at the effective number of pairs.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from cai.data.splits import conversation_id
from cai.labels.dawid_skene import fit
from cai.labels.pooling import ADJUDICATOR, by_pair, pair_key
from cai.records import EvalResult, HumanLabel
from cai.stats import cluster_factor, clustered_share, correctness

RESAMPLES = 1000
RELIABILITY_RESAMPLES = 100
MIN_SHARED = 10
"""Minimum number of shared pairs for a kappa of two annotators, or of annotators and a judge."""
Answers = Mapping[str, Mapping[str, float]]
"""Pair, to annotator, to answer."""
Conversations = Mapping[str, str]
"""Pair to its conversation."""


def people_agreement(labels: Sequence[HumanLabel], seed: int = 0) -> list[EvalResult]:
    """Return the agreement among annotators: `alpha` of all, `kappa` of every two with enough shared pairs, `reliability` of each.

    Reliability is estimated by Dawid–Skene. The result is empty if no pair has labels of two annotators. Labels without an annotator are
    left out.
    """
    answers, talks = answers_of(labels), conversations_of(labels)
    shared = {key: mine for key, mine in answers.items() if len(mine) > 1}
    if not shared:
        return []
    people = sorted({who for mine in answers.values() for who in mine})
    note = f"{sum(map(len, shared.values()))} labels by {len(people)} people of pairs that several labelled"
    found = [alpha("alpha", "people", shared, seed, note, talks)]
    for one, other in combinations(people, 2):
        theirs = [key for key, mine in shared.items() if one in mine and other in mine]
        if len(theirs) >= MIN_SHARED:
            both = [(shared[key][one], shared[key][other]) for key in theirs]
            found.append(kappa("kappa", f"{one} and {other}", both, seed, clusters=[talks[key] for key in theirs]))
    return [*(r for r in found if r is not None), *_reliability(shared, people, seed, talks)]


def group_agreement(labels: Sequence[HumanLabel], seed: int = 0) -> list[EvalResult]:
    """Return, per attribute value, `alpha` within the group and `agrees_with_others`: how often its majority equals that of all others."""
    answers, talks = answers_of(labels), conversations_of(labels)
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
        found.append(alpha("alpha", model, shared, seed, f"{len(members)} people", talks))
        keys = [k for k in answers if mine[k] and rest[k] and _mean(rest[k]) != 0.5]
        right = [correctness(_mean(mine[k]), _mean(rest[k])) for k in keys]
        found.append(share("agrees_with_others", model, right, f"{len(members)} people", [talks[k] for k in keys]))
    return [r for r in found if r is not None]


def gold_accuracy(labels: Sequence[HumanLabel], gold: Mapping[str, float]) -> list[EvalResult]:
    """Return each annotator's accuracy on gold questions; a tie counts half.

    Args:
        labels: labels of all annotators.
        gold: pair to the right answer, for the responses in hashed order.
    """
    right: dict[str, list[float]] = defaultdict(list)
    talks, of = conversations_of(labels), defaultdict(list)
    for key, mine in answers_of(labels).items():
        if gold.get(key, 0.5) != 0.5:
            for who, said in mine.items():
                right[who].append(correctness(said, gold[key]))
                of[who].append(talks[key])
    return [r for who in sorted(right) if (r := share("gold_accuracy", who, right[who], clusters=of[who])) is not None]


def judge_agreement(
    name: str, judged: Mapping[str, float], people: Mapping[str, float], seed: int = 0, talks: Conversations | None = None
) -> list[EvalResult]:
    """Return a judge's agreement with annotators on the pairs that both labelled: `agrees`, `kappa`, `alpha`.

    Args:
        name: name of the judge, for `EvalResult.model`.
        judged: pair to the judge's probability that the first response is better.
        people: pair to the annotators' answer; ties are left out.
        seed: seed of the bootstrap.
        talks: pair to its conversation; None: each pair is one.
    """
    keys = [k for k in judged if people.get(k, 0.5) != 0.5]
    clusters = [talks[k] if talks else k for k in keys]
    both = [(correctness(people[k], True), correctness(judged[k], True)) for k in keys]
    results = [share("agrees", name, [correctness(judged[k], people[k]) for k in keys], clusters=clusters)]
    if len(keys) >= MIN_SHARED:
        results.append(kappa("kappa", name, both, seed, clusters=clusters))
        answers = {k: {"people": p, "judge": j} for k, (p, j) in zip(keys, both, strict=True)}
        results.append(alpha("alpha", name, answers, seed, talks=talks))
    return [r for r in results if r is not None]


def answers_of(labels: Sequence[HumanLabel]) -> dict[str, dict[str, float]]:
    """Return the answers by pair and annotator, for the responses in hashed order. Decisions of disputes are left out."""
    return {key: {who: label.p_a for who, label in mine.items() if who != ADJUDICATOR} for key, mine in by_pair(labels).items()}


def conversations_of(labels: Sequence[HumanLabel]) -> dict[str, str]:
    """Return the conversation of each pair."""
    return {pair_key(label): conversation_id(label.pair.prompt) for label in labels}


def alpha(name: str, model: str, answers: Answers, seed: int, note: str = "", talks: Conversations | None = None) -> EvalResult | None:
    """Return Krippendorff's alpha (2011, interval metric) over pairs with at least two answers; None if it is undefined.

    The bootstrap draws the conversations in `talks`; without it, each pair is one.
    """
    import numpy as np

    keys = [key for key, mine in answers.items() if len(mine) > 1]
    items = [list(answers[key].values()) for key in keys]
    values = sorted({v for item in items for v in item})
    if len(values) < 2:
        return None
    counts, value = np.array([[item.count(v) for v in values] for item in items]), np.array(values)

    def squares(rows: Any) -> Any:
        """Sum the squared differences between all pairs of answers of each row."""
        return rows.sum(axis=-1) * (rows @ value**2) - (rows @ value) ** 2

    def measured(rows: Any) -> float:
        answered, everything = rows.sum(axis=1), rows.sum(axis=0)
        if (everything > 0).sum() < 2:
            return float("nan")
        within = (squares(rows) / (answered - 1)).sum()
        return float(1 - within * (everything.sum() - 1) / squares(everything))

    generator = np.random.default_rng(seed)
    clusters = [talks[key] if talks else key for key in keys]
    drawn = [measured(counts[rows]) for rows in _draws(clusters, generator, RESAMPLES)]
    return _with_interval(name, model, measured(counts), drawn, len(items), len(set(clusters)), note)


def kappa(
    name: str, model: str, both: Sequence[tuple[float, float]], seed: int, clusters: Sequence[str] | None = None
) -> EvalResult | None:
    """Return Cohen's kappa (1960; linear weights, 1968) of two raters of the same pairs; None if it is undefined.

    The bootstrap draws how often each conversation is in a resample from a multinomial, so all resamples are computed at once.

    Args:
        name: name of the result.
        model: rater or model that the result is about.
        both: two answers per item, in [0, 1]; below ½, ½ and above ½ are the three categories.
        seed: seed of the bootstrap.
        clusters: the conversation of each item; None: each item is one.
    """
    import numpy as np

    groups = list(range(len(both))) if clusters is None else clusters
    index = {c: i for i, c in enumerate(dict.fromkeys(groups))}
    tables = np.zeros((len(index), 3, 3))
    for c, (one, other) in zip(groups, both, strict=True):
        tables[index[c], round(2 * correctness(one, True)), round(2 * correctness(other, True))] += 1
    if not both or np.isnan(point := float(weighted_kappa(tables.sum(axis=0)))):
        return None
    kinds, copies = np.unique(tables.reshape(len(index), 9), axis=0, return_counts=True)
    counts = np.random.default_rng(seed).multinomial(len(index), copies / len(index), size=RESAMPLES)
    return _with_interval(name, model, point, weighted_kappa((counts @ kinds).reshape(-1, 3, 3)), len(both), len(index), "")


def weighted_kappa(tables: Any) -> Any:
    """Return the linearly weighted kappa of square tables of counts (last two axes): 1 − observed / expected disagreement."""
    import numpy as np

    tables = np.asarray(tables, dtype=np.float64)
    k = tables.shape[-1]
    weights = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    expected = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :] / tables.sum(axis=(-1, -2))[..., None, None]
    observed, by_chance = ((weights * x).sum(axis=(-1, -2)) for x in (tables, expected))
    return np.where(by_chance > 0, 1.0 - observed / np.where(by_chance > 0, by_chance, 1.0), np.nan)


def share(name: str, model: str, right: Sequence[float], note: str = "", clusters: Sequence[str] | None = None) -> EvalResult | None:
    """Return a rate with its interval over `clusters` (None: each item is one); None without items."""
    if not right:
        return None
    low, high = clustered_share(right, range(len(right)) if clusters is None else clusters)
    return EvalResult(name, model, sum(right) / len(right), len(right), low, high, note)


def _reliability(shared: Answers, people: Sequence[str], seed: int, talks: Conversations) -> list[EvalResult]:
    """Estimate each annotator's accuracy, with bootstrap intervals over conversations."""
    import numpy as np

    index = {who: j for j, who in enumerate(people)}
    answers = [np.array([(index[who], said) for who, said in mine.items()]) for mine in shared.values()]

    def accuracy(rows: Any) -> Any:
        drawn = [answers[i] for i in rows]
        who, said = np.concatenate(drawn).T
        _, found = fit(np.repeat(np.arange(len(drawn)), [len(mine) for mine in drawn]), who.astype(int), said, len(drawn), len(people))
        return np.where(np.bincount(who.astype(int), minlength=len(people)) > 0, found, np.nan)

    draws = _draws([talks[key] for key in shared], np.random.default_rng(seed), RELIABILITY_RESAMPLES)
    points, drawn = accuracy(range(len(answers))), np.array([accuracy(rows) for rows in draws])
    results = []
    for i, who in enumerate(people):
        mine = [talks[key] for key, said in shared.items() if who in said]
        if mine:
            results.append(
                _with_interval("reliability", who, float(points[i]), drawn[:, i], len(mine), len(set(mine)), "Dawid–Skene", lowest=0.0)
            )
    return [r for r in results if r is not None]


def _draws(clusters: Sequence[str], generator: Any, count: int) -> Iterator[Any]:
    """Yield the items of `count` resamples, each of as many clusters as there are, drawn with replacement."""
    import numpy as np

    members: dict[str, list[int]] = {}
    for i, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(i)
    groups = [np.array(mine) for mine in members.values()]
    for _ in range(count):
        yield np.concatenate([groups[g] for g in generator.integers(0, len(groups), len(groups))])


def _with_interval(
    name: str, model: str, value: float, drawn: Any, n: int, clusters: int, note: str, lowest: float = -1.0
) -> EvalResult | None:
    """Return a value between `lowest` and 1 with its bootstrap interval. One conversation of several pairs says nothing about others."""
    import numpy as np

    known = np.asarray(drawn, dtype=np.float64)
    known = known[~np.isnan(known)]
    if np.isnan(value) or not len(known):
        return None
    if clusters == 1:
        return EvalResult(name, model, value, n, lowest, 1.0, note)
    low, high = (float(x) for x in np.percentile(known, [2.5, 97.5]))
    wider = cluster_factor(clusters, n)
    return EvalResult(name, model, value, n, max(lowest, value - wider * (value - low)), min(1.0, value + wider * (high - value)), note)


def _mean(said: Mapping[str, float]) -> float:
    return sum(said.values()) / len(said)
