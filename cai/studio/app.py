"""The app: its routes, behind the guard."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cai.studio import constitution_pages
from cai.studio.drafts import Drafts
from cai.studio.guard import Guard
from cai.studio.web import HANDLERS, Studio, asset, page, studio_of
from cai.workspace import Workspace


def studio_for(workspace: Workspace) -> Studio:
    """Return what the app works with in a workspace."""
    return Studio(workspace, Drafts(workspace))


def home(request: Request) -> Response:
    """Everything that the workspace has."""
    studio = studio_of(request)
    return page("home", root=str(studio.workspace.root), constitutions=[studio.drafts.open(name) for name in studio.drafts.names()])


def make_app(studio: Studio, port: int, token: str) -> Guard:
    """Return the ASGI app.

    Args:
        studio: what it works with.
        port: on which it will be served.
        token: that a browser must bring.
    """
    routes = [Route("/", home), Route("/static/{name}", asset), *constitution_pages.ROUTES]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.state.studio = studio
    return Guard(app, port, token)
