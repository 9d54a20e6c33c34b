"""Request handlers for runs: their stages, as in `cai status`, their reports, and comparisons of several."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from cai.core.status import RunStatus, run_status
from cai.core.workspace import RunDirectory, is_run_name
from cai.errors import CaiError
from cai.report.comparison import compare_runs
from cai.report.page import POLICY, render_comparison
from cai.studio.web import Studio, as_json, fragment, known, page, studio_of

_ALONE = {"content-security-policy": f"{POLICY}; sandbox"}
"""Headers of a page with its own content security policy: no scripts, no external files."""


def run_names(studio: Studio) -> list[str]:
    """Return the names of all runs, latest first."""
    found = {p.parent for name in ("manifest.json", "recipe.yaml") for p in (studio.workspace.root / "runs").glob(f"*/{name}")}
    return [p.name for p in sorted(found, key=_changed, reverse=True) if is_run_name(p.name)]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def run_of(studio: Studio, name: str) -> RunDirectory:
    """Return a run's directory. Raises a 404 error if it is unknown."""
    return studio.workspace.run(known(name, run_names(studio), "run"))


def status_of(run: RunDirectory) -> RunStatus | None:
    """Return a run's status; None if its first stage has not started or its files can't be read."""
    try:
        return run_status(run)
    except CaiError:
        return None


def watch(request: Request) -> Response:
    """Show the page of a run."""
    run = _run(request)
    return page("run", name=run.path.name, html=_stages(run))


def stages(request: Request) -> Response:
    """Return the part of the page that changes during a run."""
    run = _run(request)
    return as_json({"html": _stages(run), "in_use": run.in_use()})


def report(request: Request) -> Response:
    """Return a run's report."""
    run = _run(request)
    if not run.report.is_file():
        raise HTTPException(404, "This run has no report yet. Its last stage writes the report.")
    return FileResponse(run.report, media_type="text/html; charset=utf-8", headers=_ALONE)


def compare(request: Request) -> Response:
    """Return the comparison of the runs that the address names, as `cai report` writes it. The oldest is the baseline."""
    studio = studio_of(request)
    latest_first = run_names(studio)
    wanted = [known(name, latest_first, "run") for name in request.query_params.getlist("run")]
    runs = [studio.workspace.run(name) for name in sorted(wanted, key=latest_first.index, reverse=True)]
    return HTMLResponse(render_comparison(compare_runs(runs)), headers=_ALONE)


def _run(request: Request) -> RunDirectory:
    return run_of(studio_of(request), request.path_params["name"])


def _stages(run: RunDirectory) -> str:
    return fragment("stages", status=status_of(run), name=run.path.name, has_report=run.report.is_file(), in_use=run.in_use())


ROUTES = [
    Route("/runs/{name}", watch),
    Route("/runs/{name}/stages", stages),
    Route("/runs/{name}/report", report),
    Route("/compare", compare),
]
