"""A run's numbers, sent to TensorBoard, trackio or Weights & Biases while it runs, by the names of TRL's `report_to`.

Every training passes its steps here, PPO's own loop too, and so do the watch, the stages' counts and the evaluation. Each trained model is
a run of its own on the tracker, and `pipeline` is one for all that has no training steps: trackers want steps that only rise. The run's own
files hold all of it. The trackers' clients are called by `accelerate.tracking`.
"""

import contextlib
import importlib.util
import io
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cai.errors import RecipeError
from cai.recipe import Recipe, ReportTo

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PIPELINE = "pipeline"
PROJECT = "cai"
Numbers = Mapping[str, float]


class Tracking:
    """The tracker's runs of one run of ours. Made without arguments it does nothing.

    Args:
        recipe: names the tracker, and is written down there.
        warn: told, once, that the tracker has failed. The run goes on without it.
    """

    def __init__(self, recipe: Recipe | None = None, folder: Path | None = None, warn: Callable[[str], None] = lambda text: None) -> None:
        self._open: Callable[[str], GeneralTracker] | None = None
        self._trackers: dict[str, GeneralTracker] = {}
        self._warn = warn
        if recipe is not None and folder is not None and recipe.report_to != "none":
            self._open = lambda part: open_tracker(recipe, folder, part)

    def start(self) -> None:
        """Open the pipeline's run, so that a tracker that can't be opened says so before anything is spent. Raises `RecipeError`."""
        if self._open is not None and PIPELINE not in self._trackers:
            self._trackers[PIPELINE] = self._open(PIPELINE)

    def log(self, part: str, numbers: Numbers, step: int | None = None) -> None:
        """Write numbers down; those that are not finite are left out.

        Args:
            part: `pipeline`, or the trained model that the numbers are about, by its folder's name.
            numbers: by name; a slash groups them.
            step: of the training; None where there is none.
        """
        if self._open is None:
            return
        try:
            if part not in self._trackers:
                self._trackers[part] = self._open(part)
            self._trackers[part].log({k: float(v) for k, v in numbers.items() if math.isfinite(v)}, step)
        except Exception as e:  # noqa: BLE001 - each library has errors of its own, and none is worth a run
            self._give_up(e)

    def finish(self) -> None:
        """Close the trained models' runs: what comes later, even under the same name, is another."""
        for part in [p for p in self._trackers if p != PIPELINE]:
            self._close(part)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        if PIPELINE in self._trackers:
            self._close(PIPELINE)

    def _close(self, part: str) -> None:
        try:
            with _quiet():
                self._trackers.pop(part).finish()
        except Exception as e:  # noqa: BLE001 - as above
            self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        if self._open is not None:
            self._warn(f"the tracker failed and is left alone from here on ({type(error).__name__}: {error}); the run's own files go on")
        self._open = None


def missing_tracker(report_to: ReportTo) -> str | None:
    """Say what has to be installed for a tracker; None where it is there."""
    if report_to == "none" or importlib.util.find_spec(report_to) is not None:
        return None
    return f"report_to: {report_to} is not installed. Install it: pip install 'cai[{report_to}]', or set report_to: none"


def open_tracker(recipe: Recipe, folder: Path, part: str) -> "GeneralTracker":
    """Open a run on the recipe's tracker, on this machine only unless the tracker's own settings say otherwise.

    TensorBoard: event files in the run's directory (`tensorboard --logdir runs`). Trackio: its database on this machine
    (`trackio show --project cai`). W&B: files in the run's directory for `wandb sync`; WANDB_MODE=online uploads at once.
    """
    try:
        with _quiet():
            tracker = _tracker(recipe, folder, part)
            tracker.start()
        if recipe.report_to == "tensorboard":  # its own way of storing settings takes no nested ones
            tracker.log({"recipe": f"```\n{msgspec.json.format(msgspec.json.encode(recipe), indent=2).decode()}\n```"})
        if recipe.report_to == "trackio":  # else the next `init` would finish this run, and the pipeline's stays open beside a training's
            import trackio

            trackio.context_vars.current_run.set(None)
    except Exception as e:  # each library has errors of its own
        raise RecipeError(
            f"report_to: {recipe.report_to} could not be opened ({type(e).__name__}: {e}).\n"
            "Fix: see the tracker's own settings, or set report_to: none; metrics.jsonl has the same numbers"
        ) from e
    return tracker


def _tracker(recipe: Recipe, folder: Path, part: str) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState()  # accelerate's trackers log through it; where several processes train, the process group is open by now
    if recipe.report_to == "tensorboard":
        return TensorBoardTracker(part, folder / "tensorboard")
    named = {"name": f"{recipe.name}/{part}", "group": recipe.name, "config": msgspec.to_builtins(recipe)}
    if recipe.report_to == "trackio":
        return TrackioTracker(PROJECT, **named, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False)
    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        **named,
        job_type=part,
        dir=str(folder),
        mode=os.environ.get("WANDB_MODE", "offline"),
        reinit="create_new",  # the pipeline's run stays open beside a training's
        settings={"silent": True, "console": "off"},
    )


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Keep what a client prints off standard output, which is for `--json`."""
    return contextlib.redirect_stdout(io.StringIO())
