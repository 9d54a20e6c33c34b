r"""Converts the conversation formats of datasets to and from `Message`s: message lists, ShareGPT turns, hh-rlhf transcripts.

A transcript is hh-rlhf's text format: turns start with `\n\nHuman:` or `\n\nAssistant:`. A turn starts only after a blank line (or at the
start of the text), so the same words inside a line stay text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cai.core.jsonl import NOT_JSON
from cai.errors import DataError
from cai.records import Message, Role

MAX_DETAIL = 500
SYSTEM = ("system", "system_prompt", "system_message")
"""Columns beside a conversation that hold its system turn."""
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TRANSCRIPT_ROLE: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TRANSCRIPT_NAME: dict[Role, str] = {role: name for name, role in _TRANSCRIPT_ROLE.items()}
_RESULTS = ("tool", "function", "observation", "ipython")
"""Roles of a tool's result. It becomes a text in a user turn."""
_CALLS = ("function_call", "tool_call")
"""Roles of a turn that is a tool call. It becomes a text in an assistant turn."""
_USERS: tuple[str, ...] = ("user", "human", *_RESULTS)
_ASSISTANTS: tuple[str, ...] = ("assistant", "gpt", *_CALLS)


def is_transcript(text: str) -> bool:
    r"""Whether a text is an hh-rlhf transcript: it starts with a human turn after blank lines, or with one that has an answer.

    >>> is_transcript("\n\nHuman: Hi\n\nAssistant: Hello"), is_transcript("Human: what are you?")
    (True, False)
    """
    opening = text.replace("\r\n", "\n")
    return opening.startswith("\n\nHuman:") or (opening.lstrip().startswith("Human:") and "\n\nAssistant:" in opening)


_SPEAKER = r"(?:system|human|user|mensch|benutzer|nutzer|usuario|humano|utilisateur|humain|пользователь|用户|用戶|人类|人類|ユーザー)"
_ANSWERER = r"(?:assistant|assistente?|asistente|ассистент|助手|助理|アシスタント)"
_OTHER_TRANSCRIPT = re.compile(rf"\A\s*{_SPEAKER}\s*[:：].*[\r\n][ \t]*{_ANSWERER}\s*[:：](?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_RENDERED = re.compile(
    r"\A\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|user\|>|<\|system\|>|\[INST\])"
    r".*(?:<\|im_start\|>assistant|<\|end_header_id\|>|<start_of_turn>model|<\|assistant\|>|\[/INST\])(?P<rest>.*)",
    re.DOTALL,
)


def refuse_other_transcript(text: str, to_answer: bool = False) -> None:
    """Raise `RowFault` if a text is a conversation as another format writes it, which would be trained on as the words of one turn.

    Args:
        text: not an hh-rlhf transcript.
        to_answer: only if its last turn is an empty one of the assistant: a prompt may quote a conversation.
    """
    for pattern, what in (
        (_OTHER_TRANSCRIPT, "isn't hh-rlhf's ('\\n\\nHuman: …\\n\\nAssistant: …')"),
        (_RENDERED, "a chat template wrote"),
    ):
        found = pattern.match(text)
        if found and not (to_answer and found["rest"].strip()):
            raise RowFault(
                "not_a_transcript", f"a conversation in one text that {what}: {_short(text)}. Give its turns as a list of messages"
            )


def parse_transcript(text: str) -> tuple[Message, ...]:
    r"""Split an hh-rlhf transcript into turns. Texts are stripped, and consecutive turns of the same speaker are joined.

    A final assistant turn is never joined to the turn before it, because it is the response.

    Args:
        text: starts with `Human:` or `Assistant:`.

    Raises:
        RowFault: there is text before the first turn, or no turn.

    >>> [m.content for m in parse_transcript("\n\nHuman: Say: Human: hi\n\nAssistant: Human: hi")]
    ['Say: Human: hi', 'Human: hi']
    """
    before, *pieces = _TURN.split(text.replace("\r\n", "\n"))
    if before.strip() or not pieces:
        raise RowFault("not_a_transcript", f"expected text that opens with '\\n\\nHuman:', found {_short(text)}")
    turns: list[Message] = []
    last = len(pieces) // 2 - 1
    for number, (name, content) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        role = _TRANSCRIPT_ROLE[name]
        if turns and turns[-1].role == role and not (number == last and role == "assistant"):
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{content.strip()}".strip())
        else:
            turns.append(Message(role, content.strip()))
    return tuple(turns)


def render_transcript(messages: Sequence[Message]) -> str:
    r"""Write a conversation as an hh-rlhf transcript.

    Raises:
        RowFault: the format can't represent it: there is a system turn, or a text contains a turn marker.

    >>> render_transcript([Message("user", "Hi"), Message("assistant", "Hello")])
    '\n\nHuman: Hi\n\nAssistant: Hello'
    """
    if any(m.role == "system" for m in messages):
        raise RowFault("not_representable", "hh-rlhf transcripts have no system turn")
    text = "".join(f"\n\n{_TRANSCRIPT_NAME[m.role]}: {m.content.strip()}" for m in messages)
    if parse_transcript(text) != tuple(Message(m.role, m.content.strip()) for m in messages):
        raise RowFault("not_representable", "a turn's text would read as another turn in an hh-rlhf transcript")
    return text


_JSON_TURNS = re.compile(r'\s*\[\s*\{\s*"(?:role|content|from)"\s*:')


def decoded_turns(text: str) -> Any:
    """Return the list of messages that a text, such as a cell of a CSV, holds as JSON; another text as it is."""
    if not _JSON_TURNS.match(text):
        return text
    try:
        return msgspec.json.decode(text.encode())
    except NOT_JSON:
        return text


def messages_of(value: Any) -> tuple[Message, ...]:
    """Read a conversation: a string, a transcript, a message, or a list (`role`/`content` or `from`/`value`), perhaps as JSON.

    Tool calls (`tool_calls`, `function_call`) become text at the end of their turn, and a tool's result a user turn.

    A mapping with a `text` and no role is that text, from the user (real-toxicity-prompts).

    Raises:
        RowFault: it is none of these, or a turn has an unknown role or content that isn't text.
    """
    if isinstance(value, str):
        value = decoded_turns(value)
    if isinstance(value, str):
        if is_transcript(value):
            return parse_transcript(value)
        refuse_other_transcript(value, to_answer=True)
        return (Message("user", value),)
    if isinstance(value, dict):
        text = value.get("text")
        return messages_of(text) if isinstance(text, str) and value.keys().isdisjoint(("role", "from")) else (_message(value),)
    if isinstance(value, list) and value:
        return tuple(_message(item) for item in value)
    raise RowFault("not_a_conversation", f"expected text or a list of messages, found {_short(value)}")


def as_prompt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return a conversation that ends with a user turn. An empty assistant turn at the end (hh-rlhf's `Assistant:`) is removed.

    Raises:
        RowFault: the conversation doesn't end with a user turn, or that turn is empty.
    """
    ends_open = bool(messages) and messages[-1].role == "assistant" and not messages[-1].content.strip()
    prompt = tuple(messages[:-1] if ends_open else messages)
    if not prompt or prompt[-1].role != "user":
        raise RowFault("no_user_turn", "a prompt must end with a user's turn")
    if not prompt[-1].content.strip():
        raise RowFault("empty", "the user's last turn is empty")
    return prompt


def with_system(messages: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Put the system turn that a row holds in a column of its own before the conversation.

    Raises:
        RowFault: the column isn't text, or the conversation has another system turn.
    """
    name = next((c for c in SYSTEM if row.get(c) not in (None, "")), None)
    text = row[name] if name else ""
    if not isinstance(text, str):
        raise RowFault("not_text", f"{name} must be a text, found {_short(text)}")
    if not text.strip():
        return messages
    if messages[0].role != "system":
        return (Message("system", text.strip()), *messages)
    if messages[0].content.strip() != text.strip():
        raise RowFault("two_systems", f"{name} says {_short(text)}, and the conversation has another system turn")
    return messages


def prompt_part(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the prompt of a conversation: all turns except a final assistant turn.

    Raises:
        RowFault: the remaining turns are not a prompt (see `as_prompt`).
    """
    return as_prompt(messages[:-1] if messages and messages[-1].role == "assistant" else messages)


def split_last_turn(messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """Split a conversation into the prompt and the final assistant turn, stripped.

    Raises:
        RowFault: the conversation doesn't end with an assistant turn.
    """
    if not messages or messages[-1].role != "assistant":
        raise RowFault("no_response", "the conversation doesn't end with an assistant's turn")
    return tuple(messages[:-1]), messages[-1].content.strip()


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise RowFault("not_a_conversation", f"a message must be a mapping with role and content, found {_short(item)}")
    name = item["role"] if "role" in item else item.get("from")
    role: Role
    if name in _USERS:
        role = "user"
    elif name in _ASSISTANTS:
        role = "assistant"
    elif name == "system":
        role = "system"
    else:
        raise RowFault("unknown_role", f"role {_short(name)}; expected system, user, assistant or tool")
    calls = _calls(item)
    content = item["content"] if "content" in item else item.get("value")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise RowFault("not_text", f"a message's content must be text, found {_short(content)}")
        content = "".join(part["text"] for part in content)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise RowFault("not_text", f"a message's content must be text, found {_short(content)}")
    if name in _RESULTS:
        return Message("user", f"Result of {item.get('name') or 'the tool'}:\n{content}")
    if name in _CALLS:
        return Message("assistant", f"Call: {content}")
    return Message(role, "\n\n".join([*([content] if content or not calls else []), *calls]))


def _calls(item: Mapping[str, Any]) -> list[str]:
    """Return a message's tool calls as texts. Raises `RowFault` for one that has no name."""
    given = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    texts = []
    for call in given if isinstance(given, list) else [given]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowFault("not_a_call", f"a tool call must have a name, found {_short(call)}")
        arguments = function.get("arguments", "")
        texts.append(f"Call: {function['name']}({arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)})")
    return texts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class RowFault(DataError):
    """One row is unusable. The loader turns it into a counted `Failure` and continues with the next row."""

    def __init__(self, reason: str, detail: str) -> None:
        detail = detail if len(detail) <= MAX_DETAIL else detail[:MAX_DETAIL] + "…"  # a row may be 32 MiB
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
