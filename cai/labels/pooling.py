"""Several people's labels of one pair into one soft preference (docs/decisions/0012).

A person counts once for a pair, with their last answer. Only labels with a name are pooled; a pair stays one example of weight 1 however
many people looked at it.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cai.data.filters import sides_by_hash, texts_key
from cai.labels.dawid_skene import dawid_skene
from cai.recipe import Pooling
from cai.records import HumanLabel, Preference, Provenance

_SECONDS = re.compile(r"[0-9]{9,11}(\.[0-9]+)?")


def by_pair(labels: Iterable[HumanLabel]) -> dict[str, dict[str, HumanLabel]]:
    """Return each pair's labels by annotator, with all labels of a pair told for the same two sides.

    Sides are drawn by a hash of the texts; labels without an annotator are left out. Of two answers of a person to one pair, the later
    counts: by their times where both can be read, else by their order.

    Returns:
        `texts_key` of the pair to annotator to label, in the order first met.
    """
    found: dict[str, dict[str, HumanLabel]] = {}
    for label in labels:
        if not label.annotator:
            continue
        turned = in_hashed_order(label)
        mine = found.setdefault(pair_key(label), {})
        before = mine.get(label.annotator)
        times = (None, None) if before is None else (instant(before.time), instant(label.time))
        if times[0] is None or times[1] is None or times[1] >= times[0]:
            mine[label.annotator] = turned
    return found


def instant(time: str) -> float | None:
    """Return seconds since 1970 of a label's time; None where it is neither ISO 8601 (UTC if it names no zone) nor such seconds.

    >>> instant("2026-01-01T01:00:00+01:00") == instant("2026-01-01") == instant("1767225600")
    True
    """
    try:
        if _SECONDS.fullmatch(time):
            return float(time)
        when = datetime.fromisoformat(time)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def consensus(labels: Iterable[HumanLabel]) -> dict[str, HumanLabel]:
    """Return one label for every pair, its sides in hashed order: the mean of all answers, each person's last counting once.

    Answers without a name count as they come: nobody can tell whose they are.
    """
    labels = list(labels)
    answers = {key: [label.p_a for label in mine.values()] for key, mine in by_pair(labels).items()}
    found: dict[str, HumanLabel] = {}
    for label in labels:
        turned = in_hashed_order(label)
        found.setdefault(pair_key(label), turned)
        if not label.annotator:
            answers.setdefault(pair_key(label), []).append(turned.p_a)
    return {key: replace(label, annotator="", p_a=math.fsum(answers[key]) / len(answers[key])) for key, label in found.items()}


def pair_key(label: HumanLabel) -> str:
    """Return the key that all labels of the same two texts share."""
    return texts_key(label.pair.prompt, label.pair.response_a, label.pair.response_b)


def in_hashed_order(label: HumanLabel) -> HumanLabel:
    """Return a label with its two responses in the order that a hash of the texts gives."""
    pair = label.pair
    if sides_by_hash(pair.prompt, pair.response_a, pair.response_b) == (pair.response_a, pair.response_b):
        return label
    return replace(label, pair=pair.swapped(), p_a=1.0 - label.p_a)


def pool_labels(labels: Sequence[HumanLabel], method: Pooling, smoothing: float) -> list[Preference]:
    """Return one preference for every pair, in the order first met. Its `p_chosen` is the pooled probability and may be ½.

    Args:
        labels: with annotators; others are left out.
        method: `votes`: the share of votes, a tie being half a vote for either; `dawid-skene`: votes weighed by how reliable each
            annotator proves to be over all pairs.
        smoothing: votes to imagine on either side, at least 0. With `votes` the probability is (votes + smoothing) / (n + 2 smoothing).
    """
    pairs = by_pair(labels)
    if method == "dawid-skene":
        fitted = dawid_skene({key: {who: label.p_a for who, label in mine.items()} for key, mine in pairs.items()}, max(smoothing, 0.01))
        p_a = fitted.p_first
    else:
        p_a = {key: (sum(label.p_a for label in mine.values()) + smoothing) / (len(mine) + 2 * smoothing) for key, mine in pairs.items()}
    pooled = []
    for key, mine in pairs.items():
        one = next(iter(mine.values()))
        pair = one.pair
        preference = Preference(pair.prompt, pair.response_a, pair.response_b, p_a[key], 1.0, one.source, (), Provenance(model=""))
        pooled.append(preference if p_a[key] >= 0.5 else preference.swapped())
    return pooled
