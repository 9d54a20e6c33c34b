"""Request handlers for runs: start, watch, stop and resume them, browse their texts, open their reports, compare several."""

from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from cai.core.status import RunStatus, run_status
from cai.core.workspace import RunDirectory, is_run_name
from cai.errors import CaiError
from cai.evaluate.adherence_table import adherence_lines
from cai.pipeline.plan import plan_recipe
from cai.report.collect import read_curves
from cai.report.comparison import compare_runs
from cai.report.page import POLICY, render_comparison
from cai.report.sections import curve_plots
from cai.studio.browsing import PER_PAGE, Order, Query, What, browse, views_of
from cai.studio.running import RunRequest
from cai.studio.web import Nothing, Studio, as_json, fragment, known, page, studio_of, taking, visitor_of

_ALONE = {"content-security-policy": f"{POLICY}; sandbox"}
"""Headers of a page with its own content security policy: no scripts, no external files."""
TITLES: dict[What, str] = {
    "revisions": "Responses and their revisions",
    "distilled": "Responses under the principles",
    "labels": "Labelled pairs",
    "answers": "Answers of the models",
}
ORDERS: dict[Order, str] = {
    "file": "in the order of the run",
    "worst": "the worst",
    "change": "the largest change",
    "disagreement": "the least certain",
}


def run_names(studio: Studio) -> list[str]:
    """Return the names of all runs, latest first. One that was started here is a run before its first stage."""
    found = {p.parent for name in ("manifest.json", "recipe.yaml") for p in (studio.workspace.root / "runs").glob(f"*/{name}")}
    found |= {studio.workspace.root / "runs" / name for name in studio.runs.started()}
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


def form(request: Request) -> Response:
    """Show the form that starts a run."""
    studio, wanted = studio_of(request), request.query_params.get("constitution", "")
    return page("start_run", recipes=studio.runs.recipes(), constitutions=studio.drafts.names(), constitution=wanted)


def plan(request: Request, body: RunRequest) -> Response:
    """Return what a run would cost."""
    studio = studio_of(request)
    recipe = studio.runs.recipe(body)
    planned = plan_recipe(recipe, studio.workspace)
    return as_json({"html": fragment("plan", plan=planned, name=recipe.name, seeds=len(recipe.seeds))})


def start(request: Request, body: RunRequest) -> Response:
    """Start a run."""
    name = studio_of(request).runs.start(body)
    return as_json({"page": f"/runs/{name}"})


def stop(request: Request, body: Nothing) -> Response:
    """Stop a run."""
    studio_of(request).runs.stop(_run(request))
    return as_json({})


def resume(request: Request, body: Nothing) -> Response:
    """Let a stopped run go on."""
    studio_of(request).runs.resume(_run(request))
    return as_json({})


def watch(request: Request) -> Response:
    """Show the page of a run."""
    run = _run(request)
    return page("run", name=run.path.name, html=_stages(studio_of(request), run), visitor=visitor_of(request))


def stages(request: Request) -> Response:
    """Return the part of the page that changes during a run."""
    studio, run = studio_of(request), _run(request)
    alive, name = studio.runs.alive(run), run.path.name
    can_resume = bool(studio.runs.left(run))
    failed = studio.runs.failed(name)
    return as_json(
        {"html": _stages(studio, run), "alive": alive, "can_resume": can_resume, "failed": failed, "log": studio.runs.printed(name)}
    )


def texts(request: Request) -> Response:
    """Show a run's texts: those that match the query, or all about one prompt."""
    run, asked = _run(request), request.query_params
    views = views_of(run)
    prompt = asked.get("prompt", "")
    what: What | None = next((w for w in views if w == asked.get("what")), next(iter(views), "answers"))
    order: Order = next((o for o in get_args(Order) if o == asked.get("order")), "file")
    page_asked = asked.get("page", "0")
    number = int(page_asked) if page_asked.isascii() and page_asked.isdigit() and len(page_asked) < 7 else 0
    query = Query(
        None if prompt else what, asked.get("search", ""), asked.get("kind", ""), asked.get("principle", ""), prompt, order, number
    )
    given = {key: value for key, value in asked.items() if key != "page"}
    values: dict[str, Any] = {
        "name": run.path.name,
        "query": query,
        "found": browse(run, query),
        "views": views,
        "titles": TITLES,
        "orders": ORDERS,
        "first": number * PER_PAGE,
        "earlier": Markup(urlencode(given | {"page": number - 1})),
        "later": Markup(urlencode(given | {"page": number + 1})),
    }
    return page("run_texts", **values)


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


def _stages(studio: Studio, run: RunDirectory) -> str:
    status = status_of(run)
    curves = read_curves(run.path) if status is not None else ()
    plots = [(stage, curve_plots(curves, stage)) for stage in ("sft", "reward", "policy")]
    return fragment(
        "stages",
        status=status,
        name=run.path.name,
        has_report=run.report.is_file(),
        has_texts=bool(views_of(run)),
        alive=studio.runs.alive(run),
        in_use=run.in_use(),
        adherence=adherence_lines(run) if status is not None else (),
        curves=[(stage, found) for stage, found in plots if found],
    )


ROUTES = [
    Route("/runs", form),
    Route("/runs", taking(RunRequest, start), methods=["POST"]),
    Route("/plan", taking(RunRequest, plan), methods=["POST"]),
    Route("/runs/{name}", watch),
    Route("/runs/{name}/stages", stages),
    Route("/runs/{name}/stop", taking(Nothing, stop), methods=["POST"]),
    Route("/runs/{name}/resume", taking(Nothing, resume), methods=["POST"]),
    Route("/runs/{name}/texts", texts),
    Route("/runs/{name}/report", report),
    Route("/compare", compare),
]
