"""Request handler of a principle's page."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cai.constitution.diff import word_diff
from cai.studio.constitution_pages import BASE, name_of
from cai.studio.principle import principle_page
from cai.studio.run_pages import run_names, run_of
from cai.studio.web import page, studio_of, visitor_of


def show(request: Request) -> Response:
    """Show what is known of one principle, as it stands in the editor."""
    studio, name = studio_of(request), name_of(request)
    runs = [run_of(studio, run) for run in run_names(studio)]
    found = principle_page(studio.drafts, name, request.path_params["id"], runs, request.query_params.get("run", ""))
    return page("principle", name=name, p=found, word_diff=word_diff, visitor=visitor_of(request))


ROUTES = [Route(f"{BASE}/principles/{{id}}", show)]
