"""The command line. Each command parses, calls one function of a lower floor and shows what it returned; there is no logic here.

Everything heavy is imported inside the commands, so that help and checks answer at once.
"""

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cai.errors import CaiError, DataError

if TYPE_CHECKING:
    from cai.recipe import Recipe
    from cai.session import Session

app = typer.Typer(
    name="cai",
    help="Align a language model with a written constitution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""Characters that JSON leaves as they are, and some terminals obey; outside of texts JSON has none."""
INTERRUPTED = 130
"""What typer exits with on Ctrl-C, and what shells give a process that a signal of that kind ended."""
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def print_json(value: Any) -> None:
    """Write any record or mapping to standard output as JSON."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    sys.stdout.write(text.translate(_JSON_ESCAPES) + "\n")


def open_session(recipe: "Recipe", near: Path) -> "Session":
    """Return a session with progress on standard error, in the workspace around a file. Raises `RecipeError` outside of any."""
    from rich.console import Console

    from cai.core.console import RichReporter
    from cai.core.workspace import find_workspace
    from cai.session import Session

    return Session(recipe=recipe, workspace=find_workspace(near), reporter=RichReporter(Console(stderr=True)))


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
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


def main() -> None:
    """Run the command line: exit 0 on success, 2 with a short panel on a user's error, 130 on Ctrl-C; only a bug shows a traceback."""
    from cai.cli import audits, constitutions, human, models, runs, studio  # noqa: F401 - importing registers their commands

    try:
        for argument in sys.argv[1:]:
            if not argument.isascii() and any("\ud800" <= c <= "\udfff" for c in argument):
                raise DataError(f"{argument}: this argument is not UTF-8 text. Rename the file, or set the terminal to UTF-8.")
        app()
    except CaiError as e:
        from rich.console import Console

        from cai.core.console import panel

        Console(stderr=True).print(panel(str(e), type(e).__name__, "red"))
        sys.exit(2)
    except SystemExit as e:
        if e.code == INTERRUPTED:
            sys.stderr.write("\nStopped. Every finished call and checkpoint is kept: the same command goes on from here.\n")
            if threading.active_count() > 1:  # a model amid a batch that nobody waits for: unwinding it would end in an abort
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(INTERRUPTED)
        raise
