"""Training data slices of a reward ensemble's members. Members trained on different labels disagree where the labels are inconclusive.

Slices are made of whole groups of prompts (one conversation, near-copies: `cai.data.splits`), assigned by hash: all labels of a group are
in the same slice, and new rows move others only if they join two groups.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.data.splits import SIMILARITY, split_groups
from cai.errors import TrainingError
from cai.ids import derive_seed, split_fraction
from cai.recipe import Slices
from cai.records import Preference


@dataclass(frozen=True, slots=True)
class Slice:
    """One member's training data."""

    description: str
    """Description of the slice, for the model card."""
    preferences: tuple[Preference, ...]


def slice_preferences(
    preferences: Sequence[Preference], members: int, slices: Slices, seed: int, similarity: float | None = SIMILARITY
) -> list[Slice]:
    """Return each member's training data, in the given order.

    Args:
        members: number of slices, at least 1.
        slices: see `RewardConfig.slices`. With `principle`, a label without a principle (such as an annotator's) goes to every member, and
            a label under several principles goes to every member that has one of them.
        seed: decides which prompts each member gets.
        similarity: as for `split_groups`.

    Raises:
        TrainingError: fewer than two members for `folds` or `parts`, fewer sources or principles than members, or an empty slice.
    """
    if members < 2 and slices in ("folds", "parts"):
        raise TrainingError(
            f"reward.slices: {slices} needs at least 2 members, found {members}.\nFix: raise reward.members, or slices: all"
        )
    if slices == "all":
        result = [Slice("all training pairs", tuple(preferences))] * members
    elif slices == "source":
        result = _by_group(preferences, members, "source", lambda p: (p.source,))
    elif slices == "principle":
        result = _by_group(preferences, members, "principle", lambda p: p.principle_ids)
    else:
        slicers = {"folds": _folds, "parts": _parts, "bootstrap": _bootstrap}
        result = slicers[slices](preferences, members, seed, similarity)
    empty = [f"member {i} ({s.description})" for i, s in enumerate(result) if not s.preferences]
    if empty:
        raise TrainingError(
            f"reward.slices: {slices} leaves no pair, of {len(preferences)} pairs, for {', '.join(empty)}.\n"
            "Fix: use fewer reward.members, or slices: all"
        )
    return result


def _groups(preferences: Sequence[Preference], similarity: float | None) -> list[str]:
    prompts = [p.prompt for p in preferences]
    return list(map(split_groups(prompts, similarity), prompts))


def _fold_of_each(preferences: Sequence[Preference], folds: int, seed: int, similarity: float | None) -> list[tuple[Preference, int]]:
    fold = [int(split_fraction(group, f"fold:{seed}") * folds) for group in _groups(preferences, similarity)]
    return list(zip(preferences, fold, strict=True))


def _folds(preferences: Sequence[Preference], members: int, seed: int, similarity: float | None) -> list[Slice]:
    found = _fold_of_each(preferences, members, seed, similarity)
    return [Slice(f"all prompts but fold {i + 1} of {members}", tuple(p for p, f in found if f != i)) for i in range(members)]


def _parts(preferences: Sequence[Preference], members: int, seed: int, similarity: float | None) -> list[Slice]:
    found = _fold_of_each(preferences, members, seed, similarity)
    return [Slice(f"part {i + 1} of {members} of the prompts", tuple(p for p, f in found if f == i)) for i in range(members)]


def _bootstrap(preferences: Sequence[Preference], members: int, seed: int, similarity: float | None) -> list[Slice]:
    """Draw as many prompts as there are, with replacement (Efron 1979)."""
    keys = _groups(preferences, similarity)
    prompts = sorted(set(keys))
    made = []
    for i in range(members):
        drawn = Counter(random.Random(derive_seed(seed, "bootstrap", i)).choices(prompts, k=len(prompts)) if prompts else [])
        rows = [p for p, key in zip(preferences, keys, strict=True) for _ in range(drawn[key])]
        made.append(Slice(f"{len(drawn)} of {len(prompts)} prompts, drawn with replacement (bootstrap {i + 1})", tuple(rows)))
    return made


def _by_group(preferences: Sequence[Preference], members: int, what: str, groups_of: Callable[[Preference], Sequence[str]]) -> list[Slice]:
    """Assign groups of labels to members, the largest first, each to the member with the fewest labels so far."""
    sizes = Counter(group for p in preferences for group in groups_of(p))
    if len(sizes) < members:
        raise TrainingError(
            f"reward.slices: {what} with {members} members, but the training pairs have {len(sizes)} {what}s: "
            f"{', '.join(sorted(sizes)) or 'none'}.\nFix: reward.members at most {max(1, len(sizes))}, or another slices"
        )
    assigned: list[list[str]] = [[] for _ in range(members)]
    for group in sorted(sizes, key=lambda g: (-sizes[g], g)):
        min(assigned, key=lambda groups: sum(sizes[g] for g in groups)).append(group)
    made = []
    for groups in assigned:
        rows = tuple(p for p in preferences if not groups_of(p) or not set(groups_of(p)).isdisjoint(groups))
        made.append(Slice(f"{what}s {', '.join(sorted(groups))}", rows))
    return made
