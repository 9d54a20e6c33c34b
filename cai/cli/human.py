"""Commands about human labels: human import, export, agreement, queue."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from msgspec.structs import replace

from cai.cli import completing
from cai.cli.app import Json, app, open_session, print_json, say, show, show_results, warn
from cai.cli.models import ConstitutionFile, JudgeName, PairLimit, PerLabel, Principles
from cai.records import PromptKind

human = typer.Typer(name="human", help="Human labels: import, export, agreement, and which pairs to label next.", no_args_is_help=True)
app.add_typer(human)
Files = Annotated[list[Path], typer.Argument(help="Labels: JSONL, CSV or Parquet, in any pair format")]
Format = Annotated[str, typer.Option("--format", help="Pair format; auto: by the columns", autocompletion=completing.pair_formats)]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="Name of one of our columns in the file: choice=verdict", metavar="OURS=THEIRS")
]
SHOWN = 5
"""Number of rejected rows to print."""
SHOWN_PAIRS = 20


@human.command("import")
def import_(
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file of labels to write", show_default=False)],
    format: Format = "auto",
    kind: Annotated[PromptKind | None, typer.Option(help="Kind of prompt for rows without one", show_default=False)] = None,
    column: Columns = None,
    choices: Annotated[
        str | None,
        typer.Option(
            help="What the answers mean: 0=A,1=B,2=tie, or a scale from 'A is better' to 'B is better': 1..7",
            metavar="CODE=A|B|tie,… or FIRST..LAST",
        ),
    ] = None,
    people: Annotated[
        Path | None, typer.Option(help="Table of annotators with attributes, one per row: CSV or JSONL with a column `annotator`")
    ] = None,
    json: Json = False,
) -> None:
    """Import human labels with annotator, time and attributes. Unusable rows are listed and counted.

    Answers are read as A, B or tie (left, right; first, second; a response column's name). Numbers are read where the response columns end
    in them (response_0, response_1), or where the column holds 1 and 2 and no other number. A column with other values is refused as a
    whole; --choices says what they mean. On a scale the probability of A falls evenly from 1 to 0, and the middle is a tie. Columns that no
    label holds are named.
    """
    from cai.labels.annotating import import_labels
    from cai.labels.answers import parse_choices

    result, failures = import_labels(files, out, format, kind, _columns(column), people, parse_choices(choices))
    if json:
        print_json(result)
        return
    for f in failures[:SHOWN]:
        warn(f"{f.item_id}: {f.reason}: {f.detail}")
    for doubt, count in result.doubts.items():
        warn(f"{count} labels: {doubt}")
    if result.unused:
        warn(f"columns not used: {', '.join(result.unused)}")
    if result.undescribed:
        warn(f"{people} has no row for {', '.join(result.undescribed)}")
    say(f"{out}: {result.labels} labels of {result.pairs} pairs by {_people(result.annotators)}, from {result.rows} rows")
    if failures:
        reasons = ", ".join(f"{n} {reason}" for reason, n in result.rejected.items())
        say(f"{result.rejects}: {len(failures)} not usable ({reasons})")


@human.command()
def export(
    what: Annotated[str, typer.Argument(help="A file of labels or pairs, or a run", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tasks, JSONL file for preferences", show_default=False)],
    format: Annotated[
        Literal["label-studio", "preferences"], typer.Option(help="Tasks and labelling interface, or pooled soft labels")
    ] = "label-studio",
    pooling: Annotated[Literal["votes", "dawid-skene"], typer.Option(help="How to combine several people's labels")] = "votes",
    smoothing: Annotated[float, typer.Option(help="Pseudo-votes added to each side", min=0.0)] = 0.0,
    json: Json = False,
) -> None:
    """Export pairs as labelling tasks without source and label, or human labels as soft preferences."""
    from cai.labels.annotating import export_human

    count, written = export_human(what, out, format, pooling, smoothing)
    if json:
        print_json({"count": count, "files": written})
        return
    for path in written:
        say(path)
    say(f"{count} {'tasks' if format == 'label-studio' else 'preferences'}")


@human.command()
def agreement(
    files: Files,
    gold: Annotated[Path | None, typer.Option(help="Pairs with known answers, to measure each person's accuracy")] = None,
    protocol: Annotated[str | None, typer.Option(help="Judging protocols to compare with people: one, several with commas, or all")] = None,
    judge: JudgeName = "embedded",
    constitution: ConstitutionFile = Path("constitution/general.yaml"),
    principles: Principles = "ensemble",
    per_label: PerLabel = 1,
    limit: PairLimit = None,
    format: Format = "auto",
    seed: int = 0,
    json: Json = False,
) -> None:
    """Measure agreement: Krippendorff's alpha, Cohen's kappa, reliability and gold accuracy of people, and of judges with people."""
    from cai.errors import DataError
    from cai.labels.annotating import measure_people, read_label_files

    labels, failures, _ = read_label_files(files, format)
    results = measure_people(labels, gold, seed)
    unnamed = sum(not label.annotator for label in labels)
    if protocol is not None:
        from cai.constitution.load import load_constitution
        from cai.evaluate.commands import judges_beside_people
        from cai.recipe import FeedbackConfig
        from cai.workbench.settings import settings

        names, asked = protocol, load_constitution(constitution)
        recipe = settings(model=judge, constitution=constitution, seed=seed, name="agreement")
        recipe = replace(recipe, feedback=FeedbackConfig(principles=principles, per_label=per_label))
        session = open_session(recipe, constitution.parent)
        results += session.run(lambda opened: judges_beside_people(opened, labels, names, asked, limit), "judge")
    if not results:
        raise DataError(
            f"{len(labels)} labels ({unnamed} without an annotator), {len(failures)} rows not usable: nothing to compare. Agreement needs "
            "pairs that two named annotators labelled. Otherwise compare with a judge (--protocol) or with known answers (--gold)."
        )
    if json:
        print_json({"labels": len(labels), "unnamed": unnamed, "rejected": len(failures), "results": results})
        return
    show_results(results, f"{len(labels)} labels, {len(failures)} rows not usable")
    if unnamed:
        warn(f"{unnamed} labels have no annotator, so they are not used to measure agreement between people.")


@human.command()
def queue(
    run_name: Annotated[str, typer.Argument(help="A run's name, or runs/NAME", metavar="RUN", show_default=False)],
    by: Annotated[
        Literal["uncertainty", "disagreement", "conflict"],
        typer.Option(help="The judge's uncertainty, the reward ensemble's disagreement, or conflict of people and judge"),
    ] = "uncertainty",
    n: Annotated[int, typer.Option("-n", help="How many pairs", min=1)] = 50,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Label Studio tasks (.json), or pairs with their scores (.jsonl)")] = None,
    labels: Annotated[list[Path] | None, typer.Option(help="Human labels so far, in addition to the recipe's; may be repeated")] = None,
    json: Json = False,
) -> None:
    """Choose the pairs that people should label next. Prompts repeat only after every prompt has been used once."""
    from cai.core.console import plain, plain_table
    from cai.core.workspace import find_run, find_workspace
    from cai.labels.annotating import label_queue

    run = find_run(run_name)
    chosen = label_queue(run, find_workspace(run.path).root, by, n, out, labels or ())
    if json:
        print_json({"by": by, "count": len(chosen), "out": None if out is None else str(out), "pairs": chosen})
        return
    table = plain_table("score", "prompt", "why", title=f"{len(chosen)} pairs to label next, by {by}")
    for c in chosen[:SHOWN_PAIRS]:
        table.add_row(f"{c.score:.3f}", plain(c.pair.prompt.messages[-1].content[:60]), plain(c.reason))
    show(table)
    if out is not None:
        say(f"{out}: {len(chosen)} {'pairs' if out.suffix == '.jsonl' else 'tasks, with labeling_config.xml in the same folder'}")


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
