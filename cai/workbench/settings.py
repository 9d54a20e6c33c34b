"""The settings that a command works with: a run's own, a recipe's or the defaults, with what the command line changes."""

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from cai.constitution.load import language_of
from cai.core.workspace import TEMPLATES, RunDirectory, Workspace, find_workspace
from cai.errors import DataError
from cai.judge.probe import read_probe
from cai.recipe import Aggregate, ModelSpec, Precision, PromptSource, Recipe, load_recipe
from cai.session import with_models, with_protocol


def settings(
    *,
    model: str | None = None,
    judge: str | None = None,
    recipe: Path | None = None,
    run: RunDirectory | None = None,
    constitution: Path | None = None,
    protocol: str | None = None,
    calibration: Path | None = None,
    aggregate: Aggregate | None = None,
    seed: int | None = None,
    name: str = "session",
) -> Recipe:
    """Return the settings that a command works with: a run's own, a recipe's, or the defaults, with what the command line changes.

    Args:
        model: its name, instead of the recipe's; with the defaults, None is the embedded one.
        constitution: its file, which is valid; with the defaults, its language chooses the templates of its workspace. Runs and recipes
            say what templates to use.
        seed: instead of the run's or the recipe's; with the defaults, None is 0.
        name: with the defaults: what calls are filed under.

    Raises:
        DataError: a model or a recipe is named beside a run, whose texts come from its own; or the run has no recipe.
        RecipeError: the constitution is in no workspace.
    """
    if run is not None:
        if model is not None or recipe is not None:
            raise DataError("a run is compared with its own model and settings; leave --model and --recipe out, or --against-run")
        path = run.path / "recipe.yaml"
        if not path.is_file():
            raise DataError(f"{path}: no such file: nothing has run yet. Start the run with: cai run RECIPE")
        found = load_recipe(path, name=run.path.name)
    elif recipe is not None:
        found = load_recipe(recipe)
    else:
        found = Recipe(name=name)
        if constitution is not None:
            found = in_language(found, language_of(constitution), find_workspace(constitution.parent))
    if seed is not None:
        found = replace(found, seed=seed)
    if aggregate is not None:
        found = replace(found, reward=replace(found.reward, aggregate=aggregate))
    if calibration is not None:
        found = replace(found, feedback=replace(found.feedback, calibration=str(calibration.resolve())))
    return with_protocol(with_models(found, model, judge), protocol)


def in_language(recipe: Recipe, language: str, workspace: Workspace) -> Recipe:
    """Return the recipe with a workspace's templates in a language (ISO 639-1), where there are some."""
    folder = TEMPLATES / language
    return replace(recipe, templates=str(folder)) if (workspace.root / folder).is_dir() else recipe


def run_of(model: str) -> RunDirectory | None:
    """Return the run that a model's folder belongs to, `runs/NAME/models/…`; None where it is no run's."""
    folder = Path(model).absolute()
    run = folder.parent.parent
    return RunDirectory(run) if folder.parent.name == "models" and (run / "recipe.yaml").is_file() else None


def with_probe(recipe: Recipe, path: Path | None) -> Recipe:
    """Return the recipe with a probe, and its judge in the precision that the probe was fitted in; None changes nothing."""
    if path is None:
        return recipe
    precision = read_probe(path).facts.precision
    return _with_precision(replace(recipe, feedback=replace(recipe.feedback, probe=str(path.resolve()))), precision)


def with_prompts(recipe: Recipe, files: Sequence[Path]) -> Recipe:
    """Return the recipe with the prompts of these files to evaluate on; none changes nothing."""
    if not files:
        return recipe
    return replace(recipe, prompts=replace(recipe.prompts, evaluate=tuple(PromptSource(path=str(file.resolve())) for file in files)))


def with_float32(recipe: Recipe) -> Recipe:
    """Return the recipe with a model and a judge that compute in float32 where `precision` is left open and there is no GPU."""
    import torch

    return recipe if torch.cuda.is_available() else _with_precision(recipe, "float32")


def _with_precision(recipe: Recipe, precision: Precision) -> Recipe:
    def of(spec: ModelSpec) -> ModelSpec:
        return replace(spec, precision=precision) if spec.precision == "auto" else spec

    judge = recipe.feedback.judge
    return replace(recipe, model=of(recipe.model), feedback=replace(recipe.feedback, judge=None if judge is None else of(judge)))
