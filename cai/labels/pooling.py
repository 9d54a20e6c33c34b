"""Pools several annotators' labels of one pair into one soft preference (docs/decisions/0012).

Each annotator counts once per pair, with the last answer. Only labels with an annotator are pooled. A pair is one example of weight 1,
whatever its number of labels.
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
    """Group labels by pair and annotator, with the responses of each pair in the same order.

    A hash of the texts orders the responses. Labels without an annotator are left out. If an annotator labelled a pair twice, the later
    label counts: by time if both times can be parsed, else by order.

    Returns:
        `texts_key` of the pair, to annotator, to label, in order of first occurrence.
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
    """Parse a label's time, in ISO 8601 (UTC without a zone) or Unix seconds, into Unix seconds; None if it is neither.

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
    """Return one label per pair: the mean of all answers, with the responses in hashed order.

    Each annotator counts once, with the last answer. Answers without an annotator all count.
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
    """Return a key that is the same for all labels of the same two texts."""
    return texts_key(label.pair.prompt, label.pair.response_a, label.pair.response_b)


def in_hashed_order(label: HumanLabel) -> HumanLabel:
    """Return a label with its two responses in hashed order."""
    pair = label.pair
    if sides_by_hash(pair.prompt, pair.response_a, pair.response_b) == (pair.response_a, pair.response_b):
        return label
    return replace(label, pair=pair.swapped(), p_a=1.0 - label.p_a)


def pool_labels(labels: Sequence[HumanLabel], method: Pooling, smoothing: float) -> list[Preference]:
    """Return one preference per pair, in order of first occurrence. `p_chosen` is the pooled probability and may be ½.

    Args:
        labels: labels; those without an annotator are left out.
        method: `votes`: the fraction of votes; a tie is half a vote for each response. `dawid-skene`: votes weighted by each annotator's
            estimated reliability.
        smoothing: pseudo-votes for each response, at least 0. With `votes`, the probability is (votes + smoothing) / (n + 2 smoothing).
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
        cut = (pair.truncated_a, pair.truncated_b)
        preference = Preference(pair.prompt, pair.response_a, pair.response_b, p_a[key], 1.0, one.source, (), Provenance(model=""), *cut)
        pooled.append(preference if p_a[key] >= 0.5 else preference.swapped())
    return pooled
