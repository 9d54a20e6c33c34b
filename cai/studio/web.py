"""Shared code of the request handlers: app state, page rendering, JSON bodies, error responses, static files."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from jinja2.sandbox import SandboxedEnvironment
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from cai.core.workspace import Workspace
from cai.errors import CaiError
from cai.report.environment import html_environment
from cai.studio.access import Link
from cai.studio.drafts import ChangedElsewhereError, Drafts
from cai.studio.jobs import Jobs
from cai.studio.labelling import Labelling, NotLastError
from cai.studio.running import Runs
from cai.studio.trials import TrialRequest

B = TypeVar("B")


@dataclass(frozen=True)
class Studio:
    """State of the app."""

    workspace: Workspace
    drafts: Drafts
    labelling: Labelling
    jobs: Jobs
    runs: Runs
    asking: TrialRequest


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An empty request body."""


def studio_of(request: Request) -> Studio:
    """Return the app's state."""
    found: Studio = request.app.state.studio
    return found


def visitor_of(request: Request) -> Link:
    """Return the link with which the request was made; the guard has checked it."""
    found: Link = request.state.visitor
    return found


@cache
def environment() -> SandboxedEnvironment:
    """Return the templates of the report and the studio."""
    return html_environment("cai.report", "cai.studio")


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a rendered page."""
    return HTMLResponse(fragment(template, **values), status)


def fragment(template: str, **values: Any) -> str:
    """Return a rendered template; all texts are escaped."""
    return environment().get_template(f"{template}.html.j2").render(**values)


def as_json(value: Any, status: int = 200) -> Response:
    """Return a record or mapping as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def taking(body_type: type[B], work: Callable[[Request, B], Response]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that validates a JSON body and runs `work` in a thread.

    Only `application/json` is accepted: another site can't send it without a CORS preflight, which fails.
    """

    async def handler(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "expected JSON")
        try:
            body = msgspec.json.decode(await request.body(), type=body_type)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise HTTPException(400, f"invalid request body: {e}") from e
        return await run_in_threadpool(work, request, body)

    return handler


def known(name: str, names: Any, what: str) -> str:
    """Return `name` if it is one of `names`. Raises a 404 error otherwise, so only known names become part of a path."""
    if name not in names:
        raise HTTPException(404, f"There is no {what} of that name.")
    return name


async def on_error(request: Request, error: Exception) -> Response:
    """Return an error as JSON for scripts and as a page for browsers."""
    if isinstance(error, HTTPException):
        status, text = error.status_code, str(error.detail)
    else:
        status, text = 409 if isinstance(error, ChangedElsewhereError | NotLastError) else 400, str(error)
    if request.method in ("GET", "HEAD") and "text/html" in request.headers.get("accept", ""):
        return page("error", status, title="That didn't work", text=text, visitor=visitor_of(request))
    return as_json({"error": text}, status)


SCRIPTS = (
    "app.js",
    "constitution.js",
    "yaml.js",
    "form.js",
    "rules.js",
    "home.js",
    "trials.js",
    "label.js",
    "label_start.js",
    "label_results.js",
    "run.js",
    "start_run.js",
)
HANDLERS: dict[Any, Any] = {CaiError: on_error, HTTPException: on_error}
ASSETS: dict[str, tuple[str, str, str]] = {
    "report.css": ("cai.report", "templates/style.css", "text/css"),
    "studio.css": ("cai.studio", "static/studio.css", "text/css"),
    **{name: ("cai.studio", f"static/{name}", "text/javascript") for name in SCRIPTS},
}
"""Package, file and media type of each file in `/static/`."""


def asset(request: Request) -> Response:
    """Return a style sheet or script."""
    from importlib import resources

    package, name, media_type = ASSETS[known(request.path_params["name"], ASSETS, "file")]
    return Response(Path(str(resources.files(package).joinpath(name))).read_bytes(), media_type=media_type)
