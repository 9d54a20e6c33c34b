"""The commands of the local web app: studio, studio invite, studio revoke."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cai.cli.app import app, say
from cai.studio.serving import DEFAULT_PORT, HOST

studio = typer.Typer(name="studio", invoke_without_command=True)
app.add_typer(studio)
Url = Annotated[str | None, typer.Option(help="Address that people use, if it is another: https://labels.example.org", show_default=False)]


@studio.callback()
def start(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Port; 0: any free port", min=0, max=65535)] = DEFAULT_PORT,
    pairs: Annotated[list[Path] | None, typer.Option(help="Pairs to label, in addition to labels/queues/; may be repeated")] = None,
    model: Annotated[str | None, typer.Option(help="Model for previews: embedded (the default), a folder, a Hub id or URL#MODEL")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take the settings of previews from a recipe", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any other than the default needs TLS")] = HOST,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate (PEM) with its chain", show_default=False)] = None,
    private_key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM)", show_default=False)] = None,
    url: Url = None,
) -> None:
    """Start a web app to edit constitutions, label pairs and monitor runs. Only this machine can open it, without --host or --url."""
    if context.invoked_subcommand is not None:
        return
    from cai.studio.serving import serve

    def ready(address: str) -> None:
        say(f"Open {address}\nStop with Ctrl-C.")

    tls = {"certificate": certificate, "private_key": private_key}
    serve(port, Path.cwd(), ready, queues=pairs or (), model=model, recipe=recipe, host=host, url=url, **tls)


@studio.command()
def invite(
    name: Annotated[str, typer.Argument(help="Name under which they label")],
    role: Annotated[
        Literal["label", "edit", "admin"],
        typer.Option(help="label: label pairs only; edit: also read everything, edit and try constitutions; admin: everything"),
    ] = "label",
    days: Annotated[int, typer.Option(help="Days for which the link is valid", min=1, max=366)] = 7,
    port: Annotated[
        int | None, typer.Option(help="Port of the app; default: where it was last started", min=1, max=65535, show_default=False)
    ] = None,
    url: Url = None,
) -> None:
    """Print a link for someone else. The app need not be running."""
    from cai.studio.serving import open_links, origins

    links = open_links(Path.cwd())
    known = links.address() if port is None and url is None else None
    say(f"{known or origins(port or DEFAULT_PORT, url=url)[-1]}/enter?token={links.token(name, role, days)}")


@studio.command()
def revoke(name: Annotated[str, typer.Argument(help="Name that the links were made for")]) -> None:
    """End all links that a name has so far, at once."""
    from cai.studio.serving import open_links

    open_links(Path.cwd()).revoke(name)
    say(f"All links that were made for {name} so far have ended. Another spelling is another name.")
