"""The command that opens the local web app: studio."""

from pathlib import Path
from typing import Annotated

import typer

from cai.cli import app
from cai.studio.serving import DEFAULT_PORT


@app.command()
def studio(
    port: Annotated[int, typer.Option(help="Listen on this port of 127.0.0.1; 0 takes any", min=0, max=65535)] = DEFAULT_PORT,
) -> None:
    """A local web app: edit constitutions, label pairs, watch runs. Only this machine can reach it, with the token in the address."""
    from cai.studio.serving import serve

    def ready(address: str) -> None:
        typer.echo(f"Open {address}\nStop with Ctrl-C.", err=False)

    serve(port, Path.cwd(), ready)
