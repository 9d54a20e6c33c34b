"""Serve the app on 127.0.0.1 only."""

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
    """Serve the workspace of a folder until the process is interrupted.

    Args:
        port: port to listen on; 0 chooses a free one.
        folder: a folder in the workspace.
        ready: called with the address to open, which contains the token, when the server accepts connections.
        queues: files of pairs to label, in addition to those in `labels/queues/`.
        model: model for previews; None: the recipe's model, or the embedded one.
        recipe: recipe with the settings of previews; None: the defaults.

    Raises:
        DataError: a queue can't be read.
        RecipeError: a package is missing, the port is in use, or there is no workspace.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise RecipeError(f"cai studio needs {' and '.join(missing)}. Install with: pip install 'cai[studio]'")
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
        # No access log, because it would contain the token. No proxy headers, because a client could forge its address.
        config = uvicorn.Config(
            app, access_log=False, log_level="warning", proxy_headers=False, server_header=False, lifespan="off", ws="none"
        )
        ready(f"http://{HOST}:{real_port}/enter?token={token}")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            studio.jobs.close()


def listening(port: int) -> socket.socket:
    """Return a socket that listens on this machine only. Raises `RecipeError` if the port is in use."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as e:
        listener.close()
        raise RecipeError(
            f"can't listen on port {port} of {HOST} ({e.strerror or e}). Is another `cai studio` running? Try --port 0"
        ) from e
    return listener
