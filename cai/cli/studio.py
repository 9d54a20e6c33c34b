"""The command that starts the local web app: studio."""

from pathlib import Path
from typing import Annotated

import typer

from cai.cli.app import app
from cai.studio.serving import DEFAULT_PORT


@app.command()
def studio(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: any free port", min=0, max=65535)] = DEFAULT_PORT,
    pairs: Annotated[list[Path] | None, typer.Option(help="Pairs to label, in addition to labels/queues/; may be repeated")] = None,
    model: Annotated[str | None, typer.Option(help="Model for previews: embedded (the default), a folder, a Hub id or URL#MODEL")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take the settings of previews from a recipe", show_default=False)] = None,
) -> None:
    """Start a local web app to edit constitutions, label pairs and monitor runs. Only this machine can open it."""
    from cai.studio.serving import serve

    def ready(address: str) -> None:
        typer.echo(f"Open {address}\nStop with Ctrl-C.")

    serve(port, Path.cwd(), ready, queues=pairs or (), model=model, recipe=recipe)
