"""Contribution of each source to a mixture of preferences, and conflicts between sources.

A reward model learns what chosen responses have in common. If annotators prefer shorter responses and the judge prefers longer ones, a
mixture of both teaches neither. For each source and feature, this module measures how often the chosen response has more of the feature.
Two sources conflict if their 95 % confidence intervals lie on opposite sides of ½.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from cai.core.text.refusals import is_refusal
from cai.core.text.words import word_count
from cai.data.filters import LengthStats, length_stats
from cai.data.splits import conversation_id
from cai.records import Preference
from cai.stats import clustered_share

_LISTS = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_MARKUP = re.compile(r"\*\*\S|^#{1,6} |```|^\|.*\|", re.MULTILINE)
FEATURES: dict[str, Callable[[str], float]] = {
    "length": lambda text: float(word_count(text)),
    "refusal": lambda text: float(is_refusal(text)),
    "lists": lambda text: float(len(_LISTS.findall(text))),
    "markup": lambda text: float(len(_MARKUP.findall(text))),
    "questions": lambda text: float(text.count("?")),
    "first person": lambda text: float(len(re.findall(r"\bI(?:'m|'d|'ll|'ve)?\b", text))),
}
"""Feature name to its amount in a response."""
WORDS = {
    "length": "the longer response",
    "refusal": "the refusal",
    "lists": "the response with more list items",
    "markup": "the response with more markup",
    "questions": "the response that asks more",
    "first person": "the response that says I more often",
}


@dataclass(frozen=True, slots=True)
class Leaning:
    """How often a source's chosen response has more of a feature than the rejected one, among pairs that differ in it."""

    feature: str
    more_chosen: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class SourceBalance:
    """One source's contribution to a mixture."""

    source: str
    train: int
    held_out: int
    mean_p_chosen: float
    mean_weight: float
    weight_share: float
    """Fraction of the total training weight of all sources."""
    lengths: LengthStats
    leanings: tuple[Leaning, ...]


def source_balance(train: Sequence[Preference], held_out: Sequence[Preference]) -> list[SourceBalance]:
    """Return the contribution of each source, sorted by name."""
    total = sum(p.weight for p in train) or 1.0
    rows = []
    for source in sorted({p.source for p in (*train, *held_out)}):
        mine = [p for p in (*train, *held_out) if p.source == source]
        in_train = [p for p in train if p.source == source]
        rows.append(
            SourceBalance(
                source=source,
                train=len(in_train),
                held_out=len(mine) - len(in_train),
                mean_p_chosen=sum(p.p_chosen for p in mine) / len(mine),
                mean_weight=sum(p.weight for p in mine) / len(mine),
                weight_share=sum(p.weight for p in in_train) / total,
                lengths=length_stats(mine),
                leanings=tuple(found for name in FEATURES if (found := leaning(name, mine)) is not None),
            )
        )
    return rows


def leaning(feature: str, preferences: Sequence[Preference]) -> Leaning | None:
    """Return how often the chosen response has more of a feature; None if no pair differs in it."""
    measure = FEATURES[feature]
    signs: list[float] = []
    conversations = []
    for p in preferences:
        difference = measure(p.chosen) - measure(p.rejected)
        if difference and p.p_chosen != 0.5:
            signs.append(float((difference > 0) == (p.p_chosen > 0.5)))
            conversations.append(conversation_id(p.prompt))
    if not signs:
        return None
    low, high = clustered_share(signs, conversations)
    return Leaning(feature, sum(signs) / len(signs), low, high, len(signs))


def opposite_leanings(sources: Sequence[SourceBalance]) -> list[str]:
    """Return one warning per feature and pair of sources whose preferences significantly conflict."""
    found = []
    for one, other in combinations(sources, 2):
        theirs = {x.feature: x for x in other.leanings}
        for mine in one.leanings:
            its = theirs.get(mine.feature)
            if its is not None and (mine.low > 0.5 > its.high or its.low > 0.5 > mine.high):
                found.append(
                    f"{one.source} and {other.source} pull in opposite directions: {WORDS[mine.feature]} is chosen in {_shown(mine)} "
                    f"of the first and {_shown(its)} of the second. A reward model trained on both may learn neither: compare it with one "
                    "trained on each source alone."
                )
    return found


def _shown(x: Leaning) -> str:
    return f"{x.more_chosen:.0%} [{x.low:.0%}, {x.high:.0%}] (n = {x.n})"
