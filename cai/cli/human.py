"""Commands about people's labels: human import, export, agreement, queue."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec.structs import replace

from cai.cli.app import Json, app, open_session, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cai.recipe import FeedbackConfig
    from cai.records import EvalResult

human = typer.Typer(name="human", help="People's labels: in, out, how far they agree, and what to ask next.", no_args_is_help=True)
app.add_typer(human)
Files = Annotated[list[Path], typer.Argument(help="Labels: JSONL, CSV, Parquet, hh-rlhf, HHH, UltraFeedback, Label Studio, Argilla")]
Format = Annotated[str, typer.Option("--format", help="How the files are written, if not recognised")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="The file's name of a column of ours: choice=verdict", metavar="OURS=THEIRS")
]
SHOWN = 5
"""Rejected rows."""
SHOWN_PAIRS = 20


@human.command("import")
def import_(
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file of labels to write", show_default=False)],
    format: Format = "auto",
    kind: Annotated[str | None, typer.Option(help="Kind of prompt, where rows don't say: harmful, borderline, helpful, other")] = None,
    column: Columns = None,
    people: Annotated[
        Path | None, typer.Option(help="Table of annotators, one a row, with attributes: CSV or JSONL with a column `annotator`")
    ] = None,
    json: Json = False,
) -> None:
    """Read people's labels with annotator, time and attributes; rows that can't be used are named and counted."""
    from rich.console import Console

    from cai.core.console import plain
    from cai.labels.annotating import import_labels

    result, failures = import_labels(files, out, format, _kind(kind), _columns(column), people)
    if json:
        print_json(result)
        return
    console = Console(stderr=True)
    for f in failures[:SHOWN]:
        console.print(plain(f"{f.item_id}: {f.reason}: {f.detail}", "yellow"))
    for doubt, count in result.doubts.items():
        console.print(plain(f"{count} labels: {doubt}", "yellow"))
    if result.undescribed:
        console.print(plain(f"{people} says nothing of {', '.join(result.undescribed)}", "yellow"))
    typer.echo(f"{out}: {result.labels} labels of {result.pairs} pairs by {_people(result.annotators)}, from {result.rows} rows")
    if failures:
        reasons = ", ".join(f"{n} {reason}" for reason, n in result.rejected.items())
        typer.echo(f"{result.rejects}: {len(failures)} not usable ({reasons})")


@human.command()
def export(
    what: Annotated[str, typer.Argument(help="A file of labels or pairs, or a run", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tasks, JSONL file for preferences", show_default=False)],
    format: Annotated[
        str, typer.Option("--format", help="label-studio: tasks and their set-up; preferences: pooled soft labels")
    ] = "label-studio",
    pooling: Annotated[str, typer.Option(help="How several people's labels become one: votes or dawid-skene")] = "votes",
    smoothing: Annotated[float, typer.Option(help="Votes to imagine on either side", min=0.0)] = 0.0,
    json: Json = False,
) -> None:
    """Write pairs as labelling tasks, blind to source and label, or people's labels as soft preferences."""
    from cai.labels.annotating import export_human

    count, written = export_human(what, out, _one_of("--format", format, "label-studio", "preferences"), _pooling(pooling), smoothing)
    if json:
        print_json({"count": count, "files": written})
        return
    for path in written:
        typer.echo(path)
    typer.echo(f"{count} {'tasks' if format == 'label-studio' else 'preferences'}")


@human.command()
def agreement(
    files: Files,
    gold: Annotated[Path | None, typer.Option(help="Pairs with known answers, by which each person is measured")] = None,
    protocol: Annotated[str | None, typer.Option(help="Judging protocols to compare with people: one, several with commas, or all")] = None,
    judge: Annotated[
        str, typer.Option("--judge", "--model", help="The judge: embedded, a folder, a Hub id or a server's URL#MODEL", metavar="MODEL")
    ] = "embedded",
    constitution: Annotated[Path, typer.Option(help="The constitution whose principles are asked")] = Path("constitution/general.yaml"),
    principles: Annotated[str, typer.Option(help="ensemble: all that apply; sample: --per-label of them")] = "ensemble",
    per_label: Annotated[int, typer.Option(min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Judge this many pairs, chosen by hash", min=1)] = None,
    format: Format = "auto",
    seed: int = 0,
    json: Json = False,
) -> None:
    """Krippendorff's alpha, Cohen's kappa, reliability and gold accuracy of people; and how far judges and principles agree with them."""
    from rich.console import Console

    from cai.core.console import plain
    from cai.labels.annotating import measure_people, read_label_files

    errors = Console(stderr=True)
    labels, failures, _ = read_label_files(files, format)
    results = measure_people(labels, gold, seed)
    unnamed = sum(not label.annotator for label in labels)
    if protocol is not None:
        from cai.constitution.load import load_constitution
        from cai.evaluate.commands import judges_beside_people
        from cai.session import settings

        recipe = replace(settings(model=judge, seed=seed, name="agreement"), feedback=feedback_config(principles, per_label))
        names, asked = protocol, load_constitution(constitution)
        session = open_session(recipe, constitution.parent)
        results += session.run(lambda opened: judges_beside_people(opened, labels, names, asked, limit), "judge")
    if json:
        print_json({"labels": len(labels), "unnamed": unnamed, "rejected": len(failures), "results": results})
        return
    counted = f"{len(labels)} labels, {len(failures)} rows not usable"
    if results:
        show_results(results, counted)
    else:
        typer.echo(f"{counted}: nothing to compare; name a judge with --protocol, or pairs with known answers with --gold")
    if unnamed:
        errors.print(plain(f"{unnamed} labels have no annotator: they say nothing about how far people agree with each other.", "yellow"))


@human.command()
def queue(
    run_name: Annotated[str, typer.Argument(help="A run's name, or runs/NAME", metavar="RUN", show_default=False)],
    by: Annotated[
        str, typer.Option(help="uncertainty (the judge's), disagreement (the reward ensemble's) or conflict (people, judge)")
    ] = "uncertainty",
    n: Annotated[int, typer.Option("-n", help="How many pairs", min=1)] = 50,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Label Studio tasks (.json), or pairs with their scores (.jsonl)")] = None,
    labels: Annotated[list[Path] | None, typer.Option(help="People's labels so far, beside the recipe's; may be repeated")] = None,
    json: Json = False,
) -> None:
    """Choose the pairs that people should label next; no prompt twice before every prompt had its turn."""
    from rich.console import Console

    from cai.core.console import plain, plain_table
    from cai.core.workspace import find_run, find_workspace
    from cai.labels.annotating import label_queue

    run = find_run(run_name)
    how = _one_of("--by", by, "uncertainty", "disagreement", "conflict")
    chosen = label_queue(run, find_workspace(run.path).root, how, n, out, labels or ())
    if json:
        print_json({"by": by, "count": len(chosen), "out": None if out is None else str(out), "pairs": chosen})
        return
    table = plain_table("score", "prompt", "why", title=f"{len(chosen)} pairs to label next, by {by}")
    for c in chosen[:SHOWN_PAIRS]:
        table.add_row(f"{c.score:.3f}", plain(c.pair.prompt.messages[-1].content[:60]), plain(c.reason))
    Console().print(table)
    if out is not None:
        typer.echo(f"{out}: {len(chosen)} {'pairs' if out.suffix == '.jsonl' else 'tasks, with labeling_config.xml beside them'}")


def show_results(results: "Sequence[EvalResult]", title: str) -> None:
    """Print results as a table."""
    from rich.console import Console

    from cai.core.console import plain, plain_table

    table = plain_table("measure", "of", "value", "95 % interval", "n", "", right=("value", "n"), title=title)
    for r in results:
        table.add_row(plain(r.name), plain(r.model), f"{r.value:.3f}", f"{r.low:.3f} – {r.high:.3f}", str(r.n), plain(r.note))
    Console().print(table)


def _people(count: int) -> str:
    return f"{count} people" if count > 1 else "one person" if count else "nobody with a name"


def _columns(given: list[str] | None) -> dict[str, str]:
    from cai.errors import DataError

    found = {}
    for text in given or ():
        ours, eq, theirs = text.partition("=")
        if not (ours and eq and theirs):
            raise DataError(f"--column {text}: expected OURS=THEIRS, for example --column choice=verdict")
        found[ours] = theirs
    return found


def _one_of(option: str, given: str, *allowed: str) -> Any:
    from cai.errors import DataError

    if given not in allowed:
        raise DataError(f"{option} {given}: expected {' or '.join(allowed)}")
    return given


def _kind(given: str | None) -> Any:
    from cai.records import PROMPT_KINDS

    return None if given is None else _one_of("--kind", given, *PROMPT_KINDS)


def _pooling(given: str) -> Any:
    return _one_of("--pooling", given, "votes", "dawid-skene")


def feedback_config(principles: str, per_label: int) -> "FeedbackConfig":
    """Return how principles are drawn, from options. Raises `DataError` on an unknown way."""
    from cai.recipe import FeedbackConfig

    return FeedbackConfig(principles=_one_of("--principles", principles, "ensemble", "sample"), per_label=per_label)
