"""What a model server says that it serves: which model, in which words, and so under which key its calls are kept."""

import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar, cast

from msgspec import Meta, Struct

from cai.errors import ModelError, ReplyError
from cai.ids import content_hash
from cai.models.server.capabilities import thinking_switch
from cai.models.turns import without_system
from cai.recipe import ModelSpec
from cai.records import Message

T = TypeVar("T")
_PROBE = (Message("system", "Be kind."), Message("user", "Hi!"), Message("assistant", "Hello."), Message("user", "Bye."))
_DIGITS = re.compile(r"[0-9]{1,18}")
_DATE_WORDS = re.compile(r"\d+|\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec|Mon|Tue|Wed|Thu|Fri|Sat|Sun)\w*")


class NotServedError(ModelError):
    """The server has no such address, or no such model."""


class ModelCard(Struct, frozen=True):
    """One model of `/models`; `root` and `parent` are vLLM's, `meta` is llama.cpp's. Other fields are ignored, and so are values of other
    types: only the name is needed."""

    id: str
    owned_by: str | None = None
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    meta: dict[str, Any] | None = None


class TokenList(Struct, frozen=True):
    """The reply of vLLM's `/tokenize`."""

    tokens: list[Annotated[int, Meta(ge=0)]]
    token_strs: list[str] | None = None


class AppliedTemplate(Struct, frozen=True):
    """The reply of llama.cpp's `/apply-template`."""

    prompt: str


class Ask(Protocol):
    """How `identify` puts its questions: path, body (None to get) and shape of the reply."""

    def __call__(self, path: str, body: dict[str, Any] | None, shape: Any) -> Awaitable[Any]: ...


@dataclass(frozen=True)
class Served:
    """One server's model, as far as servers tell."""

    model: str
    """Its name on the server."""
    wanted: tuple[str, ...]
    """The names asked for: the model's, then the adapter's."""
    cards: tuple[ModelCard, ...]
    """What `/models` says of them."""
    rendered: str
    """How tokenizer and chat template (llama.cpp: the template) render a short conversation, less dates, which some templates put in.
    Empty where unknown."""
    tokenizes: bool
    """Whether it has vLLM's `/tokenize`."""

    @property
    def owner(self) -> str:
        """What kind of server it is: `vllm`, `llamacpp`, or whatever else."""
        return next((card.owned_by or "" for card in self.cards if card.id == self.model), "")

    @property
    def kind(self) -> str:
        """What kind of server it is, in words."""
        names = {"vllm": "vLLM", "llamacpp": "llama.cpp", "sglang": "SGLang", "library": "Ollama", "organization_owner": "LM Studio"}
        known = names.get(self.owner, "a server of an unknown kind" + (f" ({self.owner[:40]})" if self.owner else ""))
        return known + (" without /tokenize" if self.owner == "vllm" and not self.tokenizes else "")

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides an answer, as far as it is known. The address isn't in it."""
        known = [(c.id, c.root, c.parent, c.max_model_len, c.meta) for c in self.cards]
        return f"server:{content_hash((self.wanted, known, self.rendered), length=32)}"

    def differences(self, other: "Served") -> list[str]:
        """Say in what this model isn't the other: empty where their fingerprints are equal."""
        found = []
        if self.wanted != other.wanted:
            found.append(f"model {' with '.join(self.wanted)!r}, not {' with '.join(other.wanted)!r}")
        else:
            for mine, theirs in zip(self.cards, other.cards, strict=False):
                for key in ("id", "root", "parent", "max_model_len", "meta"):
                    if (a := getattr(mine, key)) != (b := getattr(theirs, key)):
                        found.append(f"{key} of {mine.id}: {a!r}, not {b!r}")
            if len(self.cards) != len(other.cards):
                found.append(f"{len(self.cards)} of the models in its list, not {len(other.cards)}")
        if self.rendered != other.rendered:
            found.append("another tokenizer or chat template")
        return found


async def identify(ask: Ask, url: str, spec: ModelSpec, excerpt: Callable[[str], str]) -> Served:
    """Ask a server what it serves, and choose the model that the spec names, or the only one.

    Args:
        ask: puts one question to it.
        url: for messages.
        spec: `name` and `adapter`.
        excerpt: makes a server's words fit for a message.

    Raises:
        ModelError: it can't be reached, doesn't serve the model, or serves several and the spec names none.
    """
    names = [name for name in (spec.name, spec.adapter) if name is not None]
    listing: object = None  # some hosted APIs don't list their models; the first request will tell
    try:
        listing = await ask("/models", None, Any)
        cards = _cards(listing, needed=not names)
    except NotServedError:
        if not names:
            raise
        cards = {}
    except ReplyError as e:
        if not names or e.reason != "refused_by_server":
            raise ModelError(
                f"{url}/models doesn't list models as an OpenAI-compatible server does ({e}). "
                "Check model.path: most servers want it to end in /v1."
            ) from e
        cards = {}
    whole = not _has_more(listing)
    wanted = [_listed_as(name, cards) for name in names]
    listed = excerpt(", ".join(cards)) or "none"
    if missing := [name for name in wanted if cards and whole and name not in cards]:
        how = "restart it with --enable-lora --lora-modules NAME=FOLDER" if missing[0] == spec.adapter else "correct model.name"
        raise ModelError(f"{url} doesn't serve {missing[0]!r}; it serves: {listed}. Name one of these, or {how}.")
    if not wanted:
        wanted = [card.id for card in cards.values() if card.parent is None]  # adapters have a parent
        if len(wanted) != 1 or not whole:
            many = f"{len(wanted)} models" if whole else "more models than its list's first page has"
            raise ModelError(f"{url} serves {many}: {listed}. Set model.name to the one to use.")
    model = wanted[-1]
    rendered, tokenizes = "", False
    owner = cards[model].owned_by if model in cards else None
    if owner == "vllm":
        tokens = await _ask_of_template(ask, "/tokenize", {"model": model, "return_token_strs": True}, spec, TokenList)
        if tokens is not None and tokens.tokens:
            rendered, tokenizes = "\n".join(tokens.token_strs or map(str, tokens.tokens)), True
    elif owner == "llamacpp":
        applied = await _ask_of_template(ask, "/apply-template", {}, spec, AppliedTemplate)
        rendered = applied.prompt if applied is not None else ""
    rendered = _DATE_WORDS.sub("", rendered)
    return Served(model, tuple(wanted), tuple(cards[n] for n in wanted if n in cards), rendered, tokenizes)


def _has_more(listing: object) -> bool:
    """Whether a list of models goes on in another page."""
    return isinstance(listing, dict) and any(
        listing.get(key) for key in ("has_more", "next", "next_page", "nextPageToken", "next_page_token")
    )


def _cards(listing: object, needed: bool) -> dict[str, ModelCard]:
    """Return a list of models by name: OpenAI's, Ollama's own (`models`), or a bare one.

    Raises:
        ReplyError: it is `needed`, and none of these.
    """
    if isinstance(listing, dict):
        listing = listing.get("data") or listing.get("models") or listing.get("data")
    entries = listing if isinstance(listing, list) else []
    cards = {card.id: card for entry in entries if (card := _card(entry)) is not None}
    if needed and not cards and listing != []:
        raise ReplyError("malformed_reply", "no list of models")
    return cards


def _card(entry: object) -> ModelCard | None:
    """Return what a list says of one model; None if it doesn't name it."""
    said = entry if isinstance(entry, dict) else {"id": entry}
    name = next((str(said[key]) for key in ("id", "name", "model") if isinstance(said.get(key), str | int)), None)
    if name is None:
        return None
    words = {key: value for key in ("owned_by", "root", "parent") if isinstance(value := said.get(key), str)}
    length, meta = said.get("max_model_len"), said.get("meta")
    most = int(length) if isinstance(length, int) or (isinstance(length, str) and _DIGITS.fullmatch(length)) else None
    return ModelCard(name, **words, max_model_len=most, meta=meta if isinstance(meta, dict) else None)


def _listed_as(name: str, cards: Collection[str]) -> str:
    """Return a name as the server lists it: some put `models/` or an owner before it (Gemini), or `:latest` after it (Ollama)."""
    found = [card for card in cards if card.endswith(f"/{name}") or card == f"{name}:latest"]
    return found[0] if name not in cards and len(found) == 1 else name


async def _ask_of_template(ask: Ask, path: str, body: dict[str, Any], spec: ModelSpec, shape: type[T]) -> T | None:
    """Ask how the chat template renders the probe, without its system turn if it refuses; None if it refuses that too, or there is no such
    address."""
    body = body | thinking_switch(spec.thinking)
    for turns in (_PROBE, without_system(_PROBE) or _PROBE):
        try:
            return cast(T, await ask(path, body | {"messages": as_json(turns)}, shape))
        except NotServedError:
            return None
        except ReplyError as e:
            if e.reason != "refused_by_server":
                raise
    return None


def as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages as servers take them."""
    return [{"role": m.role, "content": m.content} for m in messages]
