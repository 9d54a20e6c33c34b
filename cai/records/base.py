"""Prompts, and what every record may carry: where it comes from, or why there is none."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
PromptKind = Literal["harmful", "borderline", "helpful", "other"]
PROMPT_KINDS: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful", "other")
LABELLED_KINDS: tuple[PromptKind, ...] = PROMPT_KINDS[:-1]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with a user turn.

    `kind`: `harmful` prompts ask for something that a model should not give, `borderline` ones only sound harmful, `helpful` ones are
    ordinary, `other` is unlabelled. `id` is stable: it comes from the file, or is a hash of the messages.
    """

    id: str
    kind: PromptKind
    messages: tuple[Message, ...]
    source: str
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a record: what is needed to reproduce it."""

    model: str
    """Fingerprint of the model that wrote or judged it; empty for human labels."""
    principle_ids: tuple[str, ...] = ()
    template_hash: str = ""
    seed: int = 0
    recipe_hash: str = ""
    calibration: str = ""
    """Content hash of the judge's calibration; empty without one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One item that a stage could not process, and why. Failures are counted and reported."""

    stage: str
    item_id: str
    reason: str
    detail: str = ""
