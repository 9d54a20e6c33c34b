"""The driver: runs stages in order, skips those that are done, and records each in the manifest.

A stage is done if its fingerprint (settings, hashes of its inputs, models, templates and constitution) and its outputs match the manifest.
Otherwise it runs again, and calls that it made before are cache hits in the call store. The stages are in `cai.pipeline.stages`.
"""

import inspect
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cai import __version__
from cai.constitution.load import load_constitution
from cai.core.console import Reporter, printable
from cai.core.flow import collecting_rarely
from cai.core.interrupt import run_interruptible
from cai.core.jsonl import refuse_overwriting, remove_unfinished, write_text
from cai.core.manifest import (
    Manifest,
    StageEntry,
    counts_in_words,
    describe_constitution,
    git_state,
    installed_versions,
    machine_facts,
    peak_device_bytes,
    peak_memory_bytes,
    read_manifest,
    reset_device_peak,
    write_manifest,
)
from cai.core.stages import STAGE_INFO
from cai.core.workspace import RunDirectory, Workspace, file_hash, replace_stage_rows
from cai.data.rows import source_files
from cai.errors import CaiError, DataError, RecipeError
from cai.ids import combine_hashes, content_hash
from cai.models.opening import release_memory
from cai.pipeline.context import Context
from cai.pipeline.setup_check import check_setup, local_prompts, prompt_warnings, spec_fingerprint, template_warning
from cai.pipeline.tracking import PIPELINE, Tracking
from cai.recipe import ModelSpec, Recipe
from cai.session import Session
from cai.train.processes import ProcessGroup, RankZeroFailed, join_process_group


@dataclass(frozen=True)
class Stage:
    """What a stage of `STAGE_INFO` does.

    `run` returns counts. Stages without model calls are plain functions, so that Ctrl-C stops them at once (an event loop would delay the
    signal until the next `await`). `reads` and `writes` are paths relative to the run directory. `settings` returns the parts of the recipe
    that affect the outputs, `models` the models that it calls or trains, and `sources` the workspace files and globs that it reads.
    """

    name: str
    run: Callable[[Context], Awaitable[dict[str, int]] | dict[str, int]]
    reads: Callable[[Recipe], tuple[str, ...]]
    writes: Callable[[Recipe], tuple[str, ...]]
    settings: Callable[[Recipe], Any]
    uses_constitution: bool = False
    uses_templates: bool = False
    models: Callable[[Recipe], Sequence[ModelSpec]] = lambda recipe: ()
    sources: Callable[[Recipe], Sequence[str]] = lambda recipe: ()
    uses_prompts: bool = False
    trains: bool = False
    """Whether the stage trains, or samples from a trained model."""
    together: bool = False
    """Whether all processes of the group run the stage. `run` must then be safe in all of them, and only rank 0 may write."""
    always: bool = False
    """Whether the stage runs even if nothing changed, because it reads the manifest."""

    def is_in(self, recipe: Recipe) -> bool:
        """Whether a run of the recipe has the stage."""
        return STAGE_INFO[self.name].is_in(recipe)


@dataclass(frozen=True)
class StageSummary:
    """Outcome of a stage in one call of `run_recipe`."""

    name: str
    reused: bool
    seconds: float
    calls_made: int
    calls_reused: int
    counts: dict[str, int]


@dataclass(frozen=True)
class RunSummary:
    """Outcome of one call of `run_recipe`."""

    run: str
    stages: tuple[StageSummary, ...]
    warnings: tuple[str, ...]
    report: str | None


def fingerprint(stage: Stage, context: Context) -> str:
    """Hash everything that a stage's outputs depend on. Raises `DataError` if an input is missing."""
    check_inputs([stage], context.recipe, context.run)
    recipe, root = context.recipe, context.root
    sources = {printable(os.path.relpath(file, root)): file_hash(file) for file in input_files([stage], recipe, root)}
    return content_hash(
        {
            "stage": stage.name,
            "version": __version__,
            "settings": stage.settings(recipe),
            "seed": recipe.seed,
            "models": [(spec_fingerprint(spec), spec.max_length) for spec in stage.models(recipe)],
            "inputs": {path: file_hash(context.run.path / path) for path in stage.reads(recipe)},
            "sources": sources,
            "constitution": context.constitution.hash if stage.uses_constitution else "",
            "templates": _templates_hash(context) if stage.uses_templates else "",
        }
    )


def _templates_hash(context: Context) -> str:
    """Hash the templates as model and judge are asked; one hash where both have their instructions in the same place."""
    hashes = [context.templates.hash, context.session.judge_templates.hash]
    return hashes[0] if hashes[0] == hashes[1] else combine_hashes(hashes)


def check_inputs(stages: Sequence[Stage], recipe: Recipe, run: RunDirectory) -> None:
    """Check that all that stages read of a run is there, or is written by one before. Raises `DataError`."""
    written: list[Path] = []
    for stage in stages:
        reads = [Path(path) for path in stage.reads(recipe)]
        missing = [str(p) for p in reads if not (run.path / p).exists() and not any(p.is_relative_to(w) for w in written)]
        if missing:
            raise DataError(
                f"stage {stage.name} reads {', '.join(missing)} in {run.path}, not there yet. "
                "Run the earlier stages first: leave out --only/--from."
            )
        written += [Path(path) for path in stage.writes(recipe)]


def input_files(stages: Sequence[Stage], recipe: Recipe, root: Path) -> list[Path]:
    """Return the files of the workspace that stages read. Raises `DataError` if one is missing."""
    patterns = [p for s in stages for p in (*s.sources(recipe), *(local_prompts(recipe, root) if s.uses_prompts else ()))]
    return [file for pattern in patterns for file in source_files(pattern, root)]


def is_done(stage: Stage, entry: StageEntry | None, wanted: str, run: RunDirectory) -> bool:
    """Whether a stage is done with this fingerprint, and its outputs are unchanged."""
    if entry is None or entry.status != "done" or entry.fingerprint != wanted:
        return False
    return all((run.path / path).exists() and file_hash(run.path / path) == digest for path, digest in entry.outputs.items())


def choose_stages(stages: Sequence[Stage], recipe: Recipe, only: Sequence[str], start: str | None) -> list[Stage]:
    """Return the stages to run, in order. Raises `RecipeError` naming those that the recipe doesn't have."""
    names = [s.name for s in stages if s.is_in(recipe)]
    unknown = [n for n in (*only, *([start] if start else [])) if n not in names]
    if unknown:
        keys = dict.fromkeys(s.key for s in STAGE_INFO.values() if s.key and s.name in unknown)
        why = f" (see {', '.join(keys)})" if keys else ""
        raise RecipeError(f"no stage {', '.join(map(repr, unknown))}{why}; the stages are: {' '.join(names)}")
    chosen = [s for s in stages if s.name in names and (not only or s.name in only)]
    return [s for s in chosen if start is None or names.index(s.name) >= names.index(start)]


def run_recipe(
    recipe: Recipe,
    workspace: Workspace,
    stages: Sequence[Stage],
    reporter: Reporter,
    *,
    only: Sequence[str] = (),
    start: str | None = None,
    command: str = "",
) -> RunSummary:
    """Run all or some stages of a recipe, and skip those that are done.

    With several processes (`torchrun`, `accelerate launch`), all of them call this function. Rank 0 runs the stages, and the other ranks
    join the stages that train.

    Args:
        recipe: the recipe to run.
        workspace: the workspace of its files.
        stages: all stages in order.
        reporter: shows progress.
        only: names of the stages to run; empty runs all.
        start: name of the first stage to run.
        command: command line, for the report.

    Raises:
        CaiError: an error that the user can fix. Finished work is kept, and the next call resumes from there.
    """
    chosen = choose_stages(stages, recipe, only, start)
    processes = join_process_group()
    if not processes.is_rank_zero:
        return _join_stages(processes, recipe, workspace, stages)
    summary = _run_stages(processes, recipe, workspace, stages, chosen, reporter, command)
    processes.shutdown()  # not after an error: rank 0 then exits, which ends the other ranks wherever they are
    return summary


def _join_stages(processes: ProcessGroup, recipe: Recipe, workspace: Workspace, stages: Sequence[Stage]) -> RunSummary:
    """Run the stages that rank 0 broadcasts. Writes nothing."""
    while (number := processes.next_stage()) is not None:
        with Session(recipe=recipe, workspace=workspace, keep_calls=False) as session:
            constitution = load_constitution(workspace.root / recipe.constitution)
            context = Context(session, workspace.run(recipe.name), constitution, Manifest(recipe.name), processes)
            context.stage = stages[number].name
            try:
                stages[number].run(context)
            except RankZeroFailed:
                break
    return RunSummary(recipe.name, (), (), None)


def _run_stages(
    processes: ProcessGroup,
    recipe: Recipe,
    workspace: Workspace,
    stages: Sequence[Stage],
    chosen: Sequence[Stage],
    reporter: Reporter,
    command: str,
) -> RunSummary:
    run = workspace.run(recipe.name)
    constitution, model_fingerprint = check_setup(recipe, workspace, trains=any(s.trains for s in chosen))
    if warning := template_warning(recipe, workspace):
        reporter.warn(warning)
    if any(stage.name == "respond" for stage in chosen):
        for warning in prompt_warnings(recipe, workspace):
            reporter.warn(warning)
    refuse_overwriting((run.path / path for s in stages for path in s.writes(recipe)), input_files(chosen, recipe, workspace.root))
    check_inputs(chosen, recipe, run)
    with (
        run.locked(),
        Session(recipe=recipe, workspace=workspace, reporter=reporter) as session,
        Tracking(recipe, run.path, reporter.warn) as tracking,
    ):
        remove_unfinished(run.path)  # safe, because the run is locked
        manifest = read_manifest(run.manifest) or Manifest(recipe.name)
        manifest = replace(
            manifest,
            recipe_hash=recipe.hash,
            command=command,
            cai_version=__version__,
            versions=installed_versions(),
            git=git_state(workspace.root),
            machine=machine_facts(),
            constitution=describe_constitution(constitution),
            model=recipe.model.path,
            model_fingerprint=model_fingerprint,
            trained=recipe.weights.path if recipe.weights else "",
            judged_by=recipe.feedback.judge.path if recipe.feedback.judge else "",
            chosen=tuple(stage.name for stage in chosen),
        )
        write_text(run.path / "recipe.yaml", _resolved_yaml(recipe))
        context = Context(session, run, constitution, manifest, processes, tracking)
        done = [_run_stage(stage, context, stages.index(stage)) for stage in chosen]
        report = str(run.report) if run.report.exists() else None
        return RunSummary(recipe.name, tuple(done), tuple(_warnings(manifest)), report)


def _run_stage(stage: Stage, context: Context, number: int) -> StageSummary:
    wanted = fingerprint(stage, context)
    entry = context.manifest.stage(stage.name)
    if not stage.always and is_done(stage, entry, wanted, context.run):
        assert entry is not None
        context.reporter.say(f"{stage.name:<12} done before, nothing changed", "dim")
        return StageSummary(stage.name, True, 0.0, 0, 0, entry.counts)
    if not stage.always:
        context.tracking.start()
    entry = StageEntry(stage.name, "running", wanted, datetime.now(UTC).isoformat(timespec="seconds"))
    context.begin(stage.name, wanted, content_hash((stage.settings(context.recipe), context.recipe.seed)))
    context.manifest.put(entry)
    write_manifest(context.run.manifest, context.manifest)
    started = time.monotonic()
    reset_device_peak()

    async def ask(answer: Awaitable[dict[str, int]]) -> dict[str, int]:
        try:
            with collecting_rarely():
                return await answer
        finally:
            await context.session.close_models()

    try:
        with context.reporter.stage(stage.name):
            if stage.together:
                context.processes.broadcast(number)
            made = stage.run(context)
            entry.counts = run_interruptible(ask(made), context.reporter) if inspect.isawaitable(made) else made
        entry.status = "done"
    except KeyboardInterrupt:
        entry.status = "stopped"
        raise
    except BaseException as e:
        entry.status = "failed"
        entry.message = str(e) if isinstance(e, CaiError) else type(e).__name__
        raise
    finally:
        entry.seconds = time.monotonic() - started
        release_memory()
        for journal in context.journals:
            journal.close()
        context.journals.clear()
        for model, spec in context.session.opened:
            usage = model.usage
            entry.calls_made += usage.made
            entry.calls_reused += usage.reused
            entry.prompt_tokens += usage.prompt_tokens
            entry.completion_tokens += usage.completion_tokens
            entry.cost += (usage.prompt_tokens * spec.prompt_price + usage.completion_tokens * spec.completion_price) / 1e6
        if entry.status == "done":
            written = [path for path in stage.writes(context.recipe) if (context.run.path / path).exists()]
            entry.outputs = {path: file_hash(context.run.path / path) for path in written}
            shutil.rmtree(context.run.unfinished, ignore_errors=True)
        entry.peak_memory_bytes = peak_memory_bytes()
        entry.peak_device_bytes = peak_device_bytes()
        context.manifest.peak_memory_bytes = max(context.manifest.peak_memory_bytes, peak_memory_bytes())
        # Loaders set their own stage names in failures. Use this stage's name, so that a rerun replaces them.
        replace_stage_rows(context.run.failures, stage.name, [replace(f, stage=stage.name) for f in context.failures])
        write_manifest(context.run.manifest, context.manifest)
        context.tracking.finish()
    if not stage.always:
        context.tracking.log(PIPELINE, _stage_numbers(entry, len(context.failures)))
    context.reporter.say(_stage_line(entry))
    for warning in entry.warnings:
        context.reporter.warn(warning)
    return StageSummary(stage.name, False, entry.seconds, entry.calls_made, entry.calls_reused, entry.counts)


def _stage_numbers(entry: StageEntry, failures: int) -> dict[str, float]:
    """Return a finished stage's costs and counts, for the tracker."""
    costs = ("seconds", "calls_made", "calls_reused", "prompt_tokens", "completion_tokens", "cost")
    numbers = {**{name: getattr(entry, name) for name in costs}, "failures": failures, **entry.counts}
    return {f"{entry.name}/{name}": float(value) for name, value in numbers.items()}


def _stage_line(entry: StageEntry) -> str:
    calls = f", {entry.calls_made} calls made, {entry.calls_reused} reused" if entry.calls_made or entry.calls_reused else ""
    return f"{entry.name:<12} {entry.seconds:6.1f} s{calls}{'; ' if entry.counts else ''}{counts_in_words(entry.counts)}"


def _warnings(manifest: Manifest) -> list[str]:
    judge = manifest.judge
    counted = [warning for entry in manifest.stages for warning in entry.warnings]
    if judge is None:
        return counted
    return [*counted, *([judge.mass_warning] if judge.mass_warning else []), *([] if judge.beats_baselines else [judge.note])]


def _resolved_yaml(recipe: Recipe) -> str:
    import yaml

    return yaml.safe_dump(msgspec.to_builtins(recipe), sort_keys=False, allow_unicode=True, width=120)
