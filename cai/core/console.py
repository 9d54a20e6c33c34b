"""Console output of a run: stage lines, progress with rate and time left, warnings.

A terminal gets live progress bars. A pipe or a log file gets one line per stage and one line per 10 % of progress. Texts from models
and files are printed literally: markup is not interpreted and control characters are escaped.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from rich.text import Text

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
"""Marks that turn the writing direction, and separators of lines."""
_CONTROLS |= {code: f"\\u{code:04x}" for code in (*DIRECTIONS, *range(0xD800, 0xE000))}


def printable(text: str) -> str:
    """Escape the control characters of a text, so that it can't move the cursor, restyle the terminal or reverse the writing direction.

    Lone surrogates, as in file names that are not UTF-8, are escaped too.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return text.translate(_CONTROLS)


QUIET_SECONDS = 30.0
"""A log that has said nothing for so long is told how many calls were made."""
WORD = 8
"""Least width of a table's columns of words, in characters: below it, ordinary words would be broken."""


def plain_table(*columns: str, right: Sequence[str] = (), title: str | None = None) -> "Table":
    """Return an empty table without boxes, which fits 80 columns. The first column is never wrapped; the others wrap.

    Args:
        columns: column headings.
        right: headings of the columns to align right, such as numbers.
        title: title above the table.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=plain(title) if title else None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        if column in right:
            table.add_column(column, justify="right", overflow="fold", no_wrap=number == 0)
        else:
            table.add_column(column, overflow="fold", no_wrap=number == 0, min_width=WORD if number else None)
    return table


def plain(text: str, style: str = "") -> "Text":
    """Return a text that `rich` prints literally."""
    from rich.text import Text

    return Text(printable(text), style)


def panel(text: str, title: str, colour: str) -> "RenderableType":
    """Return a text in a coloured frame."""
    from rich.panel import Panel

    return Panel(plain(text), title=plain(title), border_style=colour, expand=False)


class Reporter:
    """Silent reporter: the base class of all reporters, and the one for tests."""

    def say(self, text: str, style: str = "") -> None:
        """Print one line."""

    def warn(self, text: str) -> None:
        """Print a warning."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name the stage that runs inside the block."""
        yield

    def progress(self, done: int, total: int | None, unit: str = "items") -> None:
        """Report the progress of the current stage. `total` is None if it is not known."""

    def call(self) -> None:
        """Report one finished model call. An item takes several calls, so calls show progress before the first item is done."""

    @contextlib.contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Name the model that is loaded inside the block."""
        yield


class RichReporter(Reporter):
    """Prints a run's progress to a terminal or log, and writes `progress.json` to the run directory for `cai status`.

    Args:
        console: where to print. Use standard error, because `--json` writes to standard output.
        progress_file: progress file, rewritten at most every two seconds.
    """

    def __init__(self, console: "Console", progress_file: Path | None = None) -> None:
        self.console = console
        self.progress_file = progress_file
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._unit = ""
        self._started = self._moved = self._said = self._saved = 0.0
        self._tenth = 0
        self._calls = 0
        self._shown = (0, 0)
        self._before = 0
        self._loading = ""

    def say(self, text: str, style: str = "") -> None:
        """Print one line above the progress bar."""
        self._said = time.monotonic()
        self.console.print(plain(text, style), highlight=False, soft_wrap=not self.console.is_terminal)

    def warn(self, text: str) -> None:
        """Print a warning in a yellow frame."""
        self.console.print(panel(text, "warning", "yellow"))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a progress bar while the block runs, and remove it at the end."""
        self._stage, self._unit, self._shown = name, "", (0, 0)
        self._moved = self._said = time.monotonic()
        if self.console.is_terminal:
            self._show()
        try:
            yield
        finally:
            self._stop_bar()
            if self.progress_file is not None:
                self.progress_file.unlink(missing_ok=True)

    def progress(self, done: int, total: int | None, unit: str = "items") -> None:
        """Update the progress bar; a new unit starts a new bar, and so does a count that begins again."""
        if unit != self._unit or done < self._shown[0]:
            self._stop_bar()
            self._unit, self._started, self._tenth, self._calls = unit, self._moved, 0, 0
            self._before = max(0, done - 1)  # the steps of a training that goes on were made earlier
        self._moved = time.monotonic()
        self._shown = (done, total or 0)
        if self.console.is_terminal:
            self._show()
        elif total and (done * 10 // total > self._tenth or self._quiet()):
            self._tenth = done * 10 // total
            self._say_counts()
        self._save()

    def call(self) -> None:
        """Count one model call and show it in the progress bar."""
        self._calls += 1
        if self._bar is not None:
            self._show()
        elif not self.console.is_terminal and self._quiet():
            self._say_counts()
        self._save()

    @contextlib.contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Show that a model is being loaded. The time it takes doesn't count in the rate of calls."""
        self._loading, started = printable(f"loading {Path(model).name}"), time.monotonic()
        if self._bar is not None:
            self._show()
        elif not self.console.is_terminal:
            self.say(f"  {self._stage}: {self._loading}")
        self._save(now=True)
        try:
            yield
        finally:
            self._loading = ""
            self._moved += time.monotonic() - started
            self._started += time.monotonic() - started
            if self._bar is not None:
                self._show()
            self._save(now=True)

    def _quiet(self) -> bool:
        return time.monotonic() - self._said > QUIET_SECONDS

    def _say_counts(self) -> None:
        done, total = self._shown
        rate = (done - self._before) / max(time.monotonic() - self._started, 1e-9)
        text = f"  {self._stage}: {done}/{total or '?'} {self._unit or 'items'}"
        text += f" ({self._calls} calls)" if self._calls else ""
        text += f", {rate:.2g}/s" if 0 < rate < 10 else f", {rate:,.0f}/s" if rate else ""
        text += f", {(total - done) / rate:.0f} s left" if total and rate else ""
        self.say(text)

    def _show(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        done, total = self._shown
        if self._bar is None:
            self._bar = Progress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=14),
                TextColumn("{task.fields[counts]}", markup=False),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task(self._stage, total=None, counts="")
            self._bar.start()
        assert self._task is not None
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self._calls / seconds
        calls = f" · {self._calls} calls, {rate:.{1 if rate < 10 else 0}f}/s" if self._calls else ""
        made = done - self._before
        left = f" · {timedelta(seconds=round((total - done) * seconds / made))} left" if made and total else ""
        if self._loading or not self._unit:
            self._bar.update(self._task, counts=self._loading or "starting", refresh=True)
        else:
            counts = f"{done}/{total or '?'} {printable(self._unit)}{calls}{left}"
            self._bar.update(self._task, completed=done, total=total or None, counts=counts)

    def _save(self, now: bool = False) -> None:
        if self.progress_file is None or (time.monotonic() - self._saved < 2 and not now):
            return
        self._saved = time.monotonic()
        done, total = self._shown
        state = {"stage": self._stage, "done": done, "total": total or None, "unit": self._unit, "calls": self._calls}
        state |= {"loading": self._loading} if self._loading else {}
        with contextlib.suppress(OSError):  # only `cai status` reads it: the run must not fail because of it
            self.progress_file.write_text(json.dumps(state))

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
