"""The typer app, and code shared by all commands: JSON output, sessions, tables of results, the version."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cai.core.console import DIRECTIONS, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cai.recipe import Recipe
    from cai.records import EvalResult
    from cai.session import Session

app = typer.Typer(
    name="cai",
    help="Align a language model with a written constitution.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(127, 160), *DIRECTIONS)}
"""Escapes for control characters that JSON allows in strings and that some terminals interpret."""
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Seed = Annotated[int | None, typer.Option(help="Seed; default: that of the run or recipe, without one 0", show_default=False)]


def print_json(value: Any) -> None:
    """Print a record or mapping to standard output as JSON."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    sys.stdout.write(text.translate(_JSON_ESCAPES) + "\n")


def print_rows(rows: "Sequence[Any]") -> None:
    """Print rows to standard output as JSONL."""
    import msgspec

    for row in rows:
        sys.stdout.write(msgspec.json.encode(row).decode().translate(_JSON_ESCAPES) + "\n")


def say(text: object, err: bool = False) -> None:
    """Print a text, with its control characters escaped: it may hold a file's name, or words of a file or a model."""
    typer.echo(printable(str(text)), err=err)


def open_session(recipe: "Recipe", near: Path) -> "Session":
    """Return a session in the workspace of a path, with progress on standard error. Raises `RecipeError` outside a workspace."""
    from rich.console import Console

    from cai.core.console import RichReporter
    from cai.core.workspace import find_workspace
    from cai.session import Session

    return Session(recipe=recipe, workspace=find_workspace(near), reporter=RichReporter(Console(stderr=True)))


def show(*parts: Any) -> None:
    """Print tables and styled texts to standard output, each on lines of its own."""
    from rich.console import Console

    Console().print(*parts, sep="\n")


def warn(text: str) -> None:
    """Print a warning to standard error."""
    from rich.console import Console

    from cai.core.console import plain

    Console(stderr=True).print(plain(text, "yellow"))


def show_results(results: "Sequence[EvalResult]", title: str) -> None:
    """Print results in a table."""
    from cai.core.console import plain, plain_table

    table = plain_table("measure", "of", "value", "95 % interval", "n", "", right=("value", "n"), title=title)
    for r in results:
        table.add_row(plain(r.name), plain(r.model), f"{r.value:.3f}", f"{r.low:.3f} – {r.high:.3f}", str(r.n), plain(r.note))
    show(table)


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from cai import __version__

        typer.echo(f"cai {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Align a language model with a written constitution."""
    from cai.train.processes import refuse_processes

    if context.invoked_subcommand not in ("run", "label"):
        refuse_processes(f"cai {context.invoked_subcommand}")
