"""`cai judge bench` and `cai evaluate MODEL`: measurements without a run, over the workspace's call store."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from cai.constitution.load import load_constitution
from cai.core.console import Reporter
from cai.core.interrupt import run_interruptible
from cai.core.workspace import Workspace, find_workspace
from cai.data.prompts import load_all
from cai.errors import RecipeError
from cai.evaluate.arena import Arena
from cai.evaluate.audit.probes import load_knowledge
from cai.evaluate.knowledge import Knowledge
from cai.evaluate.rewards import folder_accuracies
from cai.evaluate.run import answer_all, ask_knowledge, hold_arena, measure_answers
from cai.judge.bench import JudgeBench, chosen_protocols, judge_bench
from cai.judge.calibration import read_calibration
from cai.judge.judge import Judge
from cai.labels.load import load_pairs
from cai.models.base import TextModel
from cai.models.naming import spec_from_name
from cai.models.opening import open_engine, release_memory
from cai.models.store import CallStore
from cai.models.templates import load_templates
from cai.recipe import Aggregate, FeedbackConfig, Recipe
from cai.records import EvalResult, Failure, Response

if TYPE_CHECKING:
    from cai.train.reward.ensemble import RewardEnsemble

T = TypeVar("T")
Measure = Callable[..., Awaitable[T]]


def bench_judge(
    pairs: Path,
    protocols: str,
    model: str,
    constitution: Path,
    pair_format: str,
    limit: int | None,
    config: FeedbackConfig,
    seed: int,
    reporter: Reporter,
) -> JudgeBench:
    """Measure a judge on human-labelled pairs.

    Raises:
        CaiError: the pairs, the constitution or the model can't be read.
    """
    names = chosen_protocols(protocols)
    workspace = find_workspace(constitution.parent)
    loaded = load_pairs(pairs, pair_format, limit=limit, seed=seed)
    if loaded.failures:
        reporter.warn(
            f"{pairs}: {len(loaded.failures)} rows can't be used, the first: {loaded.failures[0].item_id}: {loaded.failures[0].reason}"
        )
    principles = load_constitution(constitution)
    templates = load_templates(workspace.root / Recipe(name="bench").templates)

    async def measure() -> JudgeBench:
        with CallStore(workspace.store_path) as store:
            engine = await open_engine(spec_from_name(model))
            try:
                return await judge_bench(
                    loaded.preferences,
                    names,
                    TextModel(engine, store, "judge bench"),
                    templates,
                    principles,
                    config,
                    seed,
                    window=Recipe(name="bench").window,
                    on_progress=lambda done, total, name: reporter.progress(done, total, f"pairs by {name}"),
                )
            finally:
                await engine.close()

    with reporter.stage("bench"):
        return run_interruptible(measure(), reporter)


def evaluate_models(
    model: str,
    against: str | None,
    constitution: Path,
    rewards: Sequence[Path],
    aggregate: Aggregate,
    calibration: Path | None,
    limit: int | None,
    seed: int,
    reporter: Reporter,
) -> Sequence[EvalResult]:
    """Measure a model on the shipped evaluation prompts, compared with another (called `base`) if one is given.

    Args:
        model: as `spec_from_name` takes it.
        against: the other model.
        constitution: whose principles the judge asks about.
        rewards: folders of reward models, which score as one ensemble; none leaves their measures out.
        aggregate: how their scores become one.
        calibration: of the judge, by which its verdicts on pairs are weighed; None: as they are, and the results say so.
        limit: prompts per set.
        seed: of sampling and bootstraps.
        reporter: shows progress.

    Raises:
        CaiError: a model, the prompts or the constitution can't be read.
    """
    names = {"model": model} if against is None else {"base": against, "model": model}
    measured = _judged(names, measure_answers, constitution, rewards, aggregate, calibration, limit, seed, reporter, with_knowledge=True)
    said = "by an uncalibrated judge (--calibration)" if calibration is None else f"by the judge as {calibration} weighs it"
    results = [noted(r, said) if r.name.startswith("win_rate_by_judge") else r for r in measured.results]
    return [*results, *folder_accuracies(rewards)]


def noted(result: EvalResult, said: str) -> EvalResult:
    """Return a result with more in its note."""
    return dataclasses.replace(result, note="; ".join(filter(None, (result.note, said))))


def rank_models(
    models: Sequence[str],
    constitution: Path,
    rewards: Sequence[Path],
    aggregate: Aggregate,
    calibration: Path | None,
    limit: int | None,
    seed: int,
    reporter: Reporter,
) -> Sequence[Arena]:
    """Let every two models' answers to the shipped evaluation prompts be judged, and rate the models by that.

    Args:
        models: two or more, as `spec_from_name` takes them; all different.
        constitution: as for `evaluate_models`, and so are `rewards`, `aggregate`, `calibration`, `limit`, `seed` and `reporter`.

    Returns:
        The ratings by the judge and, where there are reward models, by them.

    Raises:
        RecipeError: fewer than two, or one twice.
        CaiError: a model, the prompts or the constitution can't be read.
    """
    if len(set(models)) < max(2, len(models)):
        raise RecipeError(f"--arena: expected two or more different models, found {', '.join(models) or 'none'}")
    return _judged({m: m for m in models}, hold_arena, constitution, rewards, aggregate, calibration, limit, seed, reporter)


def _judged(
    names: Mapping[str, str],
    measure: Measure[T],
    constitution: Path,
    rewards: Sequence[Path],
    aggregate: Aggregate,
    calibration: Path | None,
    limit: int | None,
    seed: int,
    reporter: Reporter,
    with_knowledge: bool = False,
) -> T:
    """Have models answer the shipped evaluation prompts, and measure the answers with the embedded judge and some reward models.

    Args:
        names: what to call each model, and which it is.
        measure: `measure_answers`, or what takes as much.
        with_knowledge: also ask what `ask_knowledge` does, and hand it to `measure` last.
    """
    from cai.train.reward.ensemble import load_ensemble

    workspace: Workspace = find_workspace(constitution.parent)
    recipe = Recipe(name="evaluate", seed=seed)
    sources = tuple(replace(s, limit=limit) for s in recipe.prompts.evaluate)
    prompts = load_all(sources, workspace.root, seed).prompts
    templates = load_templates(workspace.root / recipe.templates)
    principles = load_constitution(constitution)
    weighed = None if calibration is None else read_calibration(calibration)
    facts, passages = load_knowledge(workspace.root, limit, seed) if with_knowledge else ((), ())
    failures: list[Failure] = []

    async def ask() -> T:
        answers: dict[str, list[Response]] = {}
        known: dict[str, Knowledge] = {}
        with CallStore(workspace.store_path) as store:
            for label, name in names.items():

                def progress(done: int, shown: str = name) -> None:
                    reporter.progress(done, len(prompts), f"answers of {shown}")

                def read_progress(done: int, shown: str = name) -> None:
                    reporter.progress(done, len(passages), f"passages read by {shown}")

                engine = await open_engine(spec_from_name(name))
                model = TextModel(engine, store, "evaluate")
                try:
                    answers[label] = await answer_all(
                        prompts,
                        model,
                        templates,
                        recipe,
                        "",
                        failures,
                        progress,
                    )
                    if with_knowledge:
                        known[label] = await ask_knowledge(facts, passages, model, templates, recipe, failures, read_progress)
                finally:
                    await engine.close()
                    release_memory()
            engine = await open_engine(recipe.model)
            try:
                judge = Judge(recipe.feedback, principles, TextModel(engine, store, "evaluate"), templates, seed, calibration=weighed)

                async def load() -> "RewardEnsemble":
                    await engine.close()
                    release_memory()
                    return load_ensemble(rewards, aggregate=aggregate)

                return await measure(
                    answers, judge, load if rewards else None, recipe, failures, reporter, *([known] if with_knowledge else [])
                )
            finally:
                await engine.close()

    with reporter.stage("evaluate"):
        result = run_interruptible(ask(), reporter)
    if failures:
        reporter.warn(f"{len(failures)} items failed, the first: {failures[0].item_id}: {failures[0].reason}")
    return result
