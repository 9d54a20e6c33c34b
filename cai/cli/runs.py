"""Commands about runs: init, run, plan, status, label, report, export."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cai.cli import completing
from cai.cli.app import Json, app, print_json, say, show, warn
from cai.core.plugins import EXPORT_FORMAT, own_names

if TYPE_CHECKING:
    from cai.core.workspace import Workspace
    from cai.pipeline.driver import RunSummary
    from cai.recipe import Recipe

RecipeFile = Annotated[
    Path, typer.Argument(help="The run's recipe, e.g. runs/quickstart.yaml", show_default=False, autocompletion=completing.recipes)
]
RunName = Annotated[str, typer.Argument(help="A run's name, or runs/NAME", show_default=False, autocompletion=completing.run_names)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting: --set critique.rounds=2", metavar="KEY=VALUE", autocompletion=completing.recipe_keys),
]

NO_SHARDS = (
    "runs can no longer be split among clients, because one client keeps a server busy. Run the whole recipe; finished calls are reused."
)


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@app.command()
def init(directory: Annotated[Path, typer.Argument(help="The new workspace", show_default=False)], json: Json = False) -> None:
    """Create a workspace with constitution/, prompts/ and runs/."""
    from cai.core.workspace import init_workspace

    made = init_workspace(directory)
    if json:
        print_json([str(p) for p in made])
        return
    say(f"{directory}: {len(made)} files. Next:\n  cd {shlex.quote(str(directory))}\n  cai run runs/quickstart.yaml")


@app.command()
def run(
    recipe: RecipeFile,
    only: Annotated[
        str | None, typer.Option(help="Run only these stages: respond,critique", metavar="STAGE,...", autocompletion=completing.stages)
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Run from this stage on", metavar="STAGE", autocompletion=completing.stages)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run and of its directory; default: the recipe's")] = None,
    shard: Annotated[str | None, typer.Option(hidden=True)] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Run a recipe: from prompts and a constitution to a policy and a report. Run it again to resume."""
    from cai.core.workspace import find_workspace
    from cai.errors import RecipeError
    from cai.evaluate.adherence_table import adherence_lines
    from cai.recipe import load_recipe

    if shard is not None:
        raise RecipeError(f"--shard {shard}: {NO_SHARDS}")
    loaded, workspace = load_recipe(recipe, overrides or (), name), find_workspace(recipe.parent)
    if loaded.seeds:
        _run_seeds(loaded, workspace, _split(only), start, json)
        return
    summary = _run(loaded, workspace, _split(only), start)
    if json:
        print_json(summary)
    elif summary.report:
        for line in adherence_lines(workspace.run(loaded.name)):
            say(line)
        say(f"report: {summary.report}")


@app.command(hidden=True)
def merge_calls(stores: list[str]) -> None:
    """Removed together with --shard."""
    from cai.errors import RecipeError

    raise RecipeError(f"cai merge-calls: {NO_SHARDS}")


@app.command()
def label(run_name: RunName, json: Json = False) -> None:
    """Label a run's pairs with AI feedback: run its feedback and preferences stages."""
    from cai.core.workspace import find_run, find_workspace
    from cai.recipe import load_recipe

    directory = find_run(run_name)
    recipe = load_recipe(directory.path / "recipe.yaml", name=directory.path.name)
    summary = _run(recipe, find_workspace(directory.path), ["feedback", "preferences"])
    if json:
        print_json(summary)
    else:
        say(f"labels: {directory.data('judgments')}\npreferences: {directory.data('preferences')}")


def _run_seeds(recipe: "Recipe", workspace: "Workspace", only: list[str], start: str | None, json: bool) -> None:
    """Run a recipe once per seed, and print the spread of the evaluation over the seeds."""

    from cai.core.console import plain, plain_table
    from cai.pipeline.seeds import seed_recipes, write_spread

    summaries = [_run(one, workspace, only, start) for one in seed_recipes(recipe)]
    if only and "evaluate" not in only:
        if json:
            print_json({"runs": summaries, "seeds": []})
        return
    path, found = write_spread(recipe, workspace)
    if json:
        print_json({"runs": summaries, "seeds": found})
        return
    columns = ("mean", "over seeds, 95 %", "std", "over prompts, 95 %", "n")
    table = plain_table("measure", "model", *columns, right=columns, title=f"{recipe.name}: {len(recipe.seeds)} seeds")
    for s in found:
        over_seeds = f"{s.low:.3f} – {s.high:.3f}" if len(s.values) > 1 else ""
        row = (f"{s.mean:.3f}", over_seeds, f"{s.std:.3f}", f"{s.prompts_low:.3f} – {s.prompts_high:.3f}", str(s.n))
        table.add_row(plain(s.name), plain(s.model), *row)
    show(table)
    say(f"spread over seeds: {path}\nreports: {' '.join(s.report for s in summaries if s.report)}")


def _run(recipe: "Recipe", workspace: "Workspace", only: list[str], start: str | None = None) -> "RunSummary":
    """Run stages with progress on standard error; print the warnings at the end."""
    from rich.console import Console

    from cai.core.console import RichReporter
    from cai.pipeline.driver import run_recipe
    from cai.pipeline.stages import STAGES
    from cai.train.running import is_first_process

    directory = workspace.run(recipe.name)
    reporter = RichReporter(Console(stderr=True), directory.path / "progress.json")
    command = shlex.join(["cai", *sys.argv[1:]])
    summary = run_recipe(recipe, workspace, STAGES, reporter, only=only, start=start, command=command)
    for warning in summary.warnings:
        reporter.warn(warning)
    if not is_first_process():  # only rank 0 prints the result
        raise typer.Exit
    return summary


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None, json: Json = False) -> None:
    """Estimate calls, tokens, time, memory and cost per stage, without running anything."""

    from cai.core.console import plain, plain_table
    from cai.core.workspace import find_workspace
    from cai.pipeline.plan import plan_recipe
    from cai.pipeline.setup_check import prompt_warnings, template_warning
    from cai.recipe import load_recipe

    loaded, workspace = load_recipe(recipe, overrides or ()), find_workspace(recipe.parent)
    planned = plan_recipe(loaded, workspace)
    if warning := template_warning(loaded, workspace):
        warn(warning)
    for warning in prompt_warnings(loaded, workspace):
        warn(warning)
    if json:
        print_json(planned)
        return
    numbers = ("calls", "tokens in", "tokens out", "steps", "time", "memory", "US$")
    table = plain_table("stage", *numbers, right=numbers, title=f"{loaded.name}: at most")
    for s in planned.stages:
        table.add_row(
            s.name,
            f"{s.calls:,}" if s.calls else "",
            f"{s.prompt_tokens:,}" if s.prompt_tokens else "",
            f"{s.completion_tokens:,}" if s.completion_tokens else "",
            f"{s.train_steps:,}" if s.train_steps else "",
            _duration(s.seconds),
            _memory(s.memory_bytes),
            f"{s.cost:.2f}" if s.cost else "",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{planned.calls:,}",
        "",
        "",
        "",
        _duration(planned.seconds),
        _memory(planned.memory_bytes),
        f"{planned.cost:.2f}",
    )
    show(table, plain(planned.basis, "dim"))
    if loaded.seeds:
        show(plain(f"This is one run; the recipe has {len(loaded.seeds)} seeds, and each is a run of its own.", "yellow"))


def _memory(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**30:.1f} GiB" if count else ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@app.command()
def status(run_name: RunName, json: Json = False) -> None:
    """Show the stages of a run: progress, failures, and calls reused from the store."""

    from cai.core.console import plain, plain_table
    from cai.core.manifest import counts_in_words
    from cai.core.status import run_status
    from cai.core.workspace import find_run

    found = run_status(find_run(run_name))
    if json:
        print_json(found)
        return
    numbers = ("time", "calls", "reused", "failed")
    table = plain_table("stage", "state", *numbers, "counts", right=numbers, title=f"{found.run}  {found.path}")
    for s in found.stages:
        cells = (str(n or "") for n in (s.calls_made, s.calls_reused, s.failures))
        table.add_row(s.name, s.state, _duration(s.seconds) if s.seconds else "", *cells, plain(counts_in_words(s.counts)))
    show(table, *map(plain, found.notes))


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="A run's name; several: compare them with the first",
            metavar="RUN...",
            show_default=False,
            autocompletion=completing.run_names,
        ),
    ],
    json: Json = False,
) -> None:
    """Rebuild a run's report.html from its records; for several runs, write a page that compares them."""
    from cai.core.jsonl import write_text
    from cai.core.workspace import find_run
    from cai.report.collect import collect_report
    from cai.report.page import render_report

    if len(runs) > 1:
        _compare(runs, json)
        return
    directory = find_run(runs[0])
    write_text(directory.report, render_report(collect_report(directory.path)))
    if json:
        print_json({"report": str(directory.report)})
    else:
        say(f"report: {directory.report}")


def _compare(names: list[str], json: bool) -> None:
    from cai.core.jsonl import write_text
    from cai.core.workspace import find_run
    from cai.report.comparison import compare_runs
    from cai.report.comparison_view import headline
    from cai.report.page import render_comparison

    directories = [find_run(name) for name in names]
    found = compare_runs(directories)
    page = directories[0].path / f"against-{'-'.join(found.runs[1:])}.html"
    write_text(page, render_comparison(found))
    if json:
        print_json({"report": str(page), "comparison": found})
    else:
        say(f"{headline(found)}\ncomparison: {page}")


@app.command()
def export(
    run_name: RunName,
    format: Annotated[str, typer.Option("--format", help=", ".join(own_names(EXPORT_FORMAT)))] = "trl",
    out: Annotated[Path | None, typer.Option(help="Output folder; default: runs/NAME/export/FORMAT")] = None,
    push_to_hub: Annotated[str | None, typer.Option("--push-to-hub", help="Upload to this dataset repository", metavar="REPO")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the uploaded dataset public; the default is private")] = False,
    json: Json = False,
) -> None:
    """Export a run's preferences and SFT data in the formats of other tools, with a dataset card."""
    from cai.core.workspace import find_run
    from cai.data.exporting import export_run

    def agree(preview: str) -> bool:
        say(preview, err=True)
        return not sys.stdin.isatty() or typer.confirm("Upload them?", err=True)

    result = export_run(find_run(run_name), format, out, push_to_hub, private=not public, agree=agree)
    if json:
        print_json(result)
        return
    for path in result.files:
        say(path)
    if result.url:
        say(f"pushed: {result.url}")
