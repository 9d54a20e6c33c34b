"""Serves the app on 127.0.0.1, and on nothing else, until it is stopped."""

import importlib.util
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from cai.core.workspace import find_workspace
from cai.errors import RecipeError

HOST = "127.0.0.1"
DEFAULT_PORT = 8788
_NEEDED = ("starlette", "uvicorn")


def serve(
    port: int,
    folder: Path,
    ready: Callable[[str], None],
    *,
    queues: Sequence[Path] = (),
    model: str | None = None,
    recipe: Path | None = None,
) -> None:
    """Serve the workspace around a folder until the process is interrupted.

    Args:
        port: to listen on; 0 takes any that is free.
        folder: in the workspace.
        ready: told the address to open, which holds the token, once connections are taken.
        queues: files of pairs to label, beside those in `labels/queues/`.
        model: whom previews ask; None: the recipe's, or the embedded one.
        recipe: a recipe's file with the settings of previews; None: the defaults.

    Raises:
        DataError: a queue can't be read.
        RecipeError: a package is missing, the port is taken, or there is no workspace.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise RecipeError(f"cai studio needs {' and '.join(missing)}. Install what it needs with: pip install 'cai[studio]'")
    import uvicorn

    from cai.studio.app import make_app, studio_for
    from cai.studio.trials import TrialRequest

    workspace = find_workspace(folder)
    studio = studio_for(workspace, queues, TrialRequest(model, recipe))
    for queue in studio.labelling.queues().values():
        if queue.path in queues:
            studio.labelling.to_label(queue)
    token = secrets.token_urlsafe(32)
    with listening(port) as listener:
        real_port = listener.getsockname()[1]
        app = make_app(studio, real_port, token)
        # No access log: its lines would hold the token. No proxy headers: nobody may say that the peer is another.
        config = uvicorn.Config(
            app, access_log=False, log_level="warning", proxy_headers=False, server_header=False, lifespan="off", ws="none"
        )
        ready(f"http://{HOST}:{real_port}/enter?token={token}")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            studio.jobs.close()


def listening(port: int) -> socket.socket:
    """Return a socket that takes connections from this machine. Raises `RecipeError` where the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as e:
        listener.close()
        raise RecipeError(
            f"port {port} of {HOST} can't be listened on ({e.strerror or e}). Is another `cai studio` running? Try --port 0"
        ) from e
    return listener
