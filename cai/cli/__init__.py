"""The command line. Each command parses, calls one function of a lower floor and shows what it returned; there is no logic here.

Everything heavy is imported inside the commands, so that help and checks answer at once.
"""

import os
import sys
import threading

from cai.cli import audits, constitutions, human, models, runs, studio  # noqa: F401 - importing registers their commands
from cai.cli.app import app
from cai.errors import CaiError, DataError

INTERRUPTED = 130
"""What typer exits with on Ctrl-C, and what shells give a process that a signal of that kind ended."""


def main() -> None:
    """Run the command line: exit 0 on success, 2 with a short panel on a user's error, 130 on Ctrl-C; only a bug shows a traceback."""
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
