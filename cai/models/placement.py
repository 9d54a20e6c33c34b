"""Where a model follows the instructions of prompt templates: what was measured for it, and the place that `placement: auto` takes."""

from typing import Literal

import msgspec

from cai.core.jsonl import append_record, read_existing
from cai.core.workspace import Workspace
from cai.errors import RecipeError
from cai.recipe import ModelSpec

FILE_NAME = "placements.jsonl"
"""Beside the call store, one line per measurement; the last one of a model counts."""


class MeasuredPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """How many rule-checked instructions a model followed in each place, of `n` (`cai models check MODEL --placement`)."""

    model: str
    """By `spec_name`."""
    n: int
    untold: int
    """Answers that follow the rule without the instruction."""
    system: int
    user: int

    @property
    def best(self) -> Literal["system", "user"]:
        """The place where more were followed; where both are level, the system turn."""
        return "user" if self.user > self.system else "system"


def spec_name(spec: ModelSpec) -> str:
    """Return what names a model in a recipe: path, name on the server, adapter, and whether it thinks."""
    parts = [spec.path, f"#{spec.name}" if spec.name else "", f"+{spec.adapter}" if spec.adapter else ""]
    return "".join([*parts, "" if spec.thinking is None else f" thinking={spec.thinking}"])


def placement_of(spec: ModelSpec, workspace: Workspace) -> Literal["system", "user"]:
    """Return where a model's instructions go.

    Args:
        spec: its `placement` is returned, unless it is `auto`.
        workspace: holds the measurements.

    Raises:
        RecipeError: `auto`, and nothing was measured for this model.
        StoreError: the measurements can't be read.
    """
    if spec.placement != "auto":
        return spec.placement
    found = read_existing(workspace.root / "runs" / FILE_NAME, MeasuredPlacement, torn_tail="drop")
    best = {m.model: m.best for m in found}.get(spec_name(spec))
    if best is None:
        raise RecipeError(
            f"placement: auto, and it was not measured yet where {spec_name(spec)} follows instructions. Measure it, in this workspace: "
            f"cai models check {spec_name(spec)} --placement"
        )
    return best


def keep(measured: MeasuredPlacement, workspace: Workspace) -> None:
    """Add a measurement to a workspace's. Raises `StoreError` where it can't be written."""
    append_record(workspace.root / "runs" / FILE_NAME, measured)
