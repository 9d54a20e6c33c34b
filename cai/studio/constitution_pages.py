"""Request handlers of the constitution editor: live lint, a draft that is stored on every change, and save."""

from difflib import unified_diff
from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cai.constitution.editing import UNWRITTEN, add_principle, move_principle, remove_principle, set_fields
from cai.errors import ConstitutionError
from cai.records import LABELLED_KINDS, WORDINGS
from cai.studio.drafts import Edited
from cai.studio.principle_form import CheckRow, ExampleTexts, check_of, check_rules, examples_of
from cai.studio.run_pages import run_names, run_of
from cai.studio.web import as_json, fragment, known, page, studio_of, taking

BASE = "/constitutions/{name}"
Field = Literal["id", "statement", "critique", "revision", "ask_positive", "ask_negative", "compare", "applies_to", "weight", "source"]
Kind = Literal["harmful", "borderline", "helpful"]
Words = Annotated[str, msgspec.Meta(max_length=4000)]


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new text, and the version that it is based on."""

    text: str
    version: str


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version that the page shows."""

    version: str


class Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """New values of one principle's fields; None or an empty list leaves a field to its default."""

    version: str
    index: Annotated[int, msgspec.Meta(ge=0)]
    values: dict[Field, Words | int | float | list[Kind] | None] = {}
    check: list[CheckRow] | msgspec.UnsetType = msgspec.UNSET
    examples: ExampleTexts | msgspec.UnsetType = msgspec.UNSET
    openings: list[Words] | msgspec.UnsetType = msgspec.UNSET


class Arrangement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A principle to add at the end, to move, or to remove."""

    version: str
    action: Literal["add", "move", "remove"]
    index: Annotated[int, msgspec.Meta(ge=0)] = 0
    to: Annotated[int, msgspec.Meta(ge=0)] = 0


class New(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name of a new constitution."""

    name: Annotated[str, msgspec.Meta(max_length=64)]


class Restored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An earlier text to go back to."""

    version: str
    key: str


def name_of(request: Request) -> str:
    """Return the constitution's name from the URL. Raises a 404 error if it is unknown."""
    return known(request.path_params["name"], studio_of(request).drafts.names(), "constitution")


def editor(request: Request) -> Response:
    """Show the editor page. The page loads the text as JSON, so that every character is preserved."""
    studio = studio_of(request)
    answered = [name for name in run_names(studio) if run_of(studio, name).data("responses").is_file()]
    return page(
        "constitution",
        name=name_of(request),
        runs=answered,
        defaults=WORDINGS,
        unwritten=UNWRITTEN,
        kinds=LABELLED_KINDS,
        rules=check_rules(),
        drafts_alone=not studio.asking.is_embedded,
    )


def create(request: Request, body: New) -> Response:
    """Create a constitution; return the address of its page."""
    studio_of(request).drafts.create(body.name)
    return as_json({"page": BASE.replace("{name}", body.name)})


def text(request: Request) -> Response:
    """Return the current text and its lint findings."""
    return shown(studio_of(request).drafts.open(name_of(request)))


def write(request: Request, body: Text) -> Response:
    """Store the text as a draft."""
    return shown(studio_of(request).drafts.write(name_of(request), body.text, body.version))


def save(request: Request, body: Version) -> Response:
    """Save the draft to the file."""
    return shown(studio_of(request).drafts.save(name_of(request), body.version))


def discard(request: Request, body: Version) -> Response:
    """Discard the draft and return to the saved file."""
    return shown(studio_of(request).drafts.discard(name_of(request), body.version))


def principle(request: Request, body: Fields) -> Response:
    """Set fields of one principle in the text, and store it as a draft."""
    values: dict[str, object] = {name: None if value in ("", []) else value for name, value in body.values.items()}
    if values.get("id", "-") is None or values.get("statement", "-") is None:
        raise ConstitutionError("a principle needs an id and a statement")
    if isinstance(kinds := values.get("applies_to"), list) and set(kinds) == set(LABELLED_KINDS):
        values["applies_to"] = None
    if body.check is not msgspec.UNSET:
        values["check"] = check_of(body.check)
    if body.examples is not msgspec.UNSET:
        values["examples"] = examples_of(body.examples)
    if body.openings is not msgspec.UNSET:
        values["openings"] = body.openings or None
    return shown(studio_of(request).drafts.edit(name_of(request), body.version, lambda text: set_fields(text, body.index, values)))


def arrange(request: Request, body: Arrangement) -> Response:
    """Add, move or remove a principle in the text, and store it as a draft."""

    def change(text: str) -> str:
        ids = {form.id for form in studio_of(request).drafts.open(name_of(request)).form}
        if body.action == "add":
            new = next(i for n in range(1, len(ids) + 2) if (i := f"principle-{n}") not in ids)
            return add_principle(text, new, UNWRITTEN)
        return remove_principle(text, body.index) if body.action == "remove" else move_principle(text, body.index, body.to)

    return shown(studio_of(request).drafts.edit(name_of(request), body.version, change))


def history(request: Request) -> Response:
    """Return the earlier texts of the file, each with what changed from it to the text in the editor."""
    drafts, name = studio_of(request).drafts, name_of(request)
    now = drafts.open(name).text.splitlines()
    versions = [(v, list(unified_diff(v.text.splitlines(), now, n=1, lineterm=""))[2:]) for v in drafts.history(name)]
    return as_json({"html": fragment("history", versions=versions)})


def restore(request: Request, body: Restored) -> Response:
    """Make an earlier text the draft."""
    return shown(studio_of(request).drafts.restore(name_of(request), body.version, body.key))


def shown(edited: Edited) -> Response:
    """Return the state of the editor as JSON."""
    return as_json(
        {
            "text": edited.text,
            "version": edited.version,
            "is_draft": edited.is_draft,
            "is_loadable": not edited.fault,
            "principles": [form.id for form in edited.form],
            "form": edited.form,
            "language": edited.language,
            "lines": {str(f.line): f.severity for f in reversed(edited.findings) if f.line},
            "html": fragment("findings", edited=edited),
        }
    )


ROUTES = [
    Route("/constitutions", taking(New, create), methods=["POST"]),
    Route(BASE, editor),
    Route(f"{BASE}/text", text),
    Route(f"{BASE}/draft", taking(Text, write), methods=["POST"]),
    Route(f"{BASE}/principle", taking(Fields, principle), methods=["POST"]),
    Route(f"{BASE}/arrange", taking(Arrangement, arrange), methods=["POST"]),
    Route(f"{BASE}/history", history),
    Route(f"{BASE}/restore", taking(Restored, restore), methods=["POST"]),
    Route(f"{BASE}/save", taking(Version, save), methods=["POST"]),
    Route(f"{BASE}/discard", taking(Version, discard), methods=["POST"]),
]
