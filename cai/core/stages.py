"""The stages of a run, in order: what their names are, which recipes have them, and what limits the texts that they sample.

This is the only list of them. `cai.pipeline.stages` says what each does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What is known of a stage without its code."""

    name: str
    key: str = ""
    """Key of the recipe that decides whether a run has the stage: a list that names it, or a block of its own. Empty: every run has it."""
    by_default: bool = True
    """Whether a run has the stage whose recipe doesn't have that key, or can't be read."""
    limit: str = ""
    """Key of the token limit of its texts; empty if it samples none."""

    def is_in(self, recipe: Any) -> bool:
        """Whether a run has the stage, given its `Recipe`, or what the recipe's file holds."""
        if not self.key:
            return True
        found = recipe
        for part in self.key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
        if found is None:
            return self.by_default
        return self.name in found if isinstance(found, list | tuple) else bool(found)


STAGE_INFO = {
    stage.name: stage
    for stage in (
        StageInfo("respond", limit="respond.sampling.max_tokens"),
        StageInfo("critique", key="sft.data", limit="critique.sampling.max_tokens"),
        StageInfo("distill", key="sft.data", by_default=False, limit="distill.sampling.max_tokens"),
        StageInfo("sft"),
        StageInfo("pairs", limit="pairs.sampling.max_tokens"),
        StageInfo("feedback"),
        StageInfo("preferences"),
        StageInfo("reward"),
        StageInfo("policy", limit="policy.online.max_tokens or policy.ppo.response_length"),
        StageInfo("blend", key="blend", by_default=False),
        StageInfo("evaluate", limit="evaluate.sampling.max_tokens"),
        StageInfo("report"),
    )
}
STAGE_NAMES = tuple(STAGE_INFO)
