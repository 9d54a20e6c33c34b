"""Runs that the studio starts. Each is a process of its own, `cai run`, and goes on when the studio stops.

What it prints is in `runs/.studio/logs/NAME.log`. Stopping is the Ctrl-C of a terminal; going on is running its recipe again.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from cai.core.jsonl import disk_error
from cai.core.manifest import read_manifest
from cai.core.status import run_status
from cai.core.workspace import RunDirectory, Workspace, is_text
from cai.errors import DataError, RecipeError, StoreError
from cai.pipeline.seeds import seed_recipes
from cai.recipe import Recipe, load_recipe

INTERRUPTED = 130
"""Exit code of `cai run` when it was stopped."""
TAIL_BYTES = 4000
"""What is shown of a log: its last bytes."""


class RunRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run to plan or to start. An empty field leaves the recipe's own setting."""

    recipe: str
    """Name of a file in `runs/`."""
    name: str = ""
    constitution: str = ""
    """Name of a file in `constitution/`, without its ending. The saved file counts, not the draft."""
    model: str = ""
    only: str = ""
    """Stages, with commas between; empty: all."""
    settings: list[str] = []
    """`KEY=VALUE`, as `--set` takes them."""

    def overrides(self) -> list[str]:
        """Return all settings as `--set` takes them."""
        own = [f"constitution={json.dumps(f'constitution/{self.constitution}.yaml')}"] if self.constitution else []
        own += [f"model.path={json.dumps(self.model)}"] if self.model else []
        return [*own, *(s for s in self.settings if s.strip())]


class Runs:
    """The runs that this process has started.

    Args:
        workspace: where runs are.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def recipes(self) -> list[str]:
        """Return the names of the recipe files in `runs/`."""
        return [f"{stem}.yaml" for stem in self._stems("runs")]

    def recipe(self, asked: RunRequest) -> Recipe:
        """Return the recipe with the asked settings. Raises `RecipeError` if it is not valid."""
        if asked.recipe not in self.recipes():
            raise RecipeError(f"no recipe runs/{asked.recipe}; there are: {', '.join(self.recipes()) or 'none'}")
        if asked.constitution and asked.constitution not in self._stems("constitution"):
            raise RecipeError(f"no constitution {asked.constitution}; there are: {', '.join(self._stems('constitution'))}")
        return load_recipe(self._workspace.root / "runs" / asked.recipe, asked.overrides(), asked.name or None)

    def start(self, asked: RunRequest) -> str:
        """Start a run and return its name; the first seed's, if the recipe has several.

        Raises:
            DataError: a process is running it already.
            RecipeError: the recipe is not valid.
        """
        recipe = self.recipe(asked)
        name = seed_recipes(recipe)[0].name if recipe.seeds else recipe.name
        sets = [part for setting in asked.overrides() for part in ("--set", setting)]
        only = ["--only", asked.only] if asked.only.strip() else []
        self._launch(name, [f"runs/{asked.recipe}", *sets, "--name", recipe.name, *only])
        return name

    def resume(self, run: RunDirectory) -> None:
        """Run the rest of the stages that a run was to run: finished stages and calls are reused.

        Raises:
            DataError: nothing is left to run, it has no recipe, or it is running.
        """
        name, left = run.path.name, self.left(run)
        if not left:
            raise DataError(f"{name}: nothing is left to run, or it has no recipe.yaml to run it by.")
        self._launch(name, [f"runs/{name}/recipe.yaml", "--name", name, "--only", ",".join(left)])

    def left(self, run: RunDirectory) -> tuple[str, ...]:
        """Return the stages that a run was to run if one of them isn't done; none if all are, or it has no recipe."""
        try:
            manifest = read_manifest(run.manifest)
        except StoreError:
            return ()
        if manifest is None or not (run.path / "recipe.yaml").is_file():
            return ()
        chosen = manifest.chosen or tuple(stage.name for stage in run_status(run).stages)  # a run of an earlier version
        done = {stage.name for stage in manifest.stages if stage.status == "done"}
        return () if done.issuperset(chosen) else chosen

    def stop(self, run: RunDirectory) -> None:
        """Stop a run as Ctrl-C does: after the calls in flight; the second time, now. Raises `DataError` if no process is running it."""
        process = self._started.get(run.path.name)
        pid = run.holder() or (process.pid if process is not None and process.poll() is None else None)
        if pid is None:
            raise DataError(f"{run.path.name}: no process is running it.")
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError as e:
            raise DataError(f"{run.path.name}: process {pid} can't be stopped ({e.strerror}).") from e

    def started(self) -> list[str]:
        """Return the names of the runs that this process has started."""
        return list(self._started)

    def failed(self, name: str) -> bool:
        """Return whether a run that was started here has ended with an error."""
        process = self._started.get(name)
        return process is not None and process.poll() not in (None, 0, INTERRUPTED)

    def alive(self, run: RunDirectory) -> bool:
        """Return whether a process is running it, or about to."""
        process = self._started.get(run.path.name)
        return run.in_use() or (process is not None and process.poll() is None)

    def log(self, name: str) -> Path:
        """Return the path of what a run printed when it was last started here."""
        return self._workspace.root / "runs" / ".studio" / "logs" / f"{name}.log"

    def printed(self, name: str) -> str:
        """Return the last lines that a run printed; empty if it was never started here."""
        try:
            with self.log(name).open("rb") as log:
                start = max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES)
                log.seek(start)
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return text.partition("\n")[2] if start else text

    def _stems(self, folder: str) -> list[str]:
        return sorted(p.stem for p in (self._workspace.root / folder).glob("*.yaml") if p.is_file() and is_text(p.name))

    def _launch(self, name: str, arguments: list[str]) -> None:
        if self.alive(self._workspace.run(name)):
            raise DataError(f"{name}: is running already. Wait for it, stop it, or choose another name.")
        log = self.log(name)
        command = [sys.executable, "-P", "-m", "cai", "run", *arguments]  # -P: no module of the workspace is imported
        environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "110"}
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)  # it may be a link
            with log.open("xb") as out:
                self._started[name] = subprocess.Popen(
                    command,
                    cwd=self._workspace.root,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as e:
            raise disk_error(e, log) from e
