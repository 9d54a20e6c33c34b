"""Request handlers for labelling: the start page, one pair at a time by keyboard, and new queues from runs.

A rater's browser receives only the prompt and two responses: no source, no score, no label.
"""

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import msgspec
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cai.constitution.guidelines import examples_path, guideline_blocks, html_body, load_examples
from cai.constitution.load import load_constitution
from cai.errors import CaiError
from cai.labels.annotating import QueueBy, label_queue
from cai.labels.pooling import ADJUDICATOR
from cai.studio.labelling import Choice, Queue, Turn, rater_name
from cai.studio.results import label_results
from cai.studio.run_pages import run_names, run_of
from cai.studio.web import Studio, as_json, fragment, known, page, studio_of, taking, visitor_of

BASE = "/label/{queue}"


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rater's answer to one pair."""

    rater: str
    key: str
    choice: Choice
    note: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    skipped: Annotated[list[str], msgspec.Meta(max_length=10_000)] = []


class Undo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to undo."""

    rater: str
    key: str


class Next(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Request for the next pair, without an answer."""

    rater: str
    skipped: Annotated[list[str], msgspec.Meta(max_length=10_000)] = []


class NewQueue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Request for a new queue of pairs from a run."""

    run: str
    by: QueueBy
    n: Annotated[int, msgspec.Meta(ge=1, le=5000)]


def start(request: Request) -> Response:
    """Show the start page, which asks for a queue, and for the rater's name unless the link has one."""
    studio, visitor = studio_of(request), visitor_of(request)
    names = studio.drafts.names()
    return page("label_start", queues=queue_rows(studio), constitutions=names, runs=run_names(studio), visitor=visitor)


def begin(request: Request) -> Response:
    """Redirect from the start form to the labelling page."""
    asked = request.query_params
    queue = known(asked.get("queue", ""), studio_of(request).labelling.queues(), "queue")
    rater = _rater(request, asked.get("rater", ""))
    return RedirectResponse(f"/label/{quote(queue)}?rater={quote(rater)}&guide={quote(asked.get('guide', ''))}", 303)


def rate(request: Request) -> Response:
    """Show the labelling page."""
    studio, queue = studio_of(request), _queue(request)
    rater, guide = _rater(request, request.query_params.get("rater", "")), request.query_params.get("guide", "")
    if guide:
        known(guide, studio.drafts.names(), "constitution")
    file = studio.labelling.file(queue, rater).relative_to(studio.workspace.root)
    guidelines = _guidelines(studio, guide) if guide else None
    return page("label", queue=queue, rater=rater, file=str(file), guidelines=guidelines, visitor=visitor_of(request))


def results(request: Request) -> Response:
    """Show what the labels of a queue say: agreement, raters, disputed pairs."""
    queue = _queue(request)
    found = label_results(studio_of(request).labelling, queue)
    return page("label_results", queue=queue, found=found, adjudicator=ADJUDICATOR, visitor=visitor_of(request))


def turn(request: Request, body: Next) -> Response:
    """Return the next pair."""
    queue = _queue(request)
    return _shown(queue, studio_of(request).labelling.turn(queue, _rater(request, body.rater), body.skipped))


def answer(request: Request, body: Answer) -> Response:
    """Store an answer and return the next pair."""
    labelling, queue, rater = studio_of(request).labelling, _queue(request), _rater(request, body.rater)
    kept = labelling.answer(queue, rater, body.key, body.choice, body.note)
    return _shown(queue, labelling.turn(queue, rater, body.skipped), kept)


def undo(request: Request, body: Undo) -> Response:
    """Undo the last answer and return its pair."""
    labelling, queue, rater = studio_of(request).labelling, _queue(request), _rater(request, body.rater)
    labelling.undo(queue, rater, body.key)
    every_other = [k for k in labelling.to_label(queue).pairs if k != body.key]
    return _shown(queue, labelling.turn(queue, rater, every_other))


def new_queue(request: Request, body: NewQueue) -> Response:
    """Select pairs of a run for human labelling, and store them as a queue."""
    studio = studio_of(request)
    run = run_of(studio, body.run)
    folder = studio.labelling.queue_folder
    labels = sorted(studio.labelling.folder.glob("*.*.jsonl"))
    number = next(n for n in range(1, 10_000) if not (folder / f"{body.run}-{body.by}-{n}.jsonl").exists())
    out = folder / f"{body.run}-{body.by}-{number}.jsonl"
    chosen = label_queue(run, studio.workspace.root, body.by, body.n, out, labels)
    return as_json({"file": out.name, "pairs": len(chosen)})


def queue_rows(studio: Studio) -> list[tuple[Queue, int, int, dict[str, int], str]]:
    """Return each queue with its number of pairs, number of unusable rows, labels per rater, and read error (empty if none)."""
    rows = []
    for queue in studio.labelling.queues().values():
        try:
            found = studio.labelling.to_label(queue)
            rows.append((queue, len(found.pairs), len(found.failures), studio.labelling.progress(queue), ""))
        except CaiError as e:
            rows.append((queue, 0, 0, {}, str(e)))
    return rows


def _queue(request: Request) -> Queue:
    labelling = studio_of(request).labelling
    return labelling.queue(known(request.path_params["queue"], labelling.queues(), "queue"))


def _rater(request: Request, given: str) -> str:
    """Return the name to label under. Raises a 403 error if it is not the link's own."""
    visitor = visitor_of(request)
    rater = rater_name(given or visitor.name)
    if not visitor.may_label_as(rater):
        raise HTTPException(403, f"Your link is for {visitor.name}. You can't label as {rater}.")
    return rater


def _guidelines(studio: Studio, name: str) -> Markup:
    path: Path = studio.drafts.path(name)
    constitution = load_constitution(path)
    examples = examples_path(constitution, path.parent)
    blocks = list(guideline_blocks(constitution, load_examples(examples) if examples.is_file() else ()))
    return Markup(html_body(blocks))  # `html_body` escapes all texts


def _shown(queue: Queue, turn: Turn, kept: bool = True) -> Response:
    html = fragment("pair", pair=turn.pair, queue=queue)
    return as_json({"done": turn.done, "total": turn.total, "key": turn.key, "last": turn.last, "kept": kept, "html": html})


ROUTES = [
    Route("/label", start),
    Route("/label/begin", begin),
    Route("/label/queues", taking(NewQueue, new_queue), methods=["POST"]),
    Route(BASE, rate),
    Route(f"{BASE}/results", results),
    Route(f"{BASE}/next", taking(Next, turn), methods=["POST"]),
    Route(f"{BASE}/answer", taking(Answer, answer), methods=["POST"]),
    Route(f"{BASE}/undo", taking(Undo, undo), methods=["POST"]),
]
