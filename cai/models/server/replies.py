"""Reads replies in the `openai` client's types, which check nothing: whatever JSON a server sent is in their fields.

Servers differ in what they leave out or add: usage, `finish_reason`, content in parts, reasoning before the answer. What can still be used
is; what can't raises `ValueError` (or `TypeError`, `AttributeError`, `LookupError` where a field isn't there), and is asked for again.
"""

import math
from collections.abc import Sequence
from typing import Any

from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion

from cai.core.text.reasoning import split_reasoning, within
from cai.errors import ReplyError
from cai.models.base import UNFINISHED
from cai.models.requests import Completion

_ENDED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")
_CUT = ("length", "model_length", "max_tokens", "max_output_tokens", "token_limit")
_FILTERED = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "refusal")
_FAILED = ("abort", "cancelled", "canceled", "error", "insufficient_system_resource", "malformed_function_call")
_MOST_TOP = 100
_SPARE_TOKENS = 16
"""Some servers count the tokens that end a turn: a completion may be this much longer than was asked for."""
_MOST_TOKENS = 2**31
_MOST_CHARACTERS = 512
"""Of one token. The longest tokens of known vocabularies have some 250, of white space."""
_IMPOSSIBLE = -1e5
"""Nats: no model gives a token so little. Some servers write -9999 for what they don't know."""


_READ_OF_MESSAGE = ("content", "refusal", "reasoning", "reasoning_content", "thinking")


def first_choice(body: dict[str, Any]) -> dict[str, Any]:
    """Return what is read of a reply: its counts, and its first choice with at most one token's alternatives.

    The client's types make an object of everything else, which for a reply of a million empty choices takes gigabytes and minutes.
    """
    choice = dict(body["choices"][0])
    choice["message"] = _only(choice.get("message"), _READ_OF_MESSAGE)
    if isinstance(logprobs := choice.get("logprobs"), dict) and isinstance(content := logprobs.get("content"), list):
        first = [{**token, "top_logprobs": (token.get("top_logprobs") or [])[:_MOST_TOP]} for token in content[:1]]
        choice["logprobs"] = {"content": first}
    return {"choices": [choice], "usage": _only(body.get("usage"), ("prompt_tokens", "completion_tokens"))}


def _only(value: Any, keys: Sequence[str]) -> Any:
    return {key: value.get(key) for key in keys} if isinstance(value, dict) else value


def read_completion(reply: ChatCompletion, max_tokens: int, opening: str = "", opened: str = "") -> Completion:
    """Return the text and counts of a chat reply.

    Args:
        reply: the client's.
        max_tokens: that were asked for. A reply whose `finish_reason` is null or unknown counts as truncated if it has as many.
        opening: taken off the text's start, where the server repeats what the answer began with, or the model what it was told to.
        opened: the tag with which the model's chat template opens a reasoning. A text that was cut before any closing tag is inside it,
            unless the server sent the reasoning beside it.

    Raises:
        ReplyError: the reply is in order, and has no text to use.
        ValueError: it can't be right.
    """
    choice = reply.choices[0]
    message = choice.message
    ended = None if choice.finish_reason is None else str(choice.finish_reason).lower()
    if ended in _FAILED:
        raise ValueError(f"finish_reason is {ended!r}; expected 'stop' or 'length'")
    counts = reply.usage
    prompt_tokens, tokens = (_count(counts.prompt_tokens), _count(counts.completion_tokens)) if counts is not None else (0, 0)
    if tokens > max_tokens + _SPARE_TOKENS:
        raise ValueError(f"{tokens} completion tokens; {max_tokens} were asked for")
    if message.refusal:
        raise ReplyError("refused_by_server", str(message.refusal))
    if ended in _FILTERED:
        raise ReplyError("content_filter", "the server's filter stopped the reply")
    content, beside = _text(message.content), _reasoning(message)
    if (longest := max(len(content), len(beside))) > _MOST_CHARACTERS * (max_tokens + _SPARE_TOKENS):
        raise ValueError(f"a text of {longest:,} characters; {max_tokens} tokens were asked for")
    content = content.removeprefix(opening)
    said = split_reasoning(content)
    cut = ended in _CUT or (ended not in _ENDED and tokens >= max_tokens)
    if opened and cut and not beside and said.answer == content:
        said = split_reasoning(within(opened, content))
    text, reasoning = said.answer, "\n\n".join(part for part in (beside, said.reasoning) if part)
    if not text.strip():
        raise ReplyError("empty_reply", UNFINISHED if reasoning else "no text came back")
    if opening and text.lstrip().startswith(opening):
        text = text.lstrip().removeprefix(opening)
    return Completion(text, cut, prompt_tokens, tokens, reasoning)


def _reasoning(message: Any) -> str:
    """Return the reasoning that a server sent beside the content: in a field of its own, or as parts of the content."""
    for name in ("reasoning", "reasoning_content", "thinking"):
        if isinstance(found := getattr(message, name, None), str) and found.strip():
            return found.strip()
    parts = message.content if isinstance(message.content, list) else []
    thought = [part.get(part["type"]) for part in parts if isinstance(part, dict) and part.get("type") in ("thinking", "reasoning")]
    return "".join(_text(part) for part in thought if isinstance(part, str | list)).strip()


def read_likeliest(reply: ChatCompletion) -> tuple[dict[str, float], int]:
    """Return the log-probabilities of the likeliest first tokens, empty where the server gives none, and the prompt's tokens."""
    counts = reply.usage
    prompt_tokens = _count(counts.prompt_tokens) if counts is not None else 0
    logprobs = reply.choices[0].logprobs
    if logprobs is None or not logprobs.content:
        return {}, prompt_tokens
    first = logprobs.content[0]
    likely: dict[str, float] = {}
    for top in (*(getattr(first, "top_logprobs", None) or ()), first):
        if not isinstance(top.token, str):
            raise ValueError(f"{top.token!r} as a token")
        likely.setdefault(top.token, _logprob(top.logprob))
    return likely, prompt_tokens


def read_next_token(reply: TextCompletion, wanted: Sequence[int]) -> dict[int, float] | None:
    """Return the log-probabilities of the tokens that were wanted and are there, by id; None where the server gives none at all."""
    logprobs = reply.choices[0].logprobs
    if logprobs is None or logprobs.top_logprobs is None:
        return None
    named = logprobs.top_logprobs[0]
    if named is None:
        return None
    return {token: _logprob(named[name]) for token in wanted if (name := f"token_id:{token}") in named}


def read_prompt_logprobs(reply: TextCompletion, ids: Sequence[int], start: int) -> list[float] | None:
    """Return the log-probabilities of a prompt's tokens from `start` on; None where the server gives none.

    Args:
        reply: the client's.
        ids: the prompt's tokens.
        start: the first token that counts, at least 1.
    """
    rows: Any = getattr(reply.choices[0], "prompt_logprobs", None)
    if rows is None:
        return None
    if len(rows) != len(ids):
        raise ValueError(f"log-probabilities of {len(rows)} tokens; {len(ids)} were sent")
    if any(rows[i] is None or str(ids[i]) not in rows[i] for i in range(start, len(ids))):
        raise ValueError("log-probabilities of other tokens than were sent")
    return [_logprob(rows[i][str(ids[i])]["logprob"]) for i in range(start, len(ids))]


def _text(content: object) -> str:
    """Return a message's text: a string, or the text parts of a list, which may hold others (a model's thinking)."""
    if isinstance(content, list):
        return "".join(_text(part["text"]) for part in content if part.get("type", "text") == "text")
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"content is {type(content).__name__}; expected a string or a list of parts")
    return content


def _count(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_TOKENS:
        raise ValueError(f"a count of {str(value)[:40]} tokens")
    return value


def _logprob(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < _IMPOSSIBLE:
        raise ValueError(f"{value!r} as a log-probability")
    return float(value)
