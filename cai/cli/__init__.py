"""The command line. Each command parses its arguments, calls one function of another package and prints the result.

Heavy imports are inside the commands, so that help and error messages are fast.
"""

import errno
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import TextIO

from cai.cli import audits, constitution_trials, constitutions, human, judges, models, prompts, runs, studio  # noqa: F401 - importing registers their commands
from cai.cli.app import app, warn
from cai.errors import CaiError, DataError

INTERRUPTED = 130
"""Exit code of typer on Ctrl-C: 128 + SIGINT, as in shells."""


def main() -> None:
    """Run the command line. Exit codes: 0 on success, 2 on a user error (printed as a panel), 130 on Ctrl-C. Only bugs show a traceback.

    A scheduler's or container's SIGTERM is handled as Ctrl-C: calls in flight are awaited and stored.
    """
    if "LOCAL_RANK" not in os.environ:  # one of several processes may wait in a library, where no handler runs: its launcher ends it
        signal.signal(signal.SIGTERM, _terminated)
    warnings.showwarning = _show_warning
    try:
        for argument in sys.argv[1:]:
            if not argument.isascii() and any("\ud800" <= c <= "\udfff" for c in argument):
                raise DataError(f"{argument}: this argument is not UTF-8 text. Rename the file, or set the terminal to UTF-8.")
        try:
            app()
        except OSError as e:
            if e.errno != errno.ENAMETOOLONG:
                raise
            raise DataError(f"{str(e.filename)[:100]}…: {e.strerror}. Choose a shorter name.") from e
    except CaiError as e:
        from rich.console import Console

        from cai.core.console import panel

        Console(stderr=True).print(panel(str(e), type(e).__name__, "red"))
        sys.exit(2)
    except SystemExit as e:
        if e.code == INTERRUPTED:
            sys.stderr.write("\nStopped. Finished calls and checkpoints are kept. Run the same command again to resume.\n")
            if any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread()):
                # one is still generating a batch; a normal exit would abort
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(INTERRUPTED)
        raise


def _terminated(number: int, frame: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a shell ignores Ctrl-C
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """Print the text of a warning of `cai` itself, such as of a renamed setting; those of libraries as Python prints them."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        warn(str(message))
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))
