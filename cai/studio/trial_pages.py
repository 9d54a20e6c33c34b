"""Request handlers for previews and comparisons of a draft, which run as jobs."""

from dataclasses import replace
from typing import Annotated

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cai.constitution.diff import word_diff
from cai.records import PromptKind
from cai.studio.constitution_pages import BASE, name_of, shown
from cai.studio.jobs import Job
from cai.studio.run_pages import run_of
from cai.studio.trials import TrialRequest, comparison, preview, with_wording, wording
from cai.studio.web import Nothing, Studio, as_json, fragment, studio_of, taking
from cai.workbench.trial import Answered, JudgedRevision, Revised
from cai.workbench.wording import Wording


class Preview(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Request to try one prompt."""

    prompt: Annotated[str, msgspec.Meta(max_length=20_000)]
    kind: PromptKind
    principle: str


class ComparisonRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Request for a comparison: on the texts of a run, or on prompts of the workspace if `run` is empty."""

    run: str
    sample: Annotated[int, msgspec.Meta(ge=1, le=500)]


class WordingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Request to draft the requests and questions of one principle, or of all that have only a statement."""

    index: Annotated[int, msgspec.Meta(ge=0)] | None = None


class WordedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Request to write what a job drafted for one principle into the text."""

    version: str
    job: str
    part: Annotated[int, msgspec.Meta(ge=0)]


def try_prompt(request: Request, body: Preview) -> Response:
    """Start a job that critiques and revises the response to one prompt under the draft."""
    studio, name = studio_of(request), name_of(request)
    _, draft = studio.drafts.versions(name)
    return _shown(
        studio.jobs.start("steps", preview(draft, body.prompt, body.kind, body.principle, studio.workspace, _asking(studio, name)))
    )


def compare(request: Request, body: ComparisonRequest) -> Response:
    """Start a job that compares the draft with the saved constitution."""
    studio, name = studio_of(request), name_of(request)
    saved, draft = studio.drafts.versions(name)
    run = run_of(studio, body.run) if body.run else None
    return _shown(studio.jobs.start("consequences", comparison(saved, draft, run, body.sample, studio.workspace, _asking(studio, name))))


def word(request: Request, body: WordingRequest) -> Response:
    """Start a job that drafts requests and questions from statements."""
    studio, name = studio_of(request), name_of(request)
    return _shown(studio.jobs.start("worded", wording(studio.drafts, name, body.index, studio.workspace, _asking(studio, name))))


def worded(request: Request, body: WordedRequest) -> Response:
    """Write what a job drafted for one principle into the text, and store it as a draft.

    The page asks for it, not the job: its edits follow each other, and none is based on a version that it has not seen.
    """
    drafts, name, parts = studio_of(request).drafts, name_of(request), _job(request, body.job).parts
    if body.part >= len(parts) or not isinstance(found := parts[body.part], Wording):
        raise HTTPException(404, "This job has not drafted that.")
    return shown(drafts.edit(name, body.version, lambda text: with_wording(text, drafts.open(name).form, found)))


def job(request: Request) -> Response:
    """Return a job's progress and results."""
    return _shown(_job(request, request.path_params["id"]))


def stop(request: Request, body: Nothing) -> Response:
    """Stop a job."""
    found = _job(request, request.path_params["id"])
    found.stop()
    return _shown(found)


def _asking(studio: Studio, name: str) -> TrialRequest:
    """Return the studio's model and settings, in the language of a constitution's draft."""
    return replace(studio.asking, language=studio.drafts.open(name).language)


def _job(request: Request, key: str) -> Job:
    found = studio_of(request).jobs.get(key)
    if found is None:
        raise HTTPException(404, "This job no longer exists. Start it again; finished calls are reused.")
    return found


def _shown(job: Job) -> Response:
    state, over = job.state, job.is_over  # read before the parts, so that a finished job has all of them
    names = {Answered: "answered", Revised: "revised", JudgedRevision: "judged"}
    parts = [(names.get(type(part), job.kind), part) for part in list(job.parts)]
    html = fragment("job", job=job, state=state, over=over, parts=parts, word_diff=word_diff)
    return as_json({"id": job.id, "state": state, "over": over, "html": html})


ROUTES = [
    Route(f"{BASE}/preview", taking(Preview, try_prompt), methods=["POST"]),
    Route(f"{BASE}/compare", taking(ComparisonRequest, compare), methods=["POST"]),
    Route(f"{BASE}/word", taking(WordingRequest, word), methods=["POST"]),
    Route(f"{BASE}/worded", taking(WordedRequest, worded), methods=["POST"]),
    Route("/jobs/{id}", job),
    Route("/jobs/{id}/stop", taking(Nothing, stop), methods=["POST"]),
]
