"""What a model can be asked, and what it answers."""

from dataclasses import dataclass

import msgspec

from cai.records import Message


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings of a completion. `temperature` 0 is greedy: `top_p` and the seed then have no effect."""

    max_tokens: int = 128
    """Of the answer; of the reasoning and the answer together without `thinking_tokens`."""
    temperature: float = 1.0
    top_p: float = 1.0
    thinking_tokens: int | msgspec.UnsetType = msgspec.UNSET
    """Of the reasoning before the answer. Unset, not 0, for models that don't think: their requests then keep their key in the store."""

    @property
    def most_tokens(self) -> int:
        """The longest completion, reasoning included."""
        return self.max_tokens + (self.thinking_tokens or 0)


@dataclass(frozen=True, slots=True)
class CompleteRequest:
    """Continue the conversation with an assistant turn that starts with `prefill`."""

    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class ChoicesRequest:
    """Log-probability of each choice as the assistant's next words, e.g. `("Yes", "No")`.

    A choice's log-probability is the sum over its tokens, given the conversation, the assistant header and `prefill`. The choices'
    probabilities need not add up to 1; callers normalise them.
    """

    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probability of `text` as the assistant's answer to the conversation, without the end-of-turn token."""

    messages: tuple[Message, ...]
    text: str


@dataclass(frozen=True, slots=True)
class StateRequest:
    """Hidden states of the model while it reads `text` as the assistant's answer, without the end-of-turn token.

    `layer` is counted from 1: `n` is the output of the n-th layer, before the final norm.
    """

    messages: tuple[Message, ...]
    text: str
    layer: int


Request = CompleteRequest | ChoicesRequest | ScoreRequest | StateRequest


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion, without the prefill. `truncated`: it reached its limit of tokens before the model ended its turn.

    `complete` sets the reasoning apart from the text, whether the engine did so or left it inside.
    """

    text: str
    truncated: bool
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class ChoiceLogprobs:
    """Log-probabilities in nats, in the order of the request's choices."""

    logprobs: tuple[float, ...]
    prompt_tokens: int
    every_form: bool = False
    """Whether they are summed over the ways to write a choice, with and without a space before it."""


@dataclass(frozen=True, slots=True)
class TextLogprob:
    """Log-probability of a text in nats, summed over its tokens. `tokens` ≥ 1."""

    total: float
    tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class HiddenState:
    """Pooled hidden states of one text at one layer: little-endian float32, `[hidden]` each."""

    mean: bytes
    """Mean over the text's tokens."""
    last: bytes
    """At the text's last token."""
    prompt_tokens: int


Reply = Completion | ChoiceLogprobs | TextLogprob | HiddenState
REPLY_TYPES: dict[type, type] = {
    CompleteRequest: Completion,
    ChoicesRequest: ChoiceLogprobs,
    ScoreRequest: TextLogprob,
    StateRequest: HiddenState,
}
