"""Models behind an OpenAI-compatible server: vLLM first, llama.cpp and hosted APIs as far as they go.

Completions are plain chat requests. Log-probabilities need more than the protocol gives, so on vLLM they go by token ids: `/tokenize` says
what the conversation and the words are as tokens, and `/completions` is asked about exactly those.

- Choices walk the tree of the choices' tokens: one next-token request for each branching point, with the ids wanted
  (`logprob_token_ids`). For choices of one token that is one request. These read the server's prefix cache; prompt log-probabilities, the
  other way to do it, don't (vLLM then computes the prompt again), so they serve only servers too old for the ids.
- A score is one request for prompt log-probabilities, summed over exactly the text's tokens.

Elsewhere choices are looked up among the 20 likeliest next tokens by their exact text, one that isn't there is a counted failure, and
scores are refused. What is served is `cai.models.server.served`'s business, retries and several servers `cai.models.server.fleet`'s, HTTP
errors `cai.models.server.http_client`'s.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from cai.errors import ModelError, NoLogprobsError, ReplyError
from cai.models.base import (
    ChoiceLogprobs,
    ChoicesRequest,
    CompleteRequest,
    Completion,
    Reply,
    Request,
    ScoreRequest,
    TextLogprob,
)
from cai.models.server.fleet import HEALTH_SECONDS, Fleet
from cai.models.server.http_client import MalformedError
from cai.models.server.replies import ChatReply, TextReply, TokenList, TokenUsage
from cai.models.server.served import as_json
from cai.recipe import ModelSpec
from cai.records import Message

Tokens = tuple[int, ...]
_TOP = 20
_IMPOSSIBLE = -1e5
"""Nats: no model gives a token so little. Some servers write -9999 for what they don't know."""
_EXCERPT = 200
_ENDED = ("stop", "eos", "eos_token", "stop_sequence")
_NO_LOGPROBS = "Serve the model with vLLM (`vllm serve MODEL`), or set feedback.protocol: pairwise-cot, which takes the model at its word."


class ServerEngine:
    """Answers requests through a server, or several that serve the same model. Made by `connect`, which finds out what is served.

    The fingerprint covers what the server tells of itself: the model's name, `root`, `parent`, context length, size, and how its tokenizer
    and chat template render a short conversation. The address is not in it: move the server and the call store keeps its worth. What no
    server tells (dtype, quantization, new weights in the same folder) isn't in it either: give those another `--served-model-name`.

    Args:
        spec: `path`, `name`, `adapter`, `concurrency`, `timeout_seconds`, `api_key_env`.
        transport: replaces the network, for tests.
        sleep: replaces `asyncio.sleep`, for tests.
        health_seconds: between two looks at a replica.

    Raises:
        ModelError: the URL or key can't be used.
    """

    def __init__(
        self,
        spec: ModelSpec,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        health_seconds: float = HEALTH_SECONDS,
    ) -> None:
        self.name = spec.path
        self.fingerprint = ""
        self._fleet = Fleet(spec, transport, sleep, health_seconds)
        self._model = ""
        self._owner = ""
        self._tokenizes = False
        self._choice_tokens: dict[tuple[str, str], Tokens] = {}
        self._no_logprobs = ""  # why there are none, once that is known
        self._asking_for_tokens = asyncio.Lock()

    @classmethod
    async def connect(
        cls,
        spec: ModelSpec,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        health_seconds: float = HEALTH_SECONDS,
    ) -> "ServerEngine":
        """Return an engine that knows which model it talks to.

        Raises:
            ModelError: no server can be reached, one doesn't serve the model, serves several and the spec names none, or serves another.
        """
        engine = cls(spec, transport, sleep, health_seconds)
        try:
            served = await engine._fleet.connect()
        except BaseException:
            await engine.close()
            raise
        engine.name = f"{engine._fleet.name} {served.model}"
        engine.fingerprint = served.fingerprint
        engine._model, engine._owner, engine._tokenizes = served.model, served.owner, served.tokenizes
        return engine

    async def submit(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            ReplyError: the server can't answer this request, or its reply is unusable.
            ModelError: the server can't go on, or can't answer requests of this kind.
        """
        assert self.fingerprint, "made by ServerEngine.connect"
        if isinstance(request, CompleteRequest):
            return await self._complete(request)
        if isinstance(request, ChoicesRequest):
            return await (self._choices(request) if self._tokenizes else self._choices_by_text(request))
        return await self._score(request)

    async def finish(self) -> None:
        """Wait for the replies to what was sent, and send nothing more."""
        await self._fleet.finish()

    async def close(self) -> None:
        """Close the connections."""
        await self._fleet.close()

    async def _complete(self, request: CompleteRequest) -> Completion:
        sampling = request.sampling
        body = self._chat(request.messages, request.prefill) | {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
        }
        # Servers add habits of their own (llama.cpp's top-k 40, a model's generation_config): the recipe's sampling is the whole story.
        if self._owner == "vllm":
            body |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        elif self._owner == "llamacpp":
            body |= {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}

        def check(reply: ChatReply) -> None:
            ended = reply.choices[0].finish_reason
            if ended not in (*_ENDED, "length", "content_filter"):
                raise MalformedError(f"finish_reason is {ended!r}; expected 'stop' or 'length'")
            if reply.usage and (reply.usage.completion_tokens or 0) > sampling.max_tokens:
                raise MalformedError(f"{reply.usage.completion_tokens} completion tokens; {sampling.max_tokens} were asked for")

        reply = await self._fleet.ask("/chat/completions", body, ChatReply, check, about=text_of(request.messages))
        choice, usage = reply.choices[0], reply.usage or TokenUsage()
        if choice.message.refusal:
            raise ReplyError("refused_by_server", self._fleet.excerpt(choice.message.refusal))
        if choice.finish_reason == "content_filter":
            raise ReplyError("content_filter", "the server's filter stopped the reply")
        if not choice.message.content:
            thought = choice.message.reasoning or choice.message.reasoning_content
            raise ReplyError(
                "empty_reply", "only reasoning came back; raise max_tokens, or switch reasoning off" if thought else "no text came back"
            )
        return Completion(choice.message.content, choice.finish_reason == "length", usage.prompt_tokens, usage.completion_tokens or 0)

    async def _choices(self, request: ChoicesRequest) -> ChoiceLogprobs:
        """Sum each choice's token log-probabilities along the tree of the choices' tokens."""
        prompt = await self._tokenize(request.messages, request.prefill)
        choices = [await self._tokens_of(request, choice, prompt) for choice in request.choices]
        about = text_of(request.messages)
        branches: dict[Tokens, set[int]] = {}
        for tokens in choices:
            for i, token in enumerate(tokens):
                branches.setdefault(tokens[:i], set()).add(token)
        found = await asyncio.gather(*(self._next_token(prompt + path, sorted(ids), about) for path, ids in branches.items()))
        steps = {(*path, token): value for path, logprobs in zip(branches, found, strict=True) for token, value in logprobs.items()}
        totals = []
        for tokens in choices:
            walked = [steps.get(tokens[: i + 1]) for i in range(len(tokens))]
            known = [value for value in walked if value is not None]
            totals.append(sum(known) if len(known) == len(tokens) else await self._prompt_logprob(prompt, tokens, about))
        return ChoiceLogprobs(tuple(totals), len(prompt))

    async def _tokens_of(self, request: ChoicesRequest, choice: str, prompt: Tokens) -> Tokens:
        """Return a choice's tokens; remembered, as they depend only on what stands right before: the prefill, or the assistant header."""
        key = (request.prefill, choice)
        if key not in self._choice_tokens:
            async with (
                self._asking_for_tokens
            ):  # a stage begins with a window full of questions: the others wait for the first one's answer
                if key not in self._choice_tokens:
                    self._choice_tokens[key] = await self._continuation(request.messages, request.prefill, choice, prompt)
        return self._choice_tokens[key]

    async def _choices_by_text(self, request: ChoicesRequest) -> ChoiceLogprobs:
        """Look the choices up among the likeliest first tokens: all that servers without token ids can tell, and some not even that."""
        if self._no_logprobs:
            raise NoLogprobsError(self._no_logprobs)
        # Temperature 1: some servers report probabilities after sampling's changes, and 1 changes nothing. The sampled token is ignored.
        body = self._chat(request.messages, request.prefill) | {
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "logprobs": True,
            "top_logprobs": _TOP,
        }
        try:
            reply = await self._fleet.ask("/chat/completions", body, ChatReply, about=text_of(request.messages))
        except ReplyError as e:
            if "logprob" in e.detail:
                self._no_logprobs = f"{self.name} refuses to give log-probabilities ({e.detail}). {_NO_LOGPROBS}"
                raise NoLogprobsError(self._no_logprobs) from e
            raise
        logprobs = reply.choices[0].logprobs
        if logprobs is None or not logprobs.content:
            self._no_logprobs = f"{self.name} gives no log-probabilities. {_NO_LOGPROBS}"
            raise NoLogprobsError(self._no_logprobs)
        first = logprobs.content[0]
        likely: dict[str, float] = {}
        for top in (*first.top_logprobs, first):
            likely.setdefault(top.token, top.logprob)
        totals = []
        for choice in request.choices:
            value = likely.get(choice, likely.get(f" {choice}", likely.get(choice.removeprefix(" "))))
            if value is None:
                seen = ", ".join(map(repr, list(likely)[:8]))
                raise ReplyError("choice_not_likely", f"{choice!r} is not one of the {len(likely)} likeliest next tokens ({seen}, …)")
            totals.append(self._checked(value))
        return ChoiceLogprobs(tuple(totals), (reply.usage or TokenUsage()).prompt_tokens)

    async def _score(self, request: ScoreRequest) -> TextLogprob:
        if not self._tokenizes:
            raise ModelError(
                f"{self.name} can't say how likely a given text is: that takes vLLM with its /tokenize address. "
                "Serve the model with `vllm serve MODEL`, or use a feedback.protocol other than likelihood."
            )
        if not request.text:
            raise ReplyError("empty_text", "there is no text to score")
        prompt = await self._tokenize(request.messages, "")
        tokens = await self._continuation(request.messages, "", request.text, prompt)
        return TextLogprob(await self._prompt_logprob(prompt, tokens, text_of(request.messages)), len(tokens), len(prompt))

    async def _tokenize(self, messages: Sequence[Message], prefill: str) -> Tokens:
        reply = await self._fleet.ask("//tokenize", self._chat(messages, prefill), TokenList, about=text_of(messages))
        return tuple(reply.tokens)

    async def _continuation(self, messages: Sequence[Message], prefill: str, text: str, prompt: Tokens) -> Tokens:
        """Return a text's tokens where it follows the prompt; where it would change the prompt's last tokens, its tokens alone."""
        whole = await self._tokenize(messages, prefill + text)
        if whole[: len(prompt)] == prompt:
            tokens = whole[len(prompt) :]
        else:
            body = {"model": self._model, "prompt": text, "add_special_tokens": False}
            tokens = tuple((await self._fleet.ask("//tokenize", body, TokenList, about=text_of(messages))).tokens)
        if not tokens:
            raise ReplyError("empty_text", f"{text[:60]!r} is no tokens in this model's template")
        return tokens

    async def _next_token(self, prompt: Tokens, wanted: list[int], about: str) -> dict[int, float]:
        """Return log-probabilities of tokens that may come next: those wanted, or on an old server the likeliest ones."""
        # No seed: what is sampled is ignored, and vLLM's CPU build dies of a seeded request whose prompt it takes in two steps.
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "logprobs": _TOP,
            "logprob_token_ids": wanted,
            "return_tokens_as_token_ids": True,
        }
        reply = await self._fleet.ask("/completions", body, TextReply, about=about)
        logprobs = reply.choices[0].logprobs
        if logprobs is None or logprobs.top_logprobs[0] is None:
            raise NoLogprobsError(f"{self.name} gives no log-probabilities. {_NO_LOGPROBS}")
        named = logprobs.top_logprobs[0]
        return {token: self._checked(named[name]) for token in wanted if (name := f"token_id:{token}") in named}

    async def _prompt_logprob(self, prompt: Tokens, tokens: Tokens, about: str) -> float:
        """Return the log-probability of tokens after a prompt."""
        ids = prompt + tokens
        body = {"model": self._model, "prompt": list(ids), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}

        def check(reply: TextReply) -> None:
            rows = reply.choices[0].prompt_logprobs
            if rows is not None and len(rows) != len(ids):
                raise MalformedError(f"log-probabilities of {len(rows)} tokens; {len(ids)} were sent")
            if rows is not None and any(rows[i] is None or str(ids[i]) not in rows[i] for i in range(len(prompt), len(ids))):  # type: ignore[operator]
                raise MalformedError("log-probabilities of other tokens than were sent")

        reply = await self._fleet.ask("/completions", body, TextReply, check, about=about)
        rows = reply.choices[0].prompt_logprobs
        if rows is None:
            raise NoLogprobsError(f"{self.name} gives no prompt log-probabilities. {_NO_LOGPROBS}")
        return sum(
            self._checked(row[str(token)].logprob) for row, token in zip(rows[len(prompt) :], tokens, strict=True) if row is not None
        )

    def _checked(self, logprob: float) -> float:
        if logprob > 1e-3:
            raise ModelError(
                f"{self.name} sent {logprob:g} as a log-probability. Start vLLM with --logprobs-mode raw_logprobs (its default)."
            )
        if logprob < _IMPOSSIBLE:
            raise ReplyError("malformed_reply", f"{logprob:g} as a log-probability")
        return logprob

    def _chat(self, messages: Sequence[Message], prefill: str) -> dict[str, Any]:
        """Return model and messages, the last one left open where the assistant's turn starts with `prefill`."""
        body: dict[str, Any] = {"model": self._model, "messages": as_json(messages)}
        if prefill:
            body["messages"].append({"role": "assistant", "content": prefill})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body


def text_of(messages: Sequence[Message]) -> str:
    """Return what names the text that a request is about: the start of what the person says, which the requests about a text share.

    A question that comes after it is left out as long as the text is no shorter than the excerpt; of shorter ones little is shared anyway.
    """
    return next((m.content[:_EXCERPT] for m in messages if m.role != "system"), "")
