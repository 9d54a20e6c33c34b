"""What a constitution is tried on: a model, its settings, and a sample of prompts with a response and a pair of responses each.

None of it depends on a constitution, so two constitutions are compared on the same texts. It is made afresh from prompts, or taken
from a run, whose calls are then in the call store already.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from cai.core.console import Reporter
from cai.core.flow import run_items
from cai.core.jsonl import read_records
from cai.core.plugins import unknown
from cai.core.workspace import RunDirectory, Workspace
from cai.data.prompts import load_all
from cai.errors import DataError, RecipeError
from cai.generate.critique import respond
from cai.generate.pairs import PairTask, sample_pair
from cai.ids import split_fraction
from cai.judge.calibration import Calibration, calibration_of
from cai.judge.protocols import PROTOCOLS
from cai.models.base import TextModel
from cai.models.naming import spec_from_name
from cai.models.opening import open_engine
from cai.models.store import CallStore
from cai.models.templates import Templates, load_templates
from cai.recipe import PromptSource, Recipe, load_recipe
from cai.records import Failure, Prompt, Response, ResponsePair

STAGE = "workbench"
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Calls:
    """What a step asked of the models: calls that ran, and calls that the store answered."""

    made: int
    reused: int

    def __sub__(self, other: "Calls") -> "Calls":
        return Calls(self.made - other.made, self.reused - other.reused)


@dataclass
class Bench:
    """A model and a judge over the workspace's call store, with a run's settings or the defaults."""

    recipe: Recipe
    model: TextModel
    judge: TextModel
    templates: Templates
    reporter: Reporter
    failures: list[Failure] = field(default_factory=list)
    calibration: Calibration | None = None
    """Of the recipe's judge, for its labels; single principles are asked without it."""

    @property
    def calls(self) -> Calls:
        """Calls of model and judge together, so far."""
        usages = {id(m): m.usage for m in (self.model, self.judge)}.values()
        return Calls(sum(u.made for u in usages), sum(u.reused for u in usages))

    async def each(self, items: Sequence[T], work: Callable[[T], Awaitable[R]], what: str, item_id: Callable[[T], str]) -> list[R]:
        """Run items through the model within the recipe's limits; those that fail are in `failures`.

        Raises:
            ModelError: too many failed, or the model can't go on.
        """
        self.reporter.progress(0, len(items), what)
        flow = run_items(
            items,
            work,
            window=self.recipe.window,
            max_failure_fraction=self.recipe.max_failure_fraction,
            stage=what,
            failures=self.failures,
            item_id=item_id,
            on_progress=lambda done: self.reporter.progress(done, len(items), what),
        )
        return [result async for result in flow]


@contextlib.asynccontextmanager
async def open_bench(recipe: Recipe, workspace: Workspace, reporter: Reporter) -> AsyncIterator[Bench]:
    """Open the recipe's model and judge over the workspace's call store, and close them afterwards.

    Raises:
        CaiError: the templates, the store or a model can't be opened.
    """
    templates = load_templates(workspace.root / recipe.templates)
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(CallStore(workspace.store_path))
        specs = [recipe.model, recipe.feedback.judge or recipe.model]
        models = []
        for spec in specs if specs[0] != specs[1] else specs[:1]:
            engine = await open_engine(spec)
            stack.push_async_callback(engine.close)
            models.append(TextModel(engine, store, STAGE, on_reply=reporter.call))
        calibration = calibration_of(recipe.feedback, workspace.root)
        yield Bench(recipe, models[0], models[-1], templates, reporter, calibration=calibration)


def recipe_for(model: str | None, seed: int, run: RunDirectory | None = None, recipe: Path | None = None) -> Recipe:
    """Return the settings to work with: a run's own, a recipe's, or the defaults.

    Args:
        model: its name, instead of the recipe's; None with the defaults: the embedded one.
        seed: with the defaults; runs and recipes have their own.
        run: where to take the settings from.
        recipe: a recipe's file, likewise.

    Raises:
        DataError: a model or a recipe is named beside a run, whose texts come from its own.
        RecipeError: the recipe can't be read.
    """
    if run is not None:
        if model is not None or recipe is not None:
            raise DataError("a run is compared with its own model and settings; leave --model and --recipe out, or --against-run")
        path = run.path / "recipe.yaml"
        if not path.is_file():
            raise DataError(f"{path}: no such file, so this is no run that was started. `cai status NAME` lists the runs there are.")
        return load_recipe(path)
    found = Recipe(name=STAGE, seed=seed) if recipe is None else load_recipe(recipe)
    return found if model is None else msgspec.structs.replace(found, model=spec_from_name(model, found.model))


@dataclass(frozen=True)
class TrialData:
    """What two constitutions are compared on."""

    responses: tuple[Response, ...]
    pairs: tuple[ResponsePair, ...]


def load_sample(prompts: Path | None, workspace: Workspace, recipe: Recipe, sample: int, reporter: Reporter) -> list[Prompt]:
    """Return `sample` prompts of a file, or of the recipe's training prompts, chosen by hash; a larger sample only adds.

    Raises:
        DataError: they can't be read.
    """
    sources = recipe.prompts.train if prompts is None else (PromptSource(path=str(prompts.resolve())),)
    loaded = load_all(sources, workspace.root, recipe.seed)
    if loaded.failures:
        first = loaded.failures[0]
        reporter.warn(f"{len(loaded.failures)} rows are no prompts, the first: {first.item_id}: {first.reason}")
    return _sampled(list(loaded.prompts), lambda p: p.id, sample)


async def sample_trial_data(prompts: Sequence[Prompt], bench: Bench) -> TrialData:
    """Answer every prompt once, to be revised, and twice, to be judged, as the stages `respond` and `pairs` do.

    Raises:
        ModelError: too many failed, or the model can't go on.
    """
    recipe = bench.recipe

    async def answer(prompt: Prompt) -> Response:
        return await respond(prompt, bench.model, bench.templates, recipe.respond.sampling, recipe.seed)

    async def pair(task: PairTask) -> ResponsePair:
        return await sample_pair(task, bench.model, bench.templates, recipe.pairs, recipe.seed)

    responses = await bench.each(prompts, answer, "responses", lambda p: p.id)
    pairs = await bench.each([PairTask(p, 0) for p in prompts], pair, "pairs", lambda t: t.id)
    return TrialData(tuple(responses), tuple(pairs))


def trial_data_of_run(run: RunDirectory, sample: int) -> TrialData:
    """Take responses and pairs of `sample` prompts out of a run.

    Raises:
        DataError: the run has no responses yet.
    """
    if not run.data("responses").is_file():
        raise DataError(f"{run.data('responses')}: no such file; the run has not answered its prompts yet. Run its stage respond first.")
    responses = _sampled(list(read_records(run.data("responses"), Response)), lambda r: r.prompt.id, sample)
    wanted = {r.prompt.id for r in responses}
    pairs = read_records(run.data("pairs"), ResponsePair) if run.data("pairs").is_file() else iter(())
    return TrialData(tuple(responses), tuple(p for p in pairs if p.prompt.id in wanted and p.p_a is None))


def _sampled(items: list[T], item_id: Callable[[T], str], sample: int) -> list[T]:
    """Keep this many, by hash of their ids and in their order."""
    chosen = sorted(range(len(items)), key=lambda i: (split_fraction(item_id(items[i]), "workbench-sample"), i))[:sample]
    return [items[i] for i in sorted(chosen)]


def with_protocol(recipe: Recipe, protocol: str | None) -> Recipe:
    """Return the recipe with another judging protocol; None changes nothing. Raises `RecipeError` where there is no such protocol."""
    if protocol is None:
        return recipe
    if protocol not in PROTOCOLS.names():
        raise RecipeError(f"--protocol {protocol}: {unknown(PROTOCOLS.kind, protocol)}")
    feedback = msgspec.structs.replace(recipe.feedback, protocol=protocol)
    return msgspec.structs.replace(recipe, feedback=feedback)
