"""Serve the app, on 127.0.0.1 unless TLS is configured."""

import importlib.util
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cai.core.workspace import find_workspace
from cai.errors import RecipeError

if TYPE_CHECKING:
    from cai.studio.access import Links

HOST = "127.0.0.1"
DEFAULT_PORT = 8788
_NEEDED = ("starlette", "uvicorn", "itsdangerous")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - refused without TLS and --url
_URL = re.compile(r"(https://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?)/?")


def serve(
    port: int,
    folder: Path,
    ready: Callable[[str], None],
    *,
    queues: Sequence[Path] = (),
    model: str | None = None,
    recipe: Path | None = None,
    host: str = HOST,
    certificate: Path | None = None,
    private_key: Path | None = None,
    url: str | None = None,
) -> None:
    """Serve the workspace of a folder until the process is interrupted.

    Args:
        port: port to listen on; 0 chooses a free one.
        folder: a folder in the workspace.
        ready: called with the owner's link when the server accepts connections.
        queues: files of pairs to label, in addition to those in `labels/queues/`.
        model: model for previews; None: the recipe's model, or the embedded one.
        recipe: recipe with the settings of previews; None: the defaults.
        host: address or name of this machine to listen on. Any other than 127.0.0.1 needs TLS.
        certificate: TLS certificate (PEM) with its chain; None: no TLS.
        private_key: the certificate's private key.
        url: public address of the app; None: none but its own.

    Raises:
        DataError: a queue can't be read.
        RecipeError: a package is missing, the port is in use, the address is not allowed, or there is no workspace.
        StoreError: the key of the links can't be used.
    """
    links = open_links(folder)
    import uvicorn

    from cai.studio.access import OWNER_DAYS
    from cai.studio.app import make_app, studio_for
    from cai.studio.trials import TrialRequest

    if (certificate is None) != (private_key is None):
        raise RecipeError("TLS needs both --certificate and --private-key")
    origins(port, host, certificate is not None, url)
    workspace = find_workspace(folder)
    asking = TrialRequest(model, recipe)
    asking.settings  # noqa: B018 - a recipe that can't be read is told now, not at the first trial
    studio = studio_for(workspace, queues, asking)
    for queue in studio.labelling.queues().values():
        if queue.path in queues:
            studio.labelling.to_label(queue)
    with listening(port, host) as listener:
        real_port = listener.getsockname()[1]
        allowed = origins(real_port, host, certificate is not None, url)
        app = make_app(studio, real_port, links, allowed)
        # No access log, because it would contain tokens. No proxy headers, because a client could forge its address.
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            ws="none",
            ssl_certfile=certificate,
            ssl_keyfile=private_key,
        )
        try:
            config.load()
        except OSError as e:  # also `ssl.SSLError`
            raise RecipeError(f"--certificate {certificate} with --private-key {private_key}: can't be used ({e.strerror or e})") from e
        links.opened_at(allowed[-1])
        ready(f"{allowed[-1]}/enter?token={links.token(None, 'admin', OWNER_DAYS)}")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            studio.jobs.close()


def open_links(folder: Path) -> "Links":
    """Return the links to a folder's workspace. Raises `RecipeError` if a package is missing, and as `Links` does."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise RecipeError(f"cai studio needs {' and '.join(missing)}. Install with: pip install 'cai[studio]'")
    from cai.studio.access import Links

    return Links(find_workspace(folder))


def origins(port: int, host: str = HOST, tls: bool = False, url: str | None = None) -> list[str]:
    """Return the addresses under which browsers may open the app, the last for people to use. Raises `RecipeError` if one is not allowed.

    >>> origins(8788), origins(443, "192.168.1.5", tls=True)[-1], origins(8788, url="https://labels.example.org/")[-1]
    (['http://localhost:8788', 'http://127.0.0.1:8788'], 'https://192.168.1.5', 'https://labels.example.org')
    """
    if host != HOST and not tls:
        raise RecipeError(
            f"--host {host} needs TLS, because links and answers would cross the network unencrypted. There are two ways. "
            "TLS: add --certificate FILE --private-key FILE. A tunnel, which needs nothing: leave --host out, and let people run "
            f"ssh -L {port or DEFAULT_PORT}:{HOST}:{port or DEFAULT_PORT} HOST"
        )
    if host in _EVERYWHERE and url is None:
        raise RecipeError(f"--host {host} listens on all addresses. Say which one people use: --url https://labels.example.org")
    names = ["localhost", HOST, *(f"[{name}]" if ":" in name else name.lower() for name in {host} - {HOST, *_EVERYWHERE})]
    found = [f"https://{name}:{port}".removesuffix(":443") if tls else f"http://{name}:{port}".removesuffix(":80") for name in names]
    if url is not None:
        if (match := _URL.fullmatch(url.lower())) is None:
            raise RecipeError(f"--url {url}: expected https:// and a host, with a port if it is not 443")
        found.append(match[1].removesuffix(":443"))
    return found


def listening(port: int, host: str = HOST) -> socket.socket:
    """Return a socket that listens on an address of this machine. Raises `RecipeError` if that fails, as when the port is in use."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as e:
        listener.close()
        raise RecipeError(
            f"can't listen on port {port} of {host} ({e.strerror or e}). Is another `cai studio` running? Try --port 0"
        ) from e
    return listener
