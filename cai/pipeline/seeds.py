"""A recipe with several seeds: the whole run once per seed, and the spread of every evaluation result over the seeds.

An interval over prompts says what other prompts would change. It doesn't say what another training would change: other samples, another
order of the data, other initial weights. That is the spread over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from msgspec.structs import replace

from cai.core.jsonl import read_records, write_records
from cai.core.workspace import RunDirectory, Workspace
from cai.errors import DataError, RecipeError
from cai.recipe import Recipe
from cai.records import EvalResult

SEEDS = "seeds.jsonl"
"""File of the spreads, in `runs/NAME`."""


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """One evaluation result over several seeds."""

    name: str
    model: str
    mean: float
    """Mean over the seeds."""
    std: float
    """Standard deviation over the seeds; 0 for one seed."""
    low: float
    """95 % confidence interval of the mean over seeds (Student's t); ±1e308 for one seed."""
    high: float
    prompts_low: float
    """95 % confidence interval over prompts: mean of the seeds' intervals."""
    prompts_high: float
    values: dict[str, float]
    """Value by seed."""
    n: int
    """Smallest number of prompts of a seed."""


def seed_recipes(recipe: Recipe) -> list[Recipe]:
    """Return one recipe per seed, with the name `NAME-seed-N`. Raises `RecipeError` if a seed is there twice."""
    if len(set(recipe.seeds)) < len(recipe.seeds):
        raise RecipeError(f"seeds: {list(recipe.seeds)} has a seed twice")
    return [replace(recipe, name=f"{recipe.name}-seed-{seed}", seed=seed, seeds=()) for seed in recipe.seeds]


def spread(results: Mapping[int, Sequence[EvalResult]]) -> list[SeedSpread]:
    """Return the spread of every result that all seeds have. `results`: seed to the results of its run; not empty."""
    by_seed = {seed: {(r.name, r.model): r for r in found} for seed, found in results.items()}
    first, *others = by_seed.values()
    shared = [key for key in first if all(key in found for found in others)]
    return [_spread(key, {seed: found[key] for seed, found in by_seed.items()}) for key in shared]


def _spread(key: tuple[str, str], found: Mapping[int, EvalResult]) -> SeedSpread:
    values = [r.value for r in found.values()]
    mean, std = fmean(values), stdev(values) if len(values) > 1 else 0.0
    half = 1e308
    if len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))
    intervals = fmean(r.low for r in found.values()), fmean(r.high for r in found.values())
    by_seed = {str(seed): r.value for seed, r in found.items()}
    return SeedSpread(*key, mean, std, mean - half, mean + half, *intervals, by_seed, min(r.n for r in found.values()))


def write_spread(recipe: Recipe, workspace: Workspace) -> tuple[Path, list[SeedSpread]]:
    """Write the spread over the finished runs of a recipe's seeds to `runs/NAME/seeds.jsonl`, and return it."""
    runs: dict[int, RunDirectory] = {one.seed: workspace.run(one.name) for one in seed_recipes(recipe)}
    missing = [run.path.name for run in runs.values() if not run.data("evaluation").is_file()]
    if missing:
        raise DataError(f"{', '.join(missing)}: no evaluation results yet, so there is no spread over seeds. Run the stage evaluate.")
    found = spread({seed: list(read_records(run.data("evaluation"), EvalResult)) for seed, run in runs.items()})
    path = workspace.run(recipe.name).path / SEEDS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, found)
    return path, found
