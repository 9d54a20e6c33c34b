"""Runs a recipe from Python: `cai.run("runs/quickstart.yaml")`, or once per seed: `cai.run_seeds(…)`."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cai.core.console import Reporter
from cai.core.jsonl import read_records
from cai.core.workspace import RunDirectory, Workspace, find_workspace
from cai.data.balance import SourceBalance
from cai.errors import DataError, RecipeError
from cai.evaluate.adherence_table import AdherenceRecord
from cai.judge.bench import ProtocolResult
from cai.pipeline.driver import RunSummary, run_recipe
from cai.pipeline.seeds import SeedSpread, seed_recipes, write_spread
from cai.pipeline.stages import STAGES
from cai.recipe import GOLD, Recipe, load_recipe
from cai.records import (
    AuditFinding,
    BlendPoint,
    EvalResult,
    Judgment,
    Preference,
    Prompt,
    Response,
    ResponsePair,
    RevisionTrace,
    Sample,
    ScoredPair,
    SFTExample,
)
from cai.train.reward.metrics import RewardMeasure

if TYPE_CHECKING:
    from datasets import Dataset

RECORD_TYPES: dict[str, type] = {
    "prompts": Prompt,
    "eval_prompts": Prompt,
    "responses": Response,
    "traces": RevisionTrace,
    "sft": SFTExample,
    "pairs": ResponsePair,
    "revision_pairs": ResponsePair,
    "distilled": SFTExample,
    "beginnings": SFTExample,
    "distilled_pairs": ResponsePair,
    "judgments": Judgment,
    "judge_bench": ProtocolResult,
    "preferences": Preference,
    "preferences_heldout": Preference,
    "balance": SourceBalance,
    GOLD: Preference,
    f"{GOLD}_heldout": Preference,
    "reward_scores": ScoredPair,
    "reward_measures": RewardMeasure,
    "blend": BlendPoint,
    "evaluation": EvalResult,
    "samples": Sample,
    "adherence": AdherenceRecord,
    "audit": AuditFinding,
}
"""Record file in a run's `data` folder to the type of its records: all that stages write."""


@dataclass(frozen=True)
class Run:
    """Result of `run`: the outcome of each stage, and the run's records."""

    summary: RunSummary
    directory: RunDirectory

    def records(self, name: str) -> list[Any]:
        """Read one of the run's record files as typed objects: `run.records("preferences")[0].p_chosen`.

        Raises:
            DataError: there is no such file, or the stage that writes it has not run.
        """
        return list(read_records(self._path(name), RECORD_TYPES[name]))

    def dataset(self, name: str) -> "Dataset":
        """Read one of the run's record files as a `datasets.Dataset`, with one column per field. Raises like `records`."""
        from datasets import Dataset

        return Dataset.from_list([msgspec.to_builtins(record) for record in self.records(name)])

    def _path(self, name: str) -> Path:
        if name not in RECORD_TYPES:
            raise DataError(f"no records {name!r}; a run has: {', '.join(RECORD_TYPES)}")
        path = self.directory.data(name)
        if not path.is_file():
            raise DataError(f"{path}: not there yet; the stage that writes it has not run")
        return path


def run(
    recipe: Recipe | Path | str,
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    only: Sequence[str] = (),
    start: str | None = None,
    workspace: Workspace | Path | str | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Run a recipe, like `cai run`. Call it again to resume an interrupted run.

    In a notebook, where an event loop is already running, the run uses a separate thread, and this call waits for it.

    Args:
        recipe: a recipe file, or a recipe created in Python.
        overrides: changes to a recipe file, as `key.path=value`; the value is parsed as YAML.
        name: replaces the name in a recipe file and thereby the run directory.
        only: names of the stages to run; empty runs all.
        start: name of the first stage to run.
        workspace: the workspace. None: the one that contains the recipe file, or else the current folder.
        reporter: shows progress; None is silent.

    Raises:
        CaiError: an error that the user can fix. Finished work is kept.
    """
    loaded, place = _opened(recipe, overrides, name, workspace)
    if loaded.seeds:
        raise RecipeError(f"{loaded.name}: the recipe has several seeds. Run it with cai.run_seeds(…)")

    def go() -> RunSummary:
        return run_recipe(loaded, place, STAGES, reporter or Reporter(), only=only, start=start)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        summary = go()
    else:
        with ThreadPoolExecutor(1) as pool:
            summary = pool.submit(go).result()
    return Run(summary, place.run(loaded.name))


@dataclass(frozen=True)
class SeedRuns:
    """Result of `run_seeds`: a run per seed, in the recipe's order, and the spread over them."""

    runs: tuple[Run, ...]
    spread: tuple[SeedSpread, ...]
    """Every evaluation result over the seeds; empty if `only` left evaluation out."""


def run_seeds(
    recipe: Recipe | Path | str,
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    only: Sequence[str] = (),
    start: str | None = None,
    workspace: Workspace | Path | str | None = None,
    reporter: Reporter | None = None,
) -> SeedRuns:
    """Run a recipe once per seed of its `seeds`, as runs `NAME-seed-N`. The spread is also written to `runs/NAME/seeds.jsonl`.

    Call it again to resume. Arguments as in `run`.

    Raises:
        RecipeError: the recipe has no `seeds`, or one twice.
        CaiError: another error that the user can fix. Finished work is kept.
    """
    loaded, place = _opened(recipe, overrides, name, workspace)
    if not loaded.seeds:
        raise RecipeError(f"{loaded.name}: the recipe has no seeds. Name some, such as seeds: [0, 1, 2], or run it once with cai.run(…)")
    runs = tuple(run(one, only=only, start=start, workspace=place, reporter=reporter) for one in seed_recipes(loaded))
    evaluated = not only or "evaluate" in only
    return SeedRuns(runs, tuple(write_spread(loaded, place)[1]) if evaluated else ())


def _opened(
    recipe: Recipe | Path | str, overrides: Sequence[str], name: str | None, workspace: Workspace | Path | str | None
) -> tuple[Recipe, Workspace]:
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe), overrides, name)
    if isinstance(workspace, Workspace):
        return loaded, workspace
    near = Path.cwd() if isinstance(recipe, Recipe) else Path(recipe).parent
    return loaded, find_workspace(near if workspace is None else Path(workspace))
