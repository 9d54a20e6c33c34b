"""The local engine: a `transformers` model in this process that answers pending requests in batches.

When the event loop is idle, one batch is formed from the pending requests, in an order that depends only on their content, and run in a
worker thread. All its replies are returned together. So the batches depend only on which calls are already in the call store, and a
batch is stored completely or not at all: a run that is killed and resumed forms the same batches as an uninterrupted run, and gives the
same bytes, even in bfloat16.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cai.core.interrupt import Gate
from cai.core.text.reasoning import within
from cai.errors import ModelError, ReplyError
from cai.ids import content_hash
from cai.models.base import OnText
from cai.models.local.encoding import Encoder
from cai.models.local.thinking import ThinkingBudget, thinking_budget
from cai.models.requests import (
    ChoiceLogprobs,
    ChoicesRequest,
    CompleteRequest,
    Completion,
    HiddenState,
    Reply,
    Request,
    ScoreRequest,
    StateRequest,
    TextLogprob,
)
from cai.recipe import ModelSpec

_QUIET_TURNS = 64
"""Iterations of the event loop without a new request before it counts as idle. A commit and the awaits above it take under ten."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """A pending request: its tokens, and the future of its reply."""

    request: Request
    prompt: list[int]
    targets: tuple[tuple[int, ...], ...]
    """Tokens of each choice, or of the text to score."""
    hash: str
    reply: "asyncio.Future[Reply]"
    on_text: OnText | None = None


class _StoppedError(Exception):
    """The engine was closed or cancelled while a batch ran."""


class LocalEngine:
    """An engine for a model and tokenizer in memory; `load` makes one from a spec.

    Args:
        model: a `transformers` causal language model, in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        max_length: longest prompt plus completion, in tokens; limited to the model's context.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, fingerprint: str, batch_size: int, max_length: int) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.batches = 0
        self._model: Any = model
        self._encoder = Encoder(tokenizer)
        self._batch_size = batch_size
        config = model.config.get_text_config(decoder=True)
        self._max_length = min(max_length, getattr(config, "max_position_embeddings", None) or max_length)
        self.layers = int(config.num_hidden_layers)
        self._stop_ids = stop_ids(model, self._encoder)
        self._pending: list[_Job] = []
        self._arrivals = 0
        self._dispatcher: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._stop = threading.Event()
        self._gate = Gate()

    @classmethod
    def load(cls, spec: ModelSpec) -> "LocalEngine":
        """Load weights and tokenizer, and speed the model up for this machine.

        What its chat template can't take is logged as a warning.
        """
        from cai.models.local.cpu import speed_up
        from cai.models.local.fingerprint import model_fingerprint
        from cai.models.local.kv_cache import attention_windows
        from cai.models.local.loading import load_causal_lm, load_tokenizer

        tokenizer = load_tokenizer(spec)
        for limit in template_limits(spec.path, tokenizer):
            _log.warning("%s: %s", spec.path, limit)
        model = load_causal_lm(spec)
        if hasattr(model, "get_base_model"):  # an unmerged adapter lives inside the base model's own layers
            model = model.get_base_model()
        attention_windows(model.config.get_text_config(decoder=True))
        return cls(
            speed_up(model),
            tokenizer,
            name=spec.path if spec.adapter is None else f"{spec.path}+{spec.adapter}",
            fingerprint=model_fingerprint(spec),
            batch_size=spec.batch_size,
            max_length=spec.max_length,
        )

    async def submit(self, request: Request) -> Reply:
        """Queue one request and wait for its batch.

        Raises:
            ReplyError: `prompt_too_long`, `template_refused`, or `empty_text` (nothing to score or to read).
            ModelError: the model failed on this batch. All pending requests fail with it.
        """
        return await self._queue(self._job(request))

    async def stream(self, request: CompleteRequest, on_text: OnText) -> Completion:
        """Answer one request piece by piece. Raises as `submit` does."""
        reply = await self._queue(replace(self._job(request), on_text=on_text))
        assert isinstance(reply, Completion)
        return reply

    async def _queue(self, job: _Job) -> Reply:
        self._pending.append(job)
        self._arrivals += 1
        if self._dispatcher is None or self._dispatcher.done():
            self._stop = threading.Event()
            self._dispatcher = asyncio.create_task(self._dispatch())
        return await job.reply

    async def finish(self) -> None:
        """Finish the running batch, start no other. A batch with fewer requests than in an uninterrupted run could answer differently."""
        await self._gate.close()

    async def close(self) -> None:
        """Stop the running batch at its next step, fail the pending requests, and free the weights."""
        self._stop.set()
        if self._dispatcher is not None and not self._dispatcher.done():
            self._dispatcher.cancel()
            await asyncio.gather(self._dispatcher, return_exceptions=True)
        self._worker.shutdown(wait=True)
        self._model = None

    def _job(self, request: Request) -> _Job:
        targets: tuple[tuple[int, ...], ...] = ()
        if isinstance(request, ScoreRequest | StateRequest):
            prompt, text = self._encoder.turn(request.messages, request.text, ended=False)
            targets = (tuple(text),)
        else:
            compared = isinstance(request, ChoicesRequest)
            prompt, tail = self._encoder.prompt(request.messages, request.prefill, answered=compared)
            if isinstance(request, ChoicesRequest):
                targets = tuple(tuple(self._encoder.continuation(tail, choice)) for choice in request.choices)
        if any(not t for t in targets):
            raise ReplyError("empty_text", "an empty text has no log-probability and no hidden states")
        after = request.sampling.most_tokens if isinstance(request, CompleteRequest) else max(map(len, targets), default=0)
        if len(prompt) + after > self._max_length:
            raise ReplyError(
                "prompt_too_long", f"{len(prompt)} tokens and {after} to follow; the limit is {self._max_length} (model.max_length)"
            )
        return _Job(request, prompt, targets, content_hash(request, 64), asyncio.get_running_loop().create_future())

    async def _dispatch(self) -> None:
        """Run batches until nothing is pending."""
        from cai.models.local.cpu import release_threads

        batch: list[_Job] = []
        try:
            while True:
                await self._rest()
                self._pending = [job for job in self._pending if not job.reply.done()]  # cancelled while waiting
                if not self._pending:
                    return
                batch = take_batch(self._pending, self._batch_size)
                taken = set(map(id, batch))
                self._pending = [job for job in self._pending if id(job) not in taken]
                release_threads()
                async with self._gate:
                    replies = await asyncio.get_running_loop().run_in_executor(self._worker, self._run_alone, batch)
                    self.batches += 1
                    for job, reply in zip(batch, replies, strict=True):
                        if not job.reply.done():
                            job.reply.set_result(reply)
        except Exception as e:  # noqa: BLE001 - set on every waiting future, which raises it
            self._fail([*batch, *self._pending], e)
        except BaseException:  # cancelled, or the process is going down
            self._stop.set()
            self._fail([*batch, *self._pending], ModelError(f"{self.name}: stopped before it answered"))
            raise

    def _fail(self, jobs: Sequence[_Job], error: Exception) -> None:
        self._pending = []
        for job in jobs:
            if not job.reply.done():
                job.reply.set_exception(error)
                job.reply.exception()  # marks it as seen: the waiter may be gone

    async def _rest(self) -> None:
        """Return when no request has arrived for `_QUIET_TURNS` iterations, so that every request that can be made is pending."""
        quiet, seen = 0, self._arrivals
        while quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if seen == self._arrivals else 0
            seen = self._arrivals

    def _check(self) -> None:
        if self._stop.is_set():
            raise _StoppedError(self.name)

    def _run_alone(self, jobs: Sequence[_Job]) -> list[Reply]:
        """Answer one batch in the worker thread, then release its OpenMP threads."""
        from cai.models.local.cpu import release_threads

        try:
            return self._run(jobs)
        finally:
            release_threads()

    def _run(self, jobs: Sequence[_Job]) -> list[Reply]:
        """Answer one batch. If it fails, retry its halves, down to single requests."""
        try:
            return self._answer(jobs)
        except ModelError:
            raise
        except (RuntimeError, MemoryError) as e:
            cause = str(e).splitlines()[0] if str(e) else type(e).__name__
            if len(jobs) == 1:
                tokens = len(jobs[0].prompt)
                raise ModelError(
                    f"{self.name}: the model failed on one request of {tokens} prompt tokens ({cause}).\n"
                    "Fix: if memory ran out, lower model.max_length or choose a smaller model or `precision: nf4`"
                ) from e
            _log.warning(
                "%s: a batch of %d failed (%s); running its halves. A lower model.batch_size avoids this.", self.name, len(jobs), cause
            )
        half = len(jobs) // 2
        return [*self._run(jobs[:half]), *self._run(jobs[half:])]

    def _answer(self, jobs: Sequence[_Job]) -> list[Reply]:
        from cai.models.local.generate import ChoiceQuery, CompletionRow, compare, complete, score

        self._check()
        first = jobs[0].request
        if isinstance(first, CompleteRequest):
            rows = [
                CompletionRow(
                    j.prompt,
                    j.request.sampling.max_tokens,
                    j.request.sampling.temperature,
                    j.request.sampling.top_p,
                    j.request.seed,
                    self._budget(j.request),
                )
                for j in jobs
                if isinstance(j.request, CompleteRequest)
            ]
            streams = {row: self._stream_to(job.on_text) for row, job in enumerate(jobs) if job.on_text is not None}

            def on_token(row: int, token: int) -> None:
                if row in streams:
                    streams[row](token)

            done = complete(self._model, rows, self._stop_ids, self._check, on_token=on_token)
            return [
                Completion(self._text(job.request, ids), truncated, len(job.prompt), len(ids))
                for job, (ids, truncated) in zip(jobs, done, strict=True)
            ]
        if isinstance(first, ChoicesRequest):
            compared = compare(self._model, [ChoiceQuery(job.prompt, job.targets) for job in jobs])
            return [ChoiceLogprobs(logprobs, len(job.prompt)) for job, logprobs in zip(jobs, compared, strict=True)]
        if isinstance(first, StateRequest):
            return self._states(jobs)
        totals = score(self._model, [(job.prompt, job.targets[0]) for job in jobs], self._check)
        return [TextLogprob(total, len(job.targets[0]), len(job.prompt)) for job, total in zip(jobs, totals, strict=True)]

    def _states(self, jobs: Sequence[_Job]) -> list[Reply]:
        """Run each text once, whatever number of its layers is asked for."""
        from cai.models.local.generate import hidden_states

        asked = [j.request.layer for j in jobs if isinstance(j.request, StateRequest)]
        layers = sorted(set(asked))
        texts = list(dict.fromkeys((tuple(j.prompt), j.targets[0]) for j in jobs))
        mean, last = (part.cpu().numpy().astype("<f4") for part in hidden_states(self._model, texts, layers, self._check))
        rows = {text: row for row, text in enumerate(texts)}
        at = [(layers.index(layer), rows[tuple(j.prompt), j.targets[0]]) for layer, j in zip(asked, jobs, strict=True)]
        return [HiddenState(mean[i].tobytes(), last[i].tobytes(), len(j.prompt)) for i, j in zip(at, jobs, strict=True)]

    def _stream_to(self, on_text: OnText) -> Callable[[int], None]:
        """Return a function that takes a completion's tokens one by one, and calls `on_text` with each piece that is whole characters."""
        ids: list[int] = []
        shown = ""

        def add(token: int) -> None:
            nonlocal shown
            ids.append(token)
            text = self._encoder.decode(ids)
            if text.startswith(shown) and not text.endswith("\ufffd"):
                on_text(text[len(shown) :])
                shown = text

        return add

    def _budget(self, request: CompleteRequest) -> ThinkingBudget | None:
        """Return the limits of a completion whose reasoning has its own."""
        sampling = request.sampling
        return thinking_budget(partial(self._text, request), sampling.max_tokens, sampling.thinking_tokens or 0)

    def _text(self, request: Request, ids: Sequence[int]) -> str:
        """Return a completion's text. The tag that opened a reasoning in the assistant's header stands before it."""
        begun = not isinstance(request, CompleteRequest) or request.prefill
        opened = "" if begun else self._encoder.opens_reasoning(request.messages)
        return within(opened, self._encoder.decode(ids))


def take_batch(pending: Sequence[_Job], size: int) -> list[_Job]:
    """Choose the next batch. The choice depends only on the content of the pending requests.

    A batch holds one kind of request; the fast kinds (choices, scores) come first. Completions and scores are taken longest first, so
    that lengths are even and a batch that is too large fails at once. Choices are sorted by their tokens, so that questions about one text
    share a batch. While consecutive questions share a text, a batch of choices may grow to twice `size`. Texts whose hidden states are
    asked for are sorted by their prompts, so that the two responses of a pair share a batch; all layers of one text do.
    """
    kinds: tuple[type, ...] = (ChoicesRequest, ScoreRequest, StateRequest, CompleteRequest)
    kind = next(k for k in kinds if any(isinstance(job.request, k) for job in pending))
    jobs = [job for job in pending if isinstance(job.request, kind)]
    if kind is StateRequest:
        jobs.sort(key=lambda job: (-len(job.prompt), job.prompt, -len(job.targets[0]), job.targets, job.hash))
        texts = list(dict.fromkeys((tuple(job.prompt), job.targets) for job in jobs))[:size]
        return [job for job in jobs if (tuple(job.prompt), job.targets) in texts]
    if kind is not ChoicesRequest:
        return sorted(jobs, key=lambda job: (-len(job.prompt) - sum(map(len, job.targets)), job.hash))[:size]
    jobs.sort(key=lambda job: (job.prompt, job.hash))
    end = min(size, len(jobs))
    while end < min(2 * size, len(jobs)) and _same_text(jobs[end - 1].prompt, jobs[end].prompt):
        end += 1
    return jobs[:end]


def _same_text(a: list[int], b: list[int]) -> bool:
    half = min(len(a), len(b)) // 2
    return half > 0 and a[:half] == b[:half]


def template_limits(name: str, tokenizer: Any) -> list[str]:
    """Say what a model's chat template can't take. Raises `ModelError` where it can't write even one user turn."""
    try:
        return Encoder(tokenizer).limits()
    except ReplyError as e:
        raise ModelError(f"{name}: {e.detail}.\nFix: correct the model's chat_template.jinja, or use another model") from e


def stop_ids(model: Any, encoder: Encoder) -> frozenset[int]:
    """Return the ids of all tokens that end a turn, from the chat template, the model's generation config and the tokenizer."""
    as_list: Callable[[Any], list[int]] = lambda ids: ids if isinstance(ids, list) else [] if ids is None else [ids]  # noqa: E731
    configured = as_list(getattr(model.generation_config, "eos_token_id", None)) + as_list(encoder.tokenizer.eos_token_id)
    return frozenset([encoder.end_id, *configured])
