"""Selects the pairs to label next: most informative first, and each prompt once before any prompt repeats."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cai.data.filters import prompt_key, texts_key
from cai.data.repeats import drop_near_duplicates
from cai.records import ResponsePair

SIMILAR = 0.8
"""Jaccard similarity of five-word n-grams from which prompts count as near-duplicates."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A candidate pair for labelling."""

    pair: ResponsePair
    score: float
    """Informativeness: higher is labelled first. Comparable only within one queue."""
    reason: str


def choose_pairs(candidates: Iterable[Queued], n: int, labelled: frozenset[str] = frozenset()) -> list[Queued]:
    """Return at most `n` pairs, in the order in which they should be labelled.

    The order is by rounds: the best pair of each prompt, then the second best of each prompt, and so on; best first within a round.
    Near-duplicate prompts count as one prompt.

    Args:
        candidates: pairs with their scores.
        n: maximum number of pairs, at least 1.
        labelled: `texts_key`s of pairs that are already labelled; they are left out.
    """
    fresh: dict[str, Queued] = {}
    for c in candidates:
        key = texts_key(c.pair.prompt, c.pair.response_a, c.pair.response_b)
        if key not in labelled and (key not in fresh or c.score > fresh[key].score):
            fresh[key] = c
    order = sorted(fresh.values(), key=lambda c: (-c.score, c.pair.id))
    turn_of = _groups(order)
    met: dict[str, int] = {}
    rounds: list[tuple[int, Queued]] = []
    for c in order:
        group = turn_of[prompt_key(c.pair.prompt)]
        rounds.append((met.get(group, 0), c))
        met[group] = met.get(group, 0) + 1
    rounds.sort(key=lambda turn: turn[0])  # stable: best first within a round
    return [c for _, c in rounds[:n]]


def _groups(order: Sequence[Queued]) -> dict[str, str]:
    """Return the representative of each prompt: itself, or the prompt that it nearly duplicates."""
    prompts = {prompt_key(c.pair.prompt): c.pair.prompt for c in order}
    keys = list(prompts)
    kept, dropped = drop_near_duplicates(keys, ["\n".join(m.content for m in prompts[k].messages) for k in keys], SIMILAR)
    return {**{k: k for k in kept}, **dict(dropped)}
