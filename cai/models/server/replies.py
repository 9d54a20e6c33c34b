"""Reads replies in the `openai` client's types, which check nothing: whatever JSON a server sent is in their fields.

Servers differ in what they leave out or add: usage, `finish_reason`, content in parts, reasoning before the answer. What can still be used
is; what can't raises `ValueError` (or `TypeError`, `AttributeError`, `LookupError` where a field isn't there), and is asked for again.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion

from cai.core.text.endings import without_end_token
from cai.core.text.reasoning import split_reasoning, within
from cai.errors import ReplyError
from cai.models.base import UNFINISHED
from cai.models.requests import Completion
from cai.models.server.refusals import error_in

_ENDED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")
_CUT = ("length", "model_length", "max_tokens", "max_output_tokens", "token_limit")
_FILTERED = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "refusal")
_FAILED = ("abort", "cancelled", "canceled", "error", "insufficient_system_resource", "malformed_function_call")
_MOST_TOP = 100
_SPARE_TOKENS = 16
"""Some servers count the tokens that end a turn: a completion may be this much longer than was asked for."""
_MOST_TOKENS = 2**31
_MARKED_SPACE = re.compile(r"^[\u0120\u2581]+")
"""Spaces before a token, as tokenizers write it and some servers leave it."""
_MOST_CHARACTERS = 512
"""Of one token. The longest tokens of known vocabularies have some 250, of white space."""
NO_PROBABILITY = -9999.0
"""Nats. A log-probability as low as this, −∞ or null is a probability of 0: servers write what JSON can hold (vLLM −9999, llama.cpp the
lowest float). It is finite, so that the call store's JSON can hold it too."""


_BESIDE = ("reasoning", "reasoning_content", "thinking", "reasoning_details")
"""Fields of a message that servers put the reasoning into."""


def first_choice(body: dict[str, Any]) -> dict[str, Any]:
    """Return what is read of a reply: its counts, and its first choice with at most one token's alternatives.

    The client's types make an object of everything else, which for a reply of a million empty choices takes gigabytes and minutes.

    Raises:
        ReplyError: it is a refusal.
        ValueError: it is another error, or its content is no text.
    """
    if error := error_in(body):
        raise ValueError(str(error)) if error.reason == "server_error" else error
    choice = dict(body["choices"][0])
    choice["message"] = message_of(choice.get("message"))
    if isinstance(logprobs := choice.get("logprobs"), dict) and isinstance(content := logprobs.get("content"), list):
        first = [{**token, "top_logprobs": (token.get("top_logprobs") or [])[:_MOST_TOP]} for token in content[:1]]
        choice["logprobs"] = {"content": first}
    usage = body.get("usage")
    if isinstance(usage, dict):
        details = usage.get("completion_tokens_details")
        thought = details.get("reasoning_tokens") if isinstance(details, dict) else None
        usage = {key: usage.get(key) for key in ("prompt_tokens", "completion_tokens")} | {"reasoning_tokens": thought}
    return {"choices": [choice], "usage": usage}


class Pieces:
    """A reply that comes in pieces."""

    def __init__(self) -> None:
        self._said = {"content": "", "reasoning": ""}
        self._ended: str | None = None

    def add(self, event: Any) -> dict[str, str]:
        """Take the next piece, and return its text and its reasoning. Raises `ReplyError` if it is an error."""
        if error := error_in(event):
            raise error
        piece = dict.fromkeys(self._said, "")
        for choice in (event.get("choices") or ())[:1]:
            found = message_of(choice.get("delta") or choice.get("message") or {})
            piece = {name: found[name] for name in piece}
            self._ended = choice.get("finish_reason") or self._ended
        self._said = {name: text + piece[name] for name, text in self._said.items()}
        return piece

    def choice(self, mask: Callable[[str], str]) -> dict[str, Any]:
        """Return the whole as a choice, its texts after `mask`."""
        return {"finish_reason": self._ended, "message": {name: mask(text) for name, text in self._said.items()}}


def body_of(content: bytes, mask: Callable[[str], str]) -> Any:
    """Return a reply's JSON. Pieces that weren't asked for are put together, and their texts go through `mask`."""
    if not content.lstrip().startswith(b"data:"):
        return json.loads(content)
    pieces = Pieces()
    for line in content.decode().splitlines():
        sent = line.removeprefix("data:").strip()
        if line.startswith("data:") and sent != "[DONE]":
            pieces.add(json.loads(sent))
    return {"choices": [pieces.choice(mask)]}


def message_of(message: Any) -> Any:
    """Return what is read of a message, or of a piece of one: the text, the reasoning beside it, and whether the model called a tool."""
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    thoughts = [part for part in (content if isinstance(content, list) else [content]) if _is_thought(part)]
    return {
        "content": _text(content),
        "refusal": message.get("refusal"),
        "reasoning": next((said for name in _BESIDE if (said := _thought(message.get(name))).strip()), "") or _thought(thoughts),
        "called": bool(message.get("tool_calls") or message.get("function_call")),
    }


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
    thought = _count(getattr(counts, "reasoning_tokens", None))
    if tokens - thought > max_tokens + _SPARE_TOKENS:  # some servers count the reasoning and don't limit it
        raise ValueError(f"{tokens} completion tokens; {max_tokens} were asked for")
    if message.refusal:
        raise ReplyError("refused_by_server", str(message.refusal))
    if ended in _FILTERED:
        raise ReplyError("content_filter", "the server's filter stopped the reply")
    content, beside = well_formed(message.content or ""), well_formed(getattr(message, "reasoning", "")).strip()
    if (longest := max(len(content), len(beside))) > _MOST_CHARACTERS * (max_tokens + _SPARE_TOKENS):
        raise ValueError(f"a text of {longest:,} characters; {max_tokens} tokens were asked for")
    content = without_end_token(content.removeprefix(opening))
    cut = ended in _CUT or (ended not in _ENDED and tokens >= max_tokens)
    said = split_reasoning(content, cut)
    if opened and cut and not beside and said.answer == content:
        said = split_reasoning(within(opened, content))
    text, reasoning = said.answer, "\n\n".join(part for part in (beside, said.reasoning) if part)
    if not text.strip():
        called = ": the model called a tool" if getattr(message, "called", False) else ""
        raise ReplyError("empty_reply", UNFINISHED if reasoning and not called else f"no text came back{called}")
    if opening and text.lstrip().startswith(opening):
        text = text.lstrip().removeprefix(opening)
    return Completion(text, cut, prompt_tokens, tokens, reasoning)


def read_likeliest(reply: ChatCompletion) -> tuple[dict[str, float], int]:
    """Return the log-probabilities of the likeliest first tokens, empty where the server gives none, and the prompt's tokens."""
    counts = reply.usage
    prompt_tokens = _count(counts.prompt_tokens) if counts is not None else 0
    logprobs = reply.choices[0].logprobs
    if logprobs is None:
        return {}, prompt_tokens
    if logprobs.content:
        first = logprobs.content[0]
        found = [(_token(top), top.logprob) for top in (*(getattr(first, "top_logprobs", None) or ()), first)]
    else:  # the older protocol's form, which Together has in chats too
        older = [getattr(logprobs, name, None) or () for name in ("tokens", "token_logprobs", "top_logprobs")]
        found = [*(older[2][0] or {}).items()] if older[2] else []
        found += zip(older[0][:1], older[1][:1], strict=False)
    likely: dict[str, float] = {}
    for token, value in found:
        if not isinstance(token, str):
            raise ValueError(f"{token!r} as a token")
        likely.setdefault(_MARKED_SPACE.sub(" ", token), _logprob(value))
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


def _token(listed: Any) -> Any:
    """Return a token's text: by its bytes, where a server gives no text, or writes the bytes out as OpenAI's does."""
    text, content = listed.token, getattr(listed, "bytes", None)
    if (text is None or str(text).startswith("bytes:")) and isinstance(content, list):
        return bytes(content).decode(errors="replace")
    return text


def well_formed(text: str) -> str:
    r"""Return a text with a replacement character for each half of a character: JSON may hold those (`"\ud83d"`), and no file can.

    >>> well_formed("a\ud83d"), well_formed("\ud83d" + "\ude00") == chr(0x1F600)
    ('a\ufffd', True)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _text(content: object) -> str:
    """Return a content's text: a string, or what its parts say, less the model's thinking."""
    if content is None or _is_thought(content):
        return ""
    if isinstance(content, list):
        return "".join(map(_text, content))
    if isinstance(content, dict):
        return _text(content.get("text") if "type" in content else content["text"])
    if not isinstance(content, str):
        raise ValueError(f"content is {type(content).__name__}; expected a string or a list of parts")
    return content


def _is_thought(part: object) -> bool:
    """Whether a part of a content is the model's thinking: its type is `thinking`, `reasoning` or the like."""
    return isinstance(part, dict) and any(word in str(part.get("type")) for word in ("think", "reason"))


def _thought(part: object) -> str:
    """Return the text of a reasoning, in whichever field it is."""
    if isinstance(part, list):
        return "".join(map(_thought, part))
    if isinstance(part, dict):
        return next((said for key in ("thinking", "reasoning", "summary", "text", "content") if (said := _thought(part.get(key)))), "")
    return part if isinstance(part, str) else ""


def _count(value: object) -> int:
    if value is None:
        return 0
    if (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and value.isascii() and value.isdecimal()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_TOKENS:
        raise ValueError(f"a count of {str(value)[:40]} tokens")
    return value


def _logprob(value: object) -> float:
    """Return a log-probability in nats, at least `NO_PROBABILITY`. Raises `ValueError` if it is none."""
    if value is None:
        return NO_PROBABILITY
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # a TypeError is a wrong type
    except OverflowError:
        number = math.nan
    if math.isnan(number) or number == math.inf:
        raise ValueError(f"{str(value)[:40]!r} as a log-probability")
    return max(number, NO_PROBABILITY)
