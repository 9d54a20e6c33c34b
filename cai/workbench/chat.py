"""Chat with one model, or with two side by side, in the terminal. Each model has its own conversation."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cai.core.console import plain
from cai.errors import ReplyError
from cai.ids import derive_seed
from cai.models.base import Sampling, TextModel
from cai.models.naming import spec_from_name
from cai.recipe import Recipe
from cai.records import Message
from cai.session import Session

if TYPE_CHECKING:
    from rich.console import Console


def chat_loop(model: str, against: str | None, system: str | None, max_tokens: int, temperature: float, seed: int) -> None:
    """Read lines until the end of input, and print every model's answer to each.

    Raises:
        ModelError: a model can't be loaded or fails.
    """
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel

    console = Console()
    names = [model] if against is None else [model, against]
    opening = (Message("system", system),) if system else ()
    sampling = Sampling(max_tokens, temperature)
    width = max(20, console.width // len(names) - 1)

    async def answer(m: TextModel, messages: tuple[Message, ...], turn_seed: int) -> str | ReplyError:
        try:
            return (await m.complete(messages, sampling, turn_seed)).text
        except ReplyError as e:
            return e

    # Read lines outside the event loop; inside it, Ctrl-C would take effect only at the end of the line.
    with asyncio.Runner() as runner, Session(recipe=Recipe(name="chat"), keep_calls=False) as session:
        models = [runner.run(session.open_model(spec_from_name(name))) for name in names]
        try:
            histories = [opening for _ in models]
            for turn, line in enumerate(_lines(console), 1):
                if line == "/reset":
                    histories = [opening for _ in models]
                    console.print("[dim]started again[/dim]")
                    continue
                panels = []
                with console.status("thinking"):
                    for i, (name, m) in enumerate(zip(names, models, strict=True)):
                        asked = (*histories[i], Message("user", line))
                        said = runner.run(answer(m, asked, derive_seed(seed, turn)))
                        if isinstance(said, str):  # failed turns are not added to the history
                            histories[i] = (*asked, Message("assistant", said))
                        shown = said if isinstance(said, str) else f"[no answer: {said}]"
                        panels.append(Panel(plain(shown), title=plain(Path(name).name), width=width))
                console.print(Columns(panels))
        except KeyboardInterrupt:
            console.print()
        finally:
            runner.run(session.close_models())


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
