"""The ASGI app: all routes, protected by the guard."""

from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cai.core.console import printable
from cai.core.workspace import Workspace, is_run_name, is_text
from cai.errors import CaiError
from cai.studio import constitution_pages, label_pages, principle_pages, run_pages, trial_pages
from cai.studio.access import Links
from cai.studio.drafts import Drafts, Edited
from cai.studio.guard import Guard
from cai.studio.jobs import Jobs
from cai.studio.label_pages import queue_rows
from cai.studio.labelling import Labelling
from cai.studio.run_pages import run_names, run_of, status_of
from cai.studio.running import Runs
from cai.studio.trials import TrialRequest
from cai.studio.web import HANDLERS, Studio, asset, page, studio_of, visitor_of


def studio_for(workspace: Workspace, queues: Sequence[Path] = (), asking: TrialRequest | None = None) -> Studio:
    """Return the app's state for a workspace.

    Args:
        queues: files of pairs to label, in addition to `labels/queues/`.
        asking: model and settings of previews; None: the embedded model.
    """
    return Studio(workspace, Drafts(workspace), Labelling(workspace, queues), Jobs(), Runs(workspace), asking or TrialRequest())


def home(request: Request) -> Response:
    """Show the start page: constitutions, queues and runs of the workspace. People who only label start at `/label`."""
    studio, visitor = studio_of(request), visitor_of(request)
    if visitor.role == "label":
        return RedirectResponse("/label", 303)
    runs = [(run.path.name, status_of(run), run.report.is_file()) for run in (run_of(studio, name) for name in run_names(studio))]
    constitutions = [(name, *_opened(studio, name)) for name in studio.drafts.names()]
    return page(
        "home",
        root=printable(str(studio.workspace.root)),
        constitutions=constitutions,
        queues=queue_rows(studio),
        runs=runs,
        visitor=visitor,
        odd=_odd_names(studio.workspace.root),
    )


def _odd_names(root: Path) -> list[str]:
    """Return the paths that the app leaves out because of their names."""
    runs = {p.parent for pattern in ("*/manifest.json", "*/recipe.yaml") for p in (root / "runs").glob(pattern)}
    runs = {run for run in runs if not is_run_name(run.name)}
    files = [p for folder in ("constitution", "labels/queues") for p in (root / folder).glob("*") if p.is_file() and not is_text(p.name)]
    return sorted(printable(str(p.relative_to(root))) for p in (*runs, *files))


def _opened(studio: Studio, name: str) -> tuple[Edited | None, str]:
    try:
        return studio.drafts.open(name), ""
    except CaiError as e:
        return None, str(e)


def make_app(studio: Studio, port: int, links: Links, origins: Sequence[str]) -> Guard:
    """Return the ASGI app.

    Args:
        studio: state of the app.
        port: port of the server.
        links: the links that open it.
        origins: scheme, host and port of each address under which browsers may open it.
    """
    pages = (constitution_pages, principle_pages, trial_pages, label_pages, run_pages)
    routes = [Route("/", home), Route("/static/{name}", asset), *(route for part in pages for route in part.ROUTES)]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.state.studio = studio
    return Guard(app, port, links, origins)
