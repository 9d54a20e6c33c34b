"""Labels that something was fitted to (a calibration, a probe) must never measure it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from cai.data.filters import preference_key
from cai.data.splits import split_groups
from cai.judge.calibration import calibration_of
from cai.judge.probe import probe_of
from cai.recipe import FeedbackConfig
from cai.records import Preference, Prompt

T = TypeVar("T")


class FittedToLabels(Protocol):
    """What knows the labels that it was fitted to."""

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """`texts_key` of every pair."""
        ...

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of these pairs."""
        ...


def fitted_of(config: FeedbackConfig, root: Path) -> tuple[FittedToLabels, ...]:
    """Return the calibration and the probe that a recipe names. Raises `DataError`."""
    return tuple(found for found in (calibration_of(config, root), probe_of(config, root)) if found is not None)


def unseen(fitted: Iterable[FittedToLabels], items: Sequence[T], key: Callable[[T], str], prompt: Callable[[T], Prompt]) -> list[T]:
    """Return the labelled items that nothing was fitted on, nor on a pair of the same conversation or of a near-copy.

    Args:
        fitted: what was fitted.
        items: human labels.
        key: `texts_key` of an item's pair.
        prompt: prompt of an item.
    """
    fitted = list(fitted)
    if not fitted:
        return list(items)
    keys = frozenset(key for one in fitted for key in one.fitted_on)
    prompts = [p for one in fitted for p in one.prompts]
    group_of = split_groups((*prompts, *map(prompt, items)))
    seen = {group_of(p) for p in prompts}
    seen |= {group_of(prompt(item)) for item in items if key(item) in keys}
    return [item for item in items if group_of(prompt(item)) not in seen]


def unseen_by(fitted: Iterable[FittedToLabels], pairs: Sequence[Preference]) -> list[Preference]:
    """Return the labelled pairs that are `unseen`."""
    return unseen(fitted, pairs, preference_key, lambda p: p.prompt)
