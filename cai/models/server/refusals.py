"""What a server's errors mean: a request that it refuses, and why, or trouble that may pass.

Servers don't keep to the statuses. Some send an error as a success. Others, llama.cpp among them, answer 500 where a chat template raises
an exception or a feature isn't there, which is as permanent as a 400: what the words name decides.
"""

import json
import re
from typing import Any

from cai.errors import ReplyError

RETRIED = {408, 409, 429}
_NOT_IMPLEMENTED = 501
_MOST_BYTES = 4096
_TOO_LONG = (
    "context length",
    "context_length",
    "context size",
    "context window",
    "maximum model length",
    "max_model_len",
    "too long",
    "is too large",
)
_NAMES = re.compile(
    r"\b(?:prefill\w*|jinja\w*|templates?|roles?|(?:system|assistant|last|final) (?:messages?|prompts?|turns?)|continue_final_message"
    r"|add_generation_prompt|chat_template_kwargs|enable_thinking|thinking|reasoning|(?:top_|prompt_)?log_?prob\w*|n_probs|seed|top_[pk]"
    r"|min_p|temperature|max_\w*tokens|repeat_penalty|repetition_penalty|streaming|parameters?|arguments?|fields?)\b"
)
"""What a request has, as servers call it."""
_REFUSES = re.compile(
    r"incompatible|unsupported|not (?:be )?(?:supported|implemented|permitted|allowed|accepted)"
    r"|(?:does|do)(?: not|n't) (?:support|accept|allow)|unrecogni[sz]ed|unknown|expected|invalid|forbidden|cannot have"
    r"|\b(?:must|should|only)\b|jinja\w* exception|raise_exception|rendering"
)
_OF_THE_PROMPT = re.compile(r"prompt|input|context|max_model_len|max_\w*tokens")
_RAISED = re.compile(r"jinja exception: .+", re.IGNORECASE | re.DOTALL)
"""What a chat template says, after the place in it, in llama.cpp's words."""


def is_refusal(status: int, said: str) -> bool:
    """Whether an error of the server's is a refusal: a 501, or a 500 that says that something of the request isn't taken.

    >>> is_refusal(500, "Assistant response prefill is incompatible with enable_thinking.")
    True
    >>> is_refusal(500, "CUDA error: out of memory"), is_refusal(503, "unknown parameter: seed")
    (False, False)
    """
    words = said.lower()
    named = _NAMES.search(words) and _REFUSES.search(words)
    return status == _NOT_IMPLEMENTED or (status == 500 and bool(named or (_is_too_long(words) and _OF_THE_PROMPT.search(words))))


def refusal(status: int, said: str) -> ReplyError:
    """Return the error for a request that a server refuses."""
    return ReplyError("prompt_too_long" if _is_too_long(said.lower()) else "refused_by_server", f"{status}: {said}")


def _is_too_long(said: str) -> bool:
    return any(words in said for words in _TOO_LONG)


def words_of(error: object) -> str:
    """Return what an error's body says: `error.message` as OpenAI has it, `message` or `detail` as others; empty if it has none."""
    said = error.get("error", error) if isinstance(error, dict) else error
    if isinstance(said, dict):
        said = said.get("message") or said.get("detail")
    if not isinstance(said, str):
        return ""
    return raised[0] if (raised := _RAISED.search(said)) else said


def error_in(body: dict[str, Any]) -> ReplyError | None:
    """Return the error that some servers and routers send as a success: `{"error": …}`, and `{"object": "error"}` of older vLLM.

    It is a refusal, or a `server_error` if the request may be answered when it is sent again.
    """
    error = body if body.get("object") == "error" else body.get("error")
    if not error or body.get("choices"):
        return None
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 400
    said = words_of(error)
    if (status >= 500 or status in RETRIED) and not is_refusal(status, said):
        return ReplyError("server_error", f"{status}: {said}")
    return refusal(status, said)


def words_in(content: bytes) -> str:
    """Return what an error's content says, as `words_of` does; the content itself where that is no JSON of an error."""
    try:
        said = words_of(json.loads(content))
    except (ValueError, RecursionError):
        said = ""
    return said or content[:_MOST_BYTES].decode(errors="replace")
