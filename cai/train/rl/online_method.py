"""What GRPO, RLOO and other trainings on groups of the policy's own samples declare (`cai.train.rl.grpo` runs them)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cai.recipe import OnlineConfig


@dataclass(frozen=True, slots=True)
class OnlineMethod:
    """What one training on groups of the policy's own samples has of its own."""

    description: str
    """For the model card."""
    beta: float
    """KL coefficient where the recipe has none."""
    classes: Callable[[], tuple[Any, Any]]
    """Returns TRL's trainer with `cai`'s sampling, such as `cai.train.rl.trainers.GRPORun`, and the class of its arguments. It is called
    once training starts, because it loads torch and TRL."""
    arguments: Callable[[OnlineConfig], Mapping[str, Any]] = lambda online: {}
    """Arguments of that class which other methods don't have."""
