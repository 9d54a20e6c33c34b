"""What a format of prompts declares: which files it is in, and how a row is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.data.benchmarks import benchmark_kind
from cai.data.conversations import RowFault, messages_of, prompt_part, with_system
from cai.data.rows import FileKind
from cai.ids import content_hash
from cai.recipe import PromptSource
from cai.records import PROMPT_KINDS, Message, Prompt


def read_conversation(value: Any, name: str, source: PromptSource, columns: Sequence[str] = ()) -> Prompt:
    """Read a row that is a text, or has its prompt in one of `columns`: by default the source's `field`, `messages` or `chosen`.

    Raises:
        RowFault: there is no prompt in it.
    """
    if isinstance(value, str):
        return prompt_of(value, {}, name, source)
    return prompt_of(_conversation(value, columns or (source.field, "messages", "chosen")), value, name, source)


def prompt_of(conversation: Any, fields: Mapping[str, Any], name: str, source: PromptSource) -> Prompt:
    """Return a conversation's prompt, without a final assistant turn, given its row's other columns. Raises `RowFault`."""
    messages = _with_opening(with_system(prompt_part(messages_of(conversation)), fields), fields)
    published = benchmark_kind(fields, name)
    kind, category = published or (fields.get("kind"), fields.get("category"))
    return Prompt(
        id=content_hash(messages),
        kind=kind if kind in PROMPT_KINDS else source.kind or "other",
        messages=messages,
        source=name,
        category=category if isinstance(category, str) and category else None,
    )


def _with_opening(prompt: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Put the system turn before a prompt that is the first user turn of the row's `messages`: some data sets repeat it in a column."""
    turns = row.get("messages")
    if len(prompt) != 1 or not isinstance(turns, list) or len(turns) < 2:
        return prompt
    try:
        system, first = messages_of(turns[:2])
    except RowFault:
        return prompt
    repeated = (system.role, first.role) == ("system", "user") and first.content.strip() == prompt[0].content.strip()
    return (system, *prompt) if repeated and system.content.strip() else prompt


def _conversation(value: Any, columns: Sequence[str]) -> Any:
    """Return the part of a row that holds the conversation."""
    if not isinstance(value, dict):
        raise RowFault("not_a_row", f"expected a mapping or a text, found {type(value).__name__}")
    for column in columns:
        if value.get(column) is not None:
            return value[column]
    raise RowFault("no_prompt_column", f"expected column {' or '.join(map(repr, columns))}, found {', '.join(map(str, value)) or 'none'}")


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """A format of prompts."""

    name: str
    """As in a recipe's `format`."""
    read: Callable[[Any, str, PromptSource], Prompt] = read_conversation
    """Reads a row, given the row, what becomes the prompt's `source`, and the recipe's entry. Raises `RowFault`."""
    file_kind: FileKind | None = None
    """Kind of its files; None: by their names."""
    on_hub: bool = False
    """Whether a path that is no folder is the name of a dataset on the Hub."""
