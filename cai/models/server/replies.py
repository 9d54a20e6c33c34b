"""The replies of an OpenAI-compatible server, as far as `cai` reads them: other fields are ignored, wrong types are malformed replies."""

from typing import Annotated, Any

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0)]


class ModelCard(Struct, frozen=True):
    """One model of `/models`; `root` and `parent` are vLLM's, `meta` is llama.cpp's."""

    id: str
    owned_by: str | None = None
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    meta: dict[str, Any] | None = None


class ModelList(Struct, frozen=True):
    """The reply of `/models`."""

    data: list[ModelCard]


class TokenList(Struct, frozen=True):
    """The reply of `/tokenize`."""

    tokens: list[Count]
    token_strs: list[str] | None = None


class TokenUsage(Struct, frozen=True):
    """Tokens that a request cost, where the server says so."""

    prompt_tokens: Count = 0
    completion_tokens: Count | None = 0


class ChatMessage(Struct, frozen=True):
    """What the assistant said, or why not."""

    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class TokenLogprob(Struct, frozen=True):
    """One likely token."""

    token: str
    logprob: float


class ChatPosition(TokenLogprob, frozen=True):
    """One generated token and the likeliest ones in its place."""

    top_logprobs: list[TokenLogprob] = []


class ChatLogprobs(Struct, frozen=True):
    """Log-probabilities of a chat reply."""

    content: list[ChatPosition] | None = None


class ChatChoice(Struct, frozen=True):
    """One chat reply."""

    message: ChatMessage
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class ChatReply(Struct, frozen=True):
    """The reply of `/chat/completions`."""

    choices: Annotated[list[ChatChoice], Meta(min_length=1)]
    usage: TokenUsage | None = None


class TextLogprobs(Struct, frozen=True):
    """Log-probabilities of a text completion: token name to log-probability, per position."""

    top_logprobs: Annotated[list[dict[str, float] | None], Meta(min_length=1)]


class PromptLogprob(Struct, frozen=True):
    """Log-probability of one prompt token."""

    logprob: float


class TextChoice(Struct, frozen=True):
    """One text completion."""

    logprobs: TextLogprobs | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class TextReply(Struct, frozen=True):
    """The reply of `/completions`."""

    choices: Annotated[list[TextChoice], Meta(min_length=1)]
