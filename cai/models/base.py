"""Access to language models: `TextModel` has four async methods, works with any engine, and keeps every reply in the call store.

    text   = (await model.complete(messages, sampling, seed)).text
    lp     = (await model.choices(messages, ("Yes", "No"))).logprobs
    nats   = (await model.score(messages, "Paris.")).total
    states = await model.hidden_state(messages, "Paris.", layer=18)      # of a model on this machine only

An `Engine` answers requests: the local model, a server or a scripted fake. It receives requests one at a time and may batch or pipeline
them. `TextModel` first looks each request up in the call store. Identical requests in flight share one call, also with other processes on
the same store. A reply is returned only after it is committed, so that no reply that was used can be lost.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import msgspec

from cai.core.interrupt import finish_first
from cai.core.text.reasoning import split_reasoning
from cai.core.waiting import NOTICE_SECONDS, tell_waiting
from cai.errors import ModelError, ReplyError
from cai.ids import content_hash
from cai.models.requests import (
    REPLY_TYPES,
    ChoiceLogprobs,
    ChoicesRequest,
    CompleteRequest,
    Completion,
    HiddenState,
    Reply,
    Request,
    Sampling,
    ScoreRequest,
    StateRequest,
    TextLogprob,
)
from cai.models.store import CallStore
from cai.records import Message
from cai.stats import RunningMean


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Tokens, estimated, of what is asked about a pair of responses under one principle."""

    prompt: float
    """The conversation, with the chat template around it."""
    response: float
    question: float
    """About one response, with its template."""
    comparison: float
    """About both responses, with its template."""
    statement: float
    """The principle as a system prompt, with its template."""
    grading: float
    """About one response's grade, with its template."""


@dataclass(frozen=True, slots=True)
class Work:
    """Calls of one sort, as `cai plan` counts them.

    `texts` different texts of `text_tokens` each, and `questions` about each of them of `question_tokens`. A text with a question is run
    once for the questions of all principles; one without (`question_tokens` 0) has the principle in it. `max_tokens`: the longest
    completion; 0 where choices or the text itself are scored.
    """

    texts: float
    text_tokens: float
    questions: float = 1.0
    question_tokens: float = 0.0
    max_tokens: int = 0


UNFINISHED = "only reasoning came back: raise thinking_tokens beside max_tokens, or set model.thinking: false"
"""Detail of the failure `empty_reply` of a model that thinks."""
NO_STATES = (
    "{name} gives no hidden states: only a model on this machine does.\n"
    "Fix: judge with local weights (`--judge` a folder, a Hub id or embedded; in a recipe feedback.judge), or by another protocol"
)
"""Why a model can't be probed, to be formatted with its name."""
_ENCODER = msgspec.json.Encoder()
_COMMIT_SECONDS = 0.25
"""Seconds without a commit after which the calls still in flight count as not started."""
_CLAIM_PAUSE = 0.02
"""Seconds before the first check for the reply of another process's call. Later pauses grow up to one second."""
CLAIM_SECONDS = 600.0
"""Seconds after which this process makes the call itself: the other process may be suspended."""


class Engine(Protocol):
    """Answers requests. Implementations: `LocalEngine`, `ServerEngine`, `ScriptedEngine`."""

    name: str
    """Display name: `embedded`, a path or Hub id, or a URL and model name."""
    fingerprint: str
    """Hash of everything that affects answers: weights, adapter, tokenizer, chat template, precision."""

    async def submit(self, request: Request) -> Reply:
        """Answer one request. Many may be awaited at once.

        Raises:
            ReplyError: this request can't be answered (empty, too long, refused). Others still can.
            ModelError: the engine can't continue.
        """
        ...

    async def finish(self) -> None:
        """Start no more requests, and return when the started ones are answered. The others wait until they are cancelled."""
        ...

    async def close(self) -> None:
        """Release the model or connections."""
        ...


OnText = Callable[[str], None]
"""Receives a completion piece by piece. The local engine calls it in its worker thread."""


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine that can hand out a completion while it is being written."""

    async def stream(self, request: CompleteRequest, on_text: OnText) -> Completion:
        """Answer one request; call `on_text` with each new piece of the text. Raises as `submit` does."""
        ...


@runtime_checkable
class StateEngine(Engine, Protocol):
    """An engine that can hand out hidden states."""

    layers: int
    """Number of the model's layers."""


@dataclass
class Usage:
    """Call and token counts of a stage. `made` calls were run; `reused` ones were cache hits in the call store."""

    made: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class TextModel:
    """An engine with a call store. Each stage has its own instance: `stage` labels its calls in the store, `usage` counts them."""

    engine: Engine
    store: CallStore
    stage: str
    usage: Usage = field(default_factory=Usage)
    choice_mass: RunningMean = field(default_factory=RunningMean)
    """Probability that the choices of its questions hold, by `read_choices`."""
    on_reply: Callable[[], None] = lambda: None
    """Called after every reply, made or reused, to report progress."""
    _in_flight: dict[str, "asyncio.Future[Reply]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finish_first(self.finish)

    @property
    def fingerprint(self) -> str:
        """The engine's fingerprint, for the provenance of records."""
        return self.engine.fingerprint

    async def complete(
        self, messages: Sequence[Message], sampling: Sampling, seed: int, prefill: str = "", on_text: OnText | None = None
    ) -> Completion:
        """Sample one assistant turn.

        Args:
            messages: the conversation, ending with the turn to answer.
            sampling: length and temperature.
            seed: the item's seed, from `cai.ids.derive_seed`.
            prefill: start of the assistant's turn; not repeated in the completion.
            on_text: receives the text piece by piece, reasoning included, if the engine can stream and the reply is not stored.

        Raises:
            ReplyError: the model gave no usable reply to this request; `empty_reply` if its reasoning didn't end.
            ModelError: the engine can't continue.
        """
        reply = await self.call(CompleteRequest(tuple(messages), sampling, seed, prefill), on_text)
        assert isinstance(reply, Completion)
        said = split_reasoning(reply.text, reply.truncated)
        if said.answer == reply.text:
            return reply
        reasoning = "\n\n".join(part for part in (reply.reasoning, said.reasoning) if part)
        if not said.answer.strip():
            raise ReplyError("empty_reply", UNFINISHED)
        return replace(reply, text=said.answer, reasoning=reasoning)

    async def choices(self, messages: Sequence[Message], choices: Sequence[str], prefill: str = "") -> ChoiceLogprobs:
        """Return the log-probability of each choice as the assistant's next words. Raises as `complete` does."""
        reply = await self.call(ChoicesRequest(tuple(messages), tuple(choices), prefill))
        assert isinstance(reply, ChoiceLogprobs)
        return reply

    async def score(self, messages: Sequence[Message], text: str) -> TextLogprob:
        """Return the log-probability of a text as the assistant's answer. Raises as `complete` does."""
        reply = await self.call(ScoreRequest(tuple(messages), text))
        assert isinstance(reply, TextLogprob)
        return reply

    @property
    def layers(self) -> int:
        """Number of the model's layers. Raises `ModelError` where the engine gives no hidden states."""
        if not isinstance(self.engine, StateEngine):
            raise ModelError(NO_STATES.format(name=self.engine.name))
        return self.engine.layers

    async def hidden_state(self, messages: Sequence[Message], text: str, layer: int) -> HiddenState:
        """Return a layer's hidden states of a text as the assistant's answer, pooled over its tokens.

        Raises:
            ReplyError: this text can't be run, such as one that is empty or too long.
            ModelError: the engine gives no hidden states, or can't continue.
        """
        reply = await self.call(StateRequest(tuple(messages), text, layer))
        assert isinstance(reply, HiddenState)
        return reply

    async def finish(self) -> None:
        """Stop the engine from starting calls, and return when all started calls are committed."""
        await self.engine.finish()
        waiting = set(self._in_flight.values())
        answered = waiting
        while answered and waiting:  # calls that never started remain
            answered, waiting = await asyncio.wait(waiting, timeout=_COMMIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    async def call(self, request: Request, on_text: OnText | None = None) -> Reply:
        """Answer a request from the store, from an identical call in flight, or from the engine. A new reply is committed first."""
        reply = await self._answer(request, on_text)
        self.on_reply()
        return reply

    async def _answer(self, request: Request, on_text: OnText | None = None) -> Reply:
        written = msgspec.Raw(_ENCODER.encode(request))  # encoded once, for the key and for the store
        key = content_hash((self.engine.fingerprint, type(request).__name__, written), length=64)
        if (shared := self._in_flight.get(key)) is not None:
            await asyncio.wait([shared])
            if shared.cancelled():  # the first caller was cancelled, so this one asks again
                return await self._answer(request)
            reply = shared.result()
            self.usage.reused += 1
            return reply
        claimed = self.store.claim(key)
        if claimed and (stored := self._found(key, request)) is not None:
            return stored
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._in_flight[key] = future
        try:
            reply = (None if claimed else await self._await_claim(key, request)) or await self._ask(key, request, written, on_text)
        except Exception as e:
            future.set_exception(e)
            future.exception()  # marks the exception as retrieved: there may be no other waiter
            raise
        except BaseException:
            future.cancel()
            raise
        finally:
            del self._in_flight[key]
            self.store.release(key)
        future.set_result(reply)
        return reply

    def _found(self, key: str, request: Request) -> Reply | None:
        """Return the stored reply and release the claim, or return None and keep the claim."""
        try:
            stored: Reply | None = self.store.get(key, REPLY_TYPES[type(request)])
        except BaseException:
            self.store.release(key)
            raise
        if stored is not None:
            self.store.release(key)
            self.usage.reused += 1
        return stored

    async def _await_claim(self, key: str, request: Request) -> Reply | None:
        """Wait for another process that makes the same call. Returns its reply, or None if this process has to make the call."""
        pause, started = _CLAIM_PAUSE, time.monotonic()
        while not self.store.claim(key) and (waited := time.monotonic() - started) < CLAIM_SECONDS:
            if waited > NOTICE_SECONDS:
                tell_waiting(
                    "claim",
                    f"Waiting since {waited:.0f} s for a reply that another run asks for: {self.store.holder(key)}. Let it go on, or stop "
                    f"it; after {CLAIM_SECONDS:.0f} s the call is made here.",
                )
            await asyncio.sleep(pause)
            pause = min(1.0, 1.5 * pause)
        return self._found(key, request)

    async def _ask(self, key: str, request: Request, written: msgspec.Raw, on_text: OnText | None) -> Reply:
        """Send the request to the engine, and return its reply once it is committed."""
        started = time.monotonic()
        if on_text is not None and isinstance(request, CompleteRequest) and isinstance(self.engine, StreamingEngine):
            reply: Reply = await self.engine.stream(request, on_text)
        else:
            reply = await self.engine.submit(request)
        await self.store.put(key, self.stage, self.engine.name, written, reply, time.monotonic() - started)
        self.usage.made += 1
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.completion_tokens += reply.completion_tokens if isinstance(reply, Completion) else 0
        return reply
