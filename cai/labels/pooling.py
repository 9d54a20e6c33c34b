"""Pools several annotators' labels of one pair into one soft preference (docs/decisions/0012).

Each annotator counts once per pair, with the last answer, also across sources; an answer without an annotator counts as another person's. A
pair is one example, whatever its number of labels. Where the annotator `ADJUDICATOR` has answered, that answer alone counts.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from cai.data.filters import pooled, preference_key, sides_by_hash, texts_key
from cai.labels.dawid_skene import dawid_skene
from cai.labels.readings import PairRow
from cai.recipe import Pooling
from cai.records import HumanLabel, Preference

T = TypeVar("T")
ADJUDICATOR = "adjudication"
"""Annotator whose answer about a pair replaces all others: a decision of those who read a dispute together."""
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
        if label.annotator not in mine or is_later(label.time, mine[label.annotator].time):
            mine[label.annotator] = turned
    return found


def is_later(time: str, before: str) -> bool:
    """Whether an answer that was read after another one replaces it: unless both times can be parsed, and its own is earlier."""
    times = instant(before), instant(time)
    return times[0] is None or times[1] is None or times[1] >= times[0]


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
    named = by_pair(labels)
    answers = {key: [label.p_a for label in _counted(mine).values()] for key, mine in named.items()}
    found: dict[str, HumanLabel] = {}
    for label in labels:
        turned, key = in_hashed_order(label), pair_key(label)
        found.setdefault(key, turned)
        if not label.annotator and ADJUDICATOR not in named.get(key, {}):
            answers.setdefault(key, []).append(turned.p_a)
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


def pool_rows(rows: Sequence[PairRow], method: Pooling, smoothing: float) -> list[tuple[Preference, int]]:
    """Return one preference and the number of its answers per pair, in order of first occurrence. `p_chosen` may be ½.

    A name counts once per pair, with its last answer. Each answer without a name counts: it may be another person's. The weight is the mean
    of the answers' weights, so a pair is one example, whatever its number of answers.

    Args:
        rows: labels; a label's `p_chosen` is the probability that its `chosen` is better.
        method: `votes`: the fraction of votes; a tie is half a vote for each response. `dawid-skene`: votes weighted by each annotator's
            estimated reliability; the n-th answer of a pair without a name counts as one annotator's.
        smoothing: pseudo-votes for each response, at least 0. With `votes`, the probability is (votes + smoothing) / (n + 2 smoothing).
    """
    pairs: dict[str, dict[str, PairRow]] = {}
    for row in rows:
        mine = pairs.setdefault(preference_key(row.preference), {})
        name = row.annotator or f"\0{len(mine)}"
        if name not in mine or is_later(row.time, mine[name].time):
            mine[name] = row
    pairs = {key: _counted(mine) for key, mine in pairs.items()}
    if method == "dawid-skene":
        p_first = dawid_skene({key: {who: _p_first(row.preference) for who, row in mine.items()} for key, mine in pairs.items()}).p_first
    found = []
    for key, mine in pairs.items():
        preference = pooled([row.preference for row in mine.values()], smoothing=smoothing)
        if method == "dawid-skene":
            p = p_first[key] if in_order(preference) else 1.0 - p_first[key]
            preference = replace(preference, p_chosen=p) if p >= 0.5 else replace(preference, p_chosen=p).swapped()
        found.append((preference, len(mine)))
    return found


def counted_once(sources: Sequence[Iterable[PairRow]]) -> Callable[[int, PairRow], bool]:
    """Return a function that says whether a source's answer counts, given the source's number and the answer.

    Of an annotator's answers to a pair in several sources, those of one source count: by time if both times can be parsed, else that of
    the source listed last. Where `ADJUDICATOR` has answered in any source, that answer alone counts. Answers without an annotator all
    count: each may be another person's.

    Args:
        sources: the answers of people in each source.
    """
    counted: dict[tuple[str, str], tuple[int, str]] = {}
    for number, rows in enumerate(sources):
        for row in rows:
            who = preference_key(row.preference), row.annotator
            if row.annotator and (who not in counted or is_later(row.time, counted[who][1])):
                counted[who] = number, row.time

    def counts(number: int, row: PairRow) -> bool:
        key = preference_key(row.preference)
        if row.annotator != ADJUDICATOR and (key, ADJUDICATOR) in counted:
            return False
        return not row.annotator or counted[key, row.annotator][0] == number

    return counts


def _counted(answers: dict[str, T]) -> dict[str, T]:
    """Return the answers about a pair that count, by annotator: the adjudicator's alone, if there is one."""
    return {ADJUDICATOR: answers[ADJUDICATOR]} if ADJUDICATOR in answers else answers


def in_order(preference: Preference) -> bool:
    """Whether `chosen` is the first of the two responses in hashed order."""
    return sides_by_hash(preference.prompt, preference.chosen, preference.rejected)[0] == preference.chosen


def _p_first(preference: Preference) -> float:
    return preference.p_chosen if in_order(preference) else 1.0 - preference.p_chosen
