"""Request handlers of the constitution editor: live lint, a draft that is stored on every change, and save."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cai.studio.drafts import Edited
from cai.studio.run_pages import run_names, run_of
from cai.studio.web import as_json, fragment, known, page, studio_of, taking

BASE = "/constitutions/{name}"


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new text, and the version that it is based on."""

    text: str
    version: str


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version that the page shows."""

    version: str


def name_of(request: Request) -> str:
    """Return the constitution's name from the URL. Raises a 404 error if it is unknown."""
    return known(request.path_params["name"], studio_of(request).drafts.names(), "constitution")


def editor(request: Request) -> Response:
    """Show the editor page. The page loads the text as JSON, so that every character is preserved."""
    studio = studio_of(request)
    answered = [name for name in run_names(studio) if run_of(studio, name).data("responses").is_file()]
    return page("constitution", name=name_of(request), runs=answered)


def text(request: Request) -> Response:
    """Return the current text and its lint findings."""
    return _shown(studio_of(request).drafts.open(name_of(request)))


def write(request: Request, body: Text) -> Response:
    """Store the text as a draft."""
    return _shown(studio_of(request).drafts.write(name_of(request), body.text, body.version))


def save(request: Request, body: Version) -> Response:
    """Save the draft to the file."""
    return _shown(studio_of(request).drafts.save(name_of(request), body.version))


def discard(request: Request, body: Version) -> Response:
    """Discard the draft and return to the saved file."""
    return _shown(studio_of(request).drafts.discard(name_of(request), body.version))


def _shown(edited: Edited) -> Response:
    return as_json(
        {
            "text": edited.text,
            "version": edited.version,
            "is_draft": edited.is_draft,
            "is_loadable": not edited.fault,
            "principles": [s.id for s in edited.sections],
            "lines": {str(f.line): f.severity for f in reversed(edited.findings) if f.line},
            "html": fragment("findings", edited=edited),
        }
    )


ROUTES = [
    Route(BASE, editor),
    Route(f"{BASE}/text", text),
    Route(f"{BASE}/draft", taking(Text, write), methods=["POST"]),
    Route(f"{BASE}/save", taking(Version, save), methods=["POST"]),
    Route(f"{BASE}/discard", taking(Version, discard), methods=["POST"]),
]
