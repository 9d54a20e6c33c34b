"""A run's numbers, sent to TensorBoard, trackio or Weights & Biases while it runs, by the names of TRL's `report_to`.

Every training passes its steps here, PPO's own loop too, and so do the watch, the stages' counts and the evaluation. Each trained model is
a run of its own on the tracker, and `pipeline` is one for all that has no training steps: trackers want steps that only rise. Nothing is
decided by what is written here; the run's own files hold it all.
"""

import contextlib
import importlib.util
import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cai.errors import RecipeError
from cai.recipe import Recipe, ReportTo

PIPELINE = "pipeline"
PROJECT = "cai"
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Sink:
    """One run on a tracker."""

    write: Callable[[Numbers, int | None], None]
    """Takes numbers by name, and the step, which never falls; None where there are no steps."""
    close: Callable[[], None]


class Tracking:
    """The tracker's runs of one run of ours. Made without arguments it does nothing.

    Args:
        recipe: names the tracker, and is written down there.
        folder: the run's directory.
        warn: told, once, that the tracker has failed. The run goes on without it.
    """

    def __init__(self, recipe: Recipe | None = None, folder: Path | None = None, warn: Callable[[str], None] = lambda text: None) -> None:
        self._open: Callable[[str], Sink] | None = None
        self._sinks: dict[str, Sink] = {}
        self._warn = warn
        if recipe is not None and folder is not None and recipe.report_to != "none":
            self._open = lambda part: open_sink(recipe, folder, part)

    def start(self) -> None:
        """Open the pipeline's run, so that a tracker that can't be opened says so before anything is spent. Raises `RecipeError`."""
        if self._open is not None and PIPELINE not in self._sinks:
            self._sinks[PIPELINE] = self._open(PIPELINE)

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
            if part not in self._sinks:
                self._sinks[part] = self._open(part)
            self._sinks[part].write({k: float(v) for k, v in numbers.items() if math.isfinite(v)}, step)
        except Exception as e:  # noqa: BLE001 - each library has errors of its own, and none is worth a run
            self._give_up(e)

    def finish(self) -> None:
        """Close the trained models' runs: what comes later, even under the same name, is another."""
        for part in [p for p in self._sinks if p != PIPELINE]:
            self._close(part)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        if PIPELINE in self._sinks:
            self._close(PIPELINE)

    def _close(self, part: str) -> None:
        try:
            self._sinks.pop(part).close()
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


def open_sink(recipe: Recipe, folder: Path, part: str) -> Sink:
    """Open a run on the recipe's tracker, on this machine only unless the tracker's own settings say otherwise.

    Raises:
        RecipeError: it can't be opened.
    """
    try:
        return {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}[recipe.report_to](recipe, folder, part)
    except Exception as e:  # each library has errors of its own
        raise RecipeError(
            f"report_to: {recipe.report_to} could not be opened ({type(e).__name__}: {e}).\n"
            "Fix: see the tracker's own settings, or set report_to: none; metrics.jsonl has the same numbers"
        ) from e


def _tensorboard(recipe: Recipe, folder: Path, part: str) -> Sink:
    """Event files in the run's directory: `tensorboard --logdir runs` shows all runs."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard" / part))
    writer.add_text("recipe", f"```\n{msgspec.json.format(msgspec.json.encode(recipe), indent=2).decode()}\n```")

    def write(numbers: Numbers, step: int | None) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Sink(write, writer.close)


def _trackio(recipe: Recipe, folder: Path, part: str) -> Sink:
    """Trackio's database on this machine: `trackio show --project cai`. It prints to standard output, which is for `--json`."""
    import trackio

    with contextlib.redirect_stdout(io.StringIO()):
        run = trackio.init(
            project=PROJECT,
            name=f"{recipe.name}/{part}",
            group=recipe.name,
            config=msgspec.to_builtins(recipe),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
    trackio.context_vars.current_run.set(None)  # else the next `init` would finish it, and the pipeline's stays open beside a training's

    def close() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run.finish()

    return Sink(lambda numbers, step: run.log(dict(numbers), step=step), close)


def _wandb(recipe: Recipe, folder: Path, part: str) -> Sink:
    """Files in the run's directory for `wandb sync`; WANDB_MODE=online uploads at once."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        group=recipe.name,
        name=f"{recipe.name}/{part}",
        job_type=part,
        config=msgspec.to_builtins(recipe),
        dir=str(folder),
        mode=os.environ.get("WANDB_MODE", "offline"),
        reinit="create_new",  # the pipeline's run stays open beside a training's
        settings=wandb.Settings(silent=True, console="off"),
    )
    return Sink(lambda numbers, step: run.log(dict(numbers), step=step), run.finish)
