"""Chat with one model, or with two side by side, in the terminal. Each model has its own conversation."""

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cai.core.console import Reporter, plain
from cai.errors import ReplyError
from cai.ids import derive_seed
from cai.models.naming import spec_from_name
from cai.models.requests import Sampling
from cai.recipe import Recipe
from cai.records import Message
from cai.session import Session

if TYPE_CHECKING:
    from rich.columns import Columns
    from rich.console import Console

_FRAME_LINES = 6
"""Lines of the terminal that a growing answer leaves free."""


def chat_loop(model: str, against: str | None, system: str | None, max_tokens: int, temperature: float, seed: int) -> None:
    """Read lines until the end of input, and show every model's answer to each while it is being written."""
    from rich.console import Console

    console = Console()
    names = [model] if against is None else [model, against]
    opening = (Message("system", system),) if system else ()
    sampling = Sampling(max_tokens, temperature)
    shown = LiveAnswers(console, [Path(name).name for name in names])
    # Read lines outside the event loop; inside it, Ctrl-C would take effect only at the end of the line.
    with asyncio.Runner() as runner, Session(recipe=Recipe(name="chat"), keep_calls=False, reporter=shown) as session:
        models = [runner.run(session.open_model(spec_from_name(name))) for name in names]
        try:
            histories = [opening for _ in models]
            for turn, line in enumerate(_lines(console), 1):
                if line == "/reset":
                    histories = [opening for _ in models]
                    console.print("[dim]started again[/dim]")
                    continue
                with shown.turn():
                    for i, m in enumerate(models):
                        asked = (*histories[i], Message("user", line))
                        try:
                            said = runner.run(m.complete(asked, sampling, derive_seed(seed, turn), on_text=partial(shown.add, i))).text
                        except ReplyError as e:  # failed turns are not added to the history
                            shown.texts[i] = f"[no answer: {e}]"
                            continue
                        histories[i] = (*asked, Message("assistant", said))
                        shown.texts[i] = said
        except KeyboardInterrupt:
            console.print()
        finally:
            runner.run(session.close_models())


class LiveAnswers(Reporter):
    """Shows the answers of a turn as they are written, or what they wait for: a model that is loading, or one that has not begun.

    Args:
        console: where to show them.
        names: one per model.
    """

    def __init__(self, console: "Console", names: list[str]) -> None:
        self.console = console
        self.names = names
        self.width = max(20, console.width // len(names) - 1)
        self.texts = [""] * len(names)
        self.waits_for = ""

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Show growing answers inside the block, of which only the last lines if they are long; at its end, the whole answers."""
        from rich.live import Live

        self.texts = [""] * len(self.names)
        with Live(get_renderable=lambda: self.panels(self.console.height - _FRAME_LINES), console=self.console, transient=True):
            yield
        self.console.print(self.panels())

    def add(self, number: int, piece: str) -> None:
        """Append a piece to the answer of a model."""
        self.texts[number] += piece

    @contextlib.contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Name the model that is loaded inside the block."""
        self.waits_for = f"loading {Path(model).name}…"
        yield
        self.waits_for = ""

    def panels(self, lines: int | None = None) -> "Columns":
        """Return a frame per model, with at most this many last lines of its answer."""
        from rich.columns import Columns
        from rich.panel import Panel
        from rich.text import Text

        found = []
        for name, text in zip(self.names, self.texts, strict=True):
            body = plain(text) if text else plain(self.waits_for or "thinking…", "dim")
            if lines is not None:
                body = Text("\n").join(body.wrap(self.console, self.width - 4)[-lines:])
            found.append(Panel(body, title=plain(name), width=self.width))
        return Columns(found)


def _lines(console: "Console") -> Iterator[str]:
    """Yield the typed lines until /exit or the end of input."""
    while True:
        try:
            line = console.input("[bold]you:[/bold] ").strip()
        except EOFError:
            return
        if line in ("/exit", "/quit"):
            return
        if line:
            yield line
