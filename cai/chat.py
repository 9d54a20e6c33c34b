"""Talk to one model, or to two side by side, in the terminal. The conversation is kept per model, so each sees its own answers."""

import asyncio
from pathlib import Path

from cai.call_store import CallStore
from cai.errors import ReplyError
from cai.ids import derive_seed
from cai.models.base import Sampling, TextModel
from cai.models.naming import spec_from_name
from cai.models.opening import open_engine
from cai.records import Message


def chat_loop(model: str, against: str | None, system: str | None, max_tokens: int, temperature: float, seed: int) -> None:
    """Read lines until the end of input; answer each with every model.

    Raises:
        ModelError: a model can't be loaded or stops answering.
    """
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console()
    names = [model] if against is None else [model, against]
    opening = (Message("system", system),) if system else ()
    sampling = Sampling(max_tokens, temperature)

    async def talk() -> None:
        with CallStore(None) as store:
            models = [TextModel(await open_engine(spec_from_name(name)), store, "chat") for name in names]
            histories = [opening for _ in models]
            turn = 0
            while True:
                try:
                    line = (await asyncio.to_thread(console.input, "[bold]you:[/bold] ")).strip()
                except EOFError:
                    break
                if line in ("/exit", "/quit"):
                    break
                if line == "/reset":
                    histories = [opening for _ in models]
                    console.print("[dim]started again[/dim]")
                    continue
                if not line:
                    continue
                turn += 1
                asked = [(*history, Message("user", line)) for history in histories]
                with console.status("thinking"):
                    answers = [await answer(m, messages, derive_seed(seed, turn)) for m, messages in zip(models, asked, strict=True)]
                histories = [(*messages, Message("assistant", text)) for messages, text in zip(asked, answers, strict=True)]
                width = max(20, console.width // len(names) - 1)
                console.print(Columns([Panel(Text(t), title=Text(Path(n).name), width=width) for n, t in zip(names, answers, strict=True)]))
            for m in models:
                await m.engine.close()

    async def answer(m: TextModel, messages: tuple[Message, ...], turn_seed: int) -> str:
        try:
            return (await m.complete(messages, sampling, turn_seed)).text
        except ReplyError as e:
            return f"[no answer: {e}]"

    asyncio.run(talk())
