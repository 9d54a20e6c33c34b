"""What a stage sees of a model: `TextModel`, three awaitable questions over any engine, with every answer kept in the call store.

    text   = (await model.complete(messages, sampling, seed)).text
    lp     = (await model.choices(messages, ("Yes", "No"))).logprobs
    nats   = (await model.score(messages, "Paris.")).total

An `Engine` does the work: the local model, a server, a scripted fake. It takes requests one at a time and batches or pipelines
them as it likes. `TextModel` looks each request up in the call store first, lets identical requests in flight share one call, also
with other processes on the same store, and hands a reply on only when it is committed, so that nothing that has been used can be lost.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from cai.core.interrupt import finish_first
from cai.ids import content_hash
from cai.models.store import CallStore
from cai.records import Message


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw a completion. `temperature` 0 is greedy, and then `top_p` and the seed are without effect."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class CompleteRequest:
    """Continue the conversation with an assistant turn. `prefill` is text that the assistant's turn starts with."""

    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class ChoicesRequest:
    """Log-probability of each choice as the assistant's whole next words, e.g. `("Yes", "No")`.

    A choice's log-probability is the sum over its tokens given the conversation, the assistant header and `prefill`. Choices need
    not exhaust the distribution; callers normalise over them.
    """

    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probability of `text` as the assistant's answer to the conversation (end-of-turn token not counted)."""

    messages: tuple[Message, ...]
    text: str


Request = CompleteRequest | ChoicesRequest | ScoreRequest
_ENCODER = msgspec.json.Encoder()
_COMMIT_SECONDS = 0.25
"""Without a commit after which what is still in flight has not been started: a few turns of the event loop, and then some."""
_CLAIM_PAUSE = 0.02
"""Seconds before the first look for a reply that another process is waiting for; then ever longer, up to a second."""
_CLAIM_SECONDS = 600.0
"""After these the call is made here as well: the other process may be stopped."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion without the prefill. `truncated`: it hit `max_tokens` before the model ended its turn."""

    text: str
    truncated: bool
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ChoiceLogprobs:
    """Natural-log probabilities, in the order of the request's choices."""

    logprobs: tuple[float, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TextLogprob:
    """Natural-log probability of a text, summed over its tokens. `tokens` ≥ 1."""

    total: float
    tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Work:
    """Model calls of one form, for `cai plan`.

    `texts` prompts of `text_tokens` are each read once and followed by `questions` suffixes of `question_tokens`; up to `max_tokens` are
    written after each. So there are `texts` × `questions` calls.
    """

    texts: float
    text_tokens: float
    questions: float = 1.0
    question_tokens: float = 0.0
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Mean tokens of a pair to judge and of what a template puts around it."""

    prompt: float
    response: float
    """One of the two."""
    question: float
    """Asked of one response."""
    comparison: float
    """Asked of two responses."""
    statement: float
    """Of a principle, as a system prompt."""


Reply = Completion | ChoiceLogprobs | TextLogprob
REPLY_TYPES: dict[type, type] = {CompleteRequest: Completion, ChoicesRequest: ChoiceLogprobs, ScoreRequest: TextLogprob}


class Engine(Protocol):
    """Answers requests. Implementations: `LocalEngine`, `ServerEngine`, `ScriptedEngine`."""

    name: str
    """For people: `embedded`, a path or Hub id, a URL and model name."""
    fingerprint: str
    """Changes whenever the same request could get another answer: weights, adapter, tokenizer and chat template, precision."""

    async def submit(self, request: Request) -> Reply:
        """Answer one request; many may be awaited at once.

        Raises:
            ReplyError: this request can't be answered (empty, too long, refused); others can.
            ModelError: the engine can't go on.
        """
        ...

    async def finish(self) -> None:
        """Start no more requests, and return when those that were started are answered; the others wait until they are cancelled."""
        ...

    async def close(self) -> None:
        """Release the model or connections."""
        ...


@dataclass
class Usage:
    """What a stage asked of a model. `made` calls ran, `reused` ones came from the call store."""

    made: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class TextModel:
    """An engine with a memory. One instance serves one stage: `stage` labels its calls in the store, `usage` counts them."""

    engine: Engine
    store: CallStore
    stage: str
    usage: Usage = field(default_factory=Usage)
    on_reply: Callable[[], None] = lambda: None
    """Told of every reply, made or reused: for progress."""
    _in_flight: dict[str, "asyncio.Future[Reply]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finish_first(self.finish)

    @property
    def fingerprint(self) -> str:
        """The engine's fingerprint: what goes into a record's provenance."""
        return self.engine.fingerprint

    async def complete(self, messages: Sequence[Message], sampling: Sampling, seed: int, prefill: str = "") -> Completion:
        """Sample one assistant turn.

        Args:
            messages: the conversation, ending with what the model should answer.
            sampling: length and temperature.
            seed: this item's own, from `cai.ids.derive_seed`.
            prefill: text that the turn starts with; not repeated in the completion.

        Raises:
            ReplyError: the model gave nothing usable for this item.
            ModelError: the engine can't go on.
        """
        reply = await self.call(CompleteRequest(tuple(messages), sampling, seed, prefill))
        assert isinstance(reply, Completion)
        return reply

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

    async def finish(self) -> None:
        """Let the engine start no more calls, and return when every call that it had started is committed."""
        await self.engine.finish()
        waiting = set(self._in_flight.values())
        answered = waiting
        while answered and waiting:  # those that never started stay
            answered, waiting = await asyncio.wait(waiting, timeout=_COMMIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    async def call(self, request: Request) -> Reply:
        """Answer a request from the store, from an identical call in flight, or from the engine, committed before it is returned."""
        reply = await self._answer(request)
        self.on_reply()
        return reply

    async def _answer(self, request: Request) -> Reply:
        written = msgspec.Raw(_ENCODER.encode(request))  # once, for the key and for the store
        key = content_hash((self.engine.fingerprint, type(request).__name__, written), length=64)
        if (shared := self._in_flight.get(key)) is not None:
            await asyncio.wait([shared])
            if shared.cancelled():  # whoever asked first went away: that is no answer to this one
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
            reply = (None if claimed else await self._await_claim(key, request)) or await self._ask(key, request, written)
        except Exception as e:
            future.set_exception(e)
            future.exception()  # marks it as seen: nobody else may be waiting
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
        """Return the stored reply and give the claim back, or return None and keep it."""
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
        """Wait for the process that is asking the same. Returns its reply; or None, where it gave none and this one is to ask."""
        pause, given_up = _CLAIM_PAUSE, time.monotonic() + _CLAIM_SECONDS
        while not self.store.claim(key) and time.monotonic() < given_up:
            await asyncio.sleep(pause)
            pause = min(1.0, 1.5 * pause)
        return self._found(key, request)

    async def _ask(self, key: str, request: Request, written: msgspec.Raw) -> Reply:
        """Ask the engine, and return its reply once it is committed."""
        started = time.monotonic()
        reply = await self.engine.submit(request)
        await self.store.put(key, self.stage, self.engine.name, written, reply, time.monotonic() - started)
        self.usage.made += 1
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.completion_tokens += reply.completion_tokens if isinstance(reply, Completion) else 0
        return reply
