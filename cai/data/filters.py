"""Keys for duplicate texts, train/held-out splits without leakage, and length statistics."""

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cai.ids import content_hash, split_fraction
from cai.recipe import SourceMix
from cai.records import Message, Preference, Prompt

T = TypeVar("T")


def normalise(text: str) -> str:
    """Normalise case, Unicode form and white space of a text. Punctuation stays: `3-2` is not `3+2`.

    >>> normalise("  What IS\\n 3-2? ")
    'what is 3-2?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def conversation_key(messages: Sequence[Message]) -> str:
    """Return a short hash that is the same for conversations with the same normalised turns."""
    return content_hash([(m.role, normalise(m.content)) for m in messages])


def prompt_key(prompt: Prompt) -> str:
    """Return a key that is the same for prompts with the same normalised text, whatever their ids and sources."""
    return conversation_key(prompt.messages)


def texts_key(prompt: Prompt, one: str, other: str) -> str:
    """Return a key that is the same for labels of the same two texts, in either order."""
    return content_hash((prompt_key(prompt), sorted((normalise(one), normalise(other)))))


def sides_by_hash(prompt: Prompt, one: str, other: str) -> tuple[str, str]:
    """Return two responses in an order that depends on the texts only, so that the order carries no information about the label."""
    first, second = sorted((one, other), key=normalise)
    return (second, first) if split_fraction(texts_key(prompt, one, other), "sides") < 0.5 else (first, second)


def preference_key(preference: Preference) -> str:
    """Return a key that is the same for all labels of the same two texts."""
    return texts_key(preference.prompt, preference.chosen, preference.rejected)


def pooled(labels: Sequence[Preference], counts: Sequence[float] | None = None, smoothing: float = 0.0) -> Preference:
    """Return one preference for several labels of the same two texts.

    `p_chosen` is the mean of the labels, weighted by their weights times their counts. The weight is the mean weight, since a pair is one
    example, whatever its number of labels. All else is the first label's.

    Args:
        labels: labels of the same two texts, in either order.
        counts: number of answers behind each label; None: 1.
        smoothing: pseudo-votes for each response.
    """
    first, counts = labels[0], counts or [1.0] * len(labels)
    values = [p.p_chosen if normalise(p.chosen) == normalise(first.chosen) else 1.0 - p.p_chosen for p in labels]
    weights = [n * p.weight for n, p in zip(counts, labels, strict=True)]
    if not any(weights):
        weights = list(counts)
    p = math.fsum(w * v for w, v in zip(weights, values, strict=True)) + smoothing
    p = values[0] if len(set(values)) == 1 and not smoothing else p / (math.fsum(weights) + 2 * smoothing)
    weight = math.fsum(n * x.weight for n, x in zip(counts, labels, strict=True)) / math.fsum(counts)
    found = replace(first, p_chosen=p, weight=weight)
    return found if p >= 0.5 else found.swapped()


def split_by_prompt(
    preferences: Iterable[Preference], held_out_fraction: float, salt: str, group_of: Callable[[Prompt], str]
) -> tuple[list[Preference], list[Preference]]:
    """Split into training and held-out preferences by a hash of the prompt's group.

    All preferences of a group are in the same split, and adding rows doesn't move rows of other groups.

    Args:
        preferences: preferences of any source.
        held_out_fraction: expected fraction of groups (not rows) to hold out, in [0, 1].
        salt: string that is hashed with the group; another salt gives another split.
        group_of: the group of a prompt, from `cai.data.splits.split_groups`.

    Returns:
        Training and held-out preferences, each in the order given.
    """
    train: list[Preference] = []
    held_out: list[Preference] = []
    for p in preferences:
        (held_out if split_fraction(group_of(p.prompt), salt) < held_out_fraction else train).append(p)
    return train, held_out


def softened(preference: Preference, mix: SourceMix) -> Preference:
    """Apply a source's temperature, noise and weight to a preference. The preferred response stays the same."""
    p, inverse = preference.p_chosen, 1.0 / mix.temperature
    if mix.temperature != 1.0:
        p = p**inverse / (p**inverse + (1.0 - p) ** inverse)
    return replace(preference, p_chosen=(1.0 - 2.0 * mix.noise) * p + mix.noise, weight=preference.weight * mix.weight)


def length_stats(preferences: Sequence[Preference]) -> "LengthStats":
    """Return mean lengths of chosen and rejected responses, and how often the chosen one is longer. All 0 without preferences."""
    n = len(preferences)
    if n == 0:
        return LengthStats(0, 0.0, 0.0, 0.0)
    return LengthStats(
        n=n,
        mean_chosen_characters=sum(len(p.chosen) for p in preferences) / n,
        mean_rejected_characters=sum(len(p.rejected) for p in preferences) / n,
        chosen_longer_fraction=sum(_longer(p) for p in preferences) / n,
    )


def _longer(preference: Preference) -> float:
    difference = len(preference.chosen) - len(preference.rejected)
    return 0.5 if difference == 0 else float(difference > 0)


@dataclass(frozen=True, slots=True)
class LengthStats:
    """Lengths of chosen and rejected responses. Length is the most common shortcut of reward models."""

    n: int
    mean_chosen_characters: float
    mean_rejected_characters: float
    chosen_longer_fraction: float
    """Fraction of pairs whose chosen response is longer; equal lengths count half."""
