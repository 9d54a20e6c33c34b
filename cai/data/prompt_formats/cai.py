"""`cai`'s own format: `id`, `kind`, `messages` and perhaps `category`."""

from typing import Any

from cai.data.conversations import RowFault, as_prompt, messages_of
from cai.data.prompt_format import PromptFormat
from cai.recipe import PromptSource
from cai.records import PROMPT_KINDS, Prompt, PromptKind

MAX_ID = 500


def is_cai(value: Any) -> bool:
    """Whether a row is in cai's own format. Conversations with an answer are not: data sets of them have ids too (tulu-3-sft-mixture)."""
    if not isinstance(value, dict) or not {"id", "messages"} <= value.keys():
        return False
    turns = value["messages"]
    answered = isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
    return not (answered and str(turns[-1].get("content") or "").strip()) or value.get("kind") in PROMPT_KINDS


def read_cai(value: Any, name: str, source: PromptSource) -> Prompt:
    """Read cai's own format strictly: an unknown kind is a fault, not `other`."""
    if not isinstance(value, dict):
        raise RowFault("not_a_row", f"expected a mapping with id, kind and messages, found {type(value).__name__}")
    identity = value.get("id")
    if not isinstance(identity, str | int) or identity == "":
        raise RowFault("no_id", "`id` must be a non-empty text or a number")
    if len(str(identity)) > MAX_ID:  # every record and failure of the prompt names it
        raise RowFault("no_id", f"`id` is longer than {MAX_ID} characters")
    kind: PromptKind = value.get("kind") or source.kind or "other"
    if kind not in PROMPT_KINDS:
        raise RowFault("unknown_kind", f"kind {kind!r}; expected {', '.join(PROMPT_KINDS)}")
    category = value.get("category")
    if category is not None and not isinstance(category, str):
        raise RowFault("bad_category", "`category` must be a text")
    return Prompt(str(identity), kind, as_prompt(messages_of(value.get("messages"))), name, category)


FORMAT = PromptFormat("cai", read_cai, "json")
