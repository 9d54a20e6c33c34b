"""Models behind an OpenAI-compatible server: vLLM first, llama.cpp and hosted APIs as far as they go.

Completions are plain chat requests. Log-probabilities need more than the protocol gives, so on vLLM they go by token ids: `/tokenize` says
what the conversation and the words are as tokens, and `/completions` is asked about exactly those.

- Choices walk the tree of the choices' tokens: one next-token request for each branching point, with the ids wanted
  (`logprob_token_ids`). For choices of one token that is one request. These read the server's prefix cache; prompt log-probabilities, the
  other way to do it, don't (vLLM then computes the prompt again), so they serve only servers too old for the ids.
- A score is one request for prompt log-probabilities, summed over exactly the text's tokens.

Elsewhere choices are looked up among the 20 likeliest next tokens by their text. Where these hold nearly all probability, a choice that
isn't listed counts with the most that is left for it, which bounds the difference; otherwise it is a counted failure. Scores are refused.

`client` sends and retries, `served` finds out what is served, `capabilities` and `learning` how a server wants to be asked, and `replies`
reads what it says.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import httpx2

from cai.core.text.reasoning import closing_tag, opens_reasoning, split_reasoning
from cai.errors import ModelError, NoLogprobsError, ReplyError
from cai.models.base import NO_STATES, OnText
from cai.models.requests import (
    ChoiceLogprobs,
    ChoicesRequest,
    CompleteRequest,
    Completion,
    Reply,
    Request,
    ScoreRequest,
    StateRequest,
    TextLogprob,
)
from cai.models.server.capabilities import Capabilities, learned_from, of_owner, thinking_switch, without
from cai.models.server.client import ServerClient
from cai.models.server.learning import Ask, LearnedCapabilities
from cai.models.server.replies import NO_PROBABILITY, read_completion, read_likeliest, read_next_token, read_prompt_logprobs
from cai.models.server.served import TokenList, as_json
from cai.models.templates import OPENINGS
from cai.models.turns import alternating, without_system
from cai.recipe import ModelSpec
from cai.records import Message

R = TypeVar("R", bound=Reply)
Tokens = tuple[int, ...]
_COVERED = 0.9
"""Probability that the listed tokens must hold together, so that one which isn't listed is known to be unlikely."""
_LEAST = 1e-6
_BLANKS = " \n\u010a\u0120\u2581"
"""White space, as tokenizers write it."""
_NO_LOGPROBS = (
    "Serve the model with vLLM (`vllm serve MODEL`), or set a feedback.protocol that takes a written verdict at its word (docs/servers.md)."
)
_OF_NOTHING = (
    "say nothing of the choices. Switch its reasoning off, or set a feedback.protocol that reads a written verdict after the "
    "reasoning (docs/servers.md)."
)
_OPENING = "Your answer begins with the words below, which are written already. Write only what follows them.\n\n"


class ServerEngine:
    """Answers requests through a server. Made by `connect`, which finds out what is served.

    The fingerprint covers what the server tells of itself: the model's name, `root`, `parent`, context length, size, and how its tokenizer
    and chat template render a short conversation. The address is not in it: move the server and the call store keeps its worth. What no
    server tells (dtype, quantization, new weights in the same folder) isn't in it either: give those another `--served-model-name`.

    Args:
        spec: `path`, `name`, `adapter`, `concurrency`, `timeout_seconds`, `api_key_env`.
        transport: replaces the network, for tests.

    Raises:
        ModelError: the URL or key can't be used.
    """

    def __init__(self, spec: ModelSpec, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.name = spec.path
        self.fingerprint = ""
        self._client = ServerClient(spec, transport)
        self.kind = ""
        """What kind of server it is, in words."""
        self._model = ""
        self._tokenizes = False
        self._opens_reasoning = ""
        self._closes_reasoning = ""
        """What closes at once a reasoning that the chat template opens before every answer; empty if it opens none, or that is unknown."""
        self._learned = LearnedCapabilities(of_owner(""))
        self._switch: dict[str, Any] = {}
        self._choice_tokens: dict[tuple[str, str], Tokens] = {}
        self._no_logprobs = ""  # why there are none, once that is known
        self._asking_for_tokens = asyncio.Lock()

    @classmethod
    async def connect(cls, spec: ModelSpec, transport: httpx2.AsyncBaseTransport | None = None) -> "ServerEngine":
        """Return an engine that knows which model it talks to.

        Raises:
            ModelError: the server can't be reached, doesn't serve the model, or serves several and the spec names none.
        """
        engine = cls(spec, transport)
        try:
            served = await engine._client.connect()
        except BaseException:
            await engine.close()
            raise
        engine.name = f"{engine._client.url} {engine._client.excerpt(served.model)}"
        engine.fingerprint = served.fingerprint
        engine._model, engine._tokenizes = served.model, served.tokenizes
        engine._learned = LearnedCapabilities(of_owner(served.owner))
        engine.kind = served.kind
        engine._opens_reasoning = opened = opens_reasoning(served.rendered.rstrip(_BLANKS))
        engine._closes_reasoning = f"\n{closing_tag(opened.strip())}\n\n" if opened else ""
        if spec.thinking is not None:
            engine._switch = thinking_switch(spec.thinking)
            engine.fingerprint += f":thinking={spec.thinking}"
            if not engine.capabilities.continues:
                await engine.close()
                raise ModelError(
                    f"{engine.name}: model.thinking is set, and only vLLM, SGLang and llama.cpp are known to take such a switch.\n"
                    "Fix: leave model.thinking out, and switch the reasoning off where the server is started"
                )
        return engine

    @property
    def capabilities(self) -> Capabilities:
        """How the server wants to be asked, as far as it has said so far."""
        return self._learned.can

    async def submit(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            ReplyError: the server can't answer this request, or its reply is unusable.
            ModelError: the server can't go on, or can't answer requests of this kind.
        """
        assert self.fingerprint, "made by ServerEngine.connect"
        if isinstance(request, CompleteRequest):
            return await self._answered(request, partial(self._complete, request))
        if isinstance(request, ChoicesRequest):
            return await self._answered(request, partial(self._choices if self._tokenizes else self._choices_by_text, request))
        if isinstance(request, StateRequest):
            raise ModelError(NO_STATES.format(name=self.name))
        return await self._answered(request, partial(self._score, request))

    async def stream(self, request: CompleteRequest, on_text: OnText) -> Completion:
        """Answer one request piece by piece. Raises as `submit` does."""
        return await self._answered(request, partial(self._complete, request, on_text=on_text))

    async def finish(self) -> None:
        """Wait for the replies to what was sent, and send nothing more."""
        await self._client.finish()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _answered(self, request: Request, ask: Ask[R]) -> R:
        chat = isinstance(request, CompleteRequest) or not self._tokenizes
        return await self._learned.answer(ask, partial(self._turns, request), proves=chat)

    async def _complete(self, request: CompleteRequest, can: Capabilities, on_text: OnText | None = None) -> Completion:
        sampling = request.sampling
        prefill = self._begun(request.prefill, can) if request.prefill else ""
        messages, flags = self._conversation(request.messages, prefill, can)
        body = {
            "model": self._model,
            "messages": messages,
            can.limit: sampling.most_tokens,  # the protocol has one limit
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
        }
        opening = prefill if can.echoes or not can.continues else ""
        thinks = "" if prefill and can.continues else self._opens_reasoning
        read = partial(read_completion, max_tokens=sampling.most_tokens, opening=opening, opened=thinks)
        body = without(body | flags | can.sampling, can)
        return await (self._client.chat(body, read) if on_text is None else self._client.stream(body, on_text, read))

    async def _choices(self, request: ChoicesRequest, can: Capabilities) -> ChoiceLogprobs:
        """Sum each choice's token log-probabilities along the tree of the choices' tokens."""
        prompt = await self._prompt(request.messages, request.prefill, can)
        choices = [await self._tokens_of(request, choice, prompt, can) for choice in request.choices]
        branches: dict[Tokens, set[int]] = {}
        for tokens in choices:
            for i, token in enumerate(tokens):
                branches.setdefault(tokens[:i], set()).add(token)
        found = await asyncio.gather(*(self._next_token(prompt + path, sorted(ids), can.top) for path, ids in branches.items()))
        steps = {(*path, token): value for path, logprobs in zip(branches, found, strict=True) for token, value in logprobs.items()}
        totals = []
        for tokens in choices:
            walked = [steps.get(tokens[: i + 1]) for i in range(len(tokens))]
            known = [value for value in walked if value is not None]
            total = sum(known) if len(known) == len(tokens) else await self._prompt_logprob(prompt, tokens)
            totals.append(max(total, NO_PROBABILITY))
        if max(totals) == NO_PROBABILITY:
            raise ReplyError("no_probability", f"{self.name} gives no probability to any of the choices")
        return ChoiceLogprobs(tuple(totals), len(prompt))

    async def _tokens_of(self, request: ChoicesRequest, choice: str, prompt: Tokens, can: Capabilities) -> Tokens:
        """Return a choice's tokens; remembered, as they depend only on what stands right before: the prefill, or the assistant header."""
        key = (request.prefill, choice)
        if key not in self._choice_tokens:
            async with (
                self._asking_for_tokens
            ):  # a stage begins with a window full of questions: the others wait for the first one's answer
                if key not in self._choice_tokens:
                    self._choice_tokens[key] = await self._continuation(request.messages, request.prefill, choice, prompt, can)
        return self._choice_tokens[key]

    async def _choices_by_text(self, request: ChoicesRequest, can: Capabilities) -> ChoiceLogprobs:
        """Look the choices up among the likeliest first tokens: all that servers without token ids can tell, and some not even that."""
        if self._no_logprobs:
            raise NoLogprobsError(self._no_logprobs)
        if self._opens_reasoning and not can.continues:
            raise NoLogprobsError(f"{self.name} reasons first, so the log-probabilities of its next token {_OF_NOTHING}")
        messages, flags = self._conversation(request.messages, self._begun(request.prefill, can), can)
        # Temperature 1: some servers report probabilities after sampling's changes, and 1 changes nothing. The sampled token is ignored.
        body = {
            "model": self._model,
            "messages": messages,
            can.limit: can.least,
            "temperature": 1.0,
            "top_p": 1.0,
            **({"logprobs": can.top} if can.counts else {"logprobs": True, "top_logprobs": can.top}),
        }
        try:
            likely, prompt_tokens = await self._client.chat(without(body | flags, can), read_likeliest)
        except ReplyError as e:
            if "logprob" in e.detail and e.reason == "refused_by_server" and not learned_from(e.detail, can):
                self._no_logprobs = f"{self.name} refuses to give log-probabilities ({e.detail}). {_NO_LOGPROBS}"
                raise NoLogprobsError(self._no_logprobs) from e
            raise
        if not likely:
            self._no_logprobs = f"{self.name} gives no log-probabilities. {_NO_LOGPROBS}"
            raise NoLogprobsError(self._no_logprobs)
        top = max(likely, key=lambda token: likely[token])
        if opens_reasoning(top):
            self._no_logprobs = (
                f"{self.name} reasons first: its next token is {self._client.excerpt(top)!r}, so the log-probabilities {_OF_NOTHING}"
            )
            raise NoLogprobsError(self._no_logprobs)
        found = [self._listed(choice, request.choices, likely) for choice in request.choices]
        covered = min(1.0, sum(map(math.exp, likely.values())))
        if all(value in (None, NO_PROBABILITY) for value in found) or (None in found and covered < _COVERED):
            seen = self._client.excerpt(", ".join(map(repr, list(likely)[:8])))
            wanted = " or ".join(repr(c) for c, value in zip(request.choices, found, strict=True) if value in (None, NO_PROBABILITY))
            raise ReplyError("choice_not_likely", f"{wanted} is not one of the {len(likely)} likeliest next tokens ({seen}, …)")
        possible = [value for value in likely.values() if value > NO_PROBABILITY]
        least = min(*possible, math.log(max(1.0 - covered, _LEAST)))  # a choice that isn't listed is no likelier than this
        return ChoiceLogprobs(tuple(least if value is None else value for value in found), prompt_tokens, every_form=True)

    def _listed(self, choice: str, choices: Sequence[str], likely: dict[str, float]) -> float | None:
        """Return a choice's log-probability, summed over the forms that are one token (" A", "(A", "A "); None if no form is listed."""
        forms = [f"{lead}{opening}{choice.strip()}" for opening in ("", *OPENINGS) for lead in ("", " ")]
        ways = [choice, *(form for form in forms if form not in choices)]
        found = [
            self._checked(value) for token, value in likely.items() if token in ways or (token.rstrip() in ways and token not in choices)
        ]
        if len(found) <= 1:
            return found[0] if found else None
        return math.log(whole) if (whole := sum(map(math.exp, found))) else NO_PROBABILITY

    async def _score(self, request: ScoreRequest, can: Capabilities) -> TextLogprob:
        if not self._tokenizes:
            raise NoLogprobsError(
                f"{self.name} can't say how likely a given text is: that takes vLLM with its /tokenize address. "
                "Serve the model with `vllm serve MODEL`, or use a feedback.protocol other than likelihood."
            )
        if not request.text:
            raise ReplyError("empty_text", "there is no text to score")
        prompt = await self._prompt(request.messages, "", can)
        tokens = await self._continuation(request.messages, "", request.text, prompt, can)
        if (total := await self._prompt_logprob(prompt, tokens)) <= NO_PROBABILITY:
            raise ReplyError("no_probability", f"{self.name} gives no probability to a token of the text")
        return TextLogprob(total, len(tokens), len(prompt))

    def _begun(self, prefill: str, can: Capabilities) -> str:
        """Return a prefill that closes the reasoning which llama.cpp opens before it. vLLM renders an answer that has begun without one."""
        return self._closes_reasoning + prefill if can.continues and not self._tokenizes else prefill

    async def _prompt(self, messages: Sequence[Message], prefill: str, can: Capabilities) -> Tokens:
        """Return the tokens after which the answer follows, and not the reasoning that the chat template opens."""
        if prefill and can.continues:
            return await self._tokenize(messages, prefill, can)
        tokens = await self._tokenize(messages, "", can)
        begun = self._closes_reasoning + prefill
        return tokens + await self._tokens_alone(begun) if begun else tokens

    async def _tokenize(self, messages: Sequence[Message], prefill: str, can: Capabilities) -> Tokens:
        turns, flags = self._conversation(messages, prefill, can)
        return await self._tokens({"messages": turns, **flags})

    async def _tokens_alone(self, text: str) -> Tokens:
        return await self._tokens({"prompt": text, "add_special_tokens": False})

    async def _tokens(self, body: dict[str, Any]) -> Tokens:
        return tuple((await self._client.post_root("/tokenize", {"model": self._model, **body}, TokenList)).tokens)

    async def _continuation(self, messages: Sequence[Message], prefill: str, text: str, prompt: Tokens, can: Capabilities) -> Tokens:
        """Return a text's tokens where it follows the prompt; where it would change the prompt's last tokens, its tokens alone."""
        whole = await self._tokenize(messages, prefill + text, can) if can.continues else ()
        tokens = whole[len(prompt) :] if whole[: len(prompt)] == prompt else await self._tokens_alone(text)
        if not tokens:
            raise ReplyError("empty_text", f"{text[:60]!r} is no tokens in this model's template")
        return tokens

    async def _next_token(self, prompt: Tokens, wanted: list[int], top: int) -> dict[int, float]:
        """Return log-probabilities of tokens that may come next: those wanted, or on an old server the likeliest ones."""
        # No seed: what is sampled is ignored, and vLLM's CPU build dies of a seeded request whose prompt it takes in two steps.
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "logprobs": top}
        body |= {"logprob_token_ids": wanted, "return_tokens_as_token_ids": True}
        found = await self._client.text(body, partial(read_next_token, wanted=wanted))
        if found is None:
            raise NoLogprobsError(f"{self.name} gives no log-probabilities. {_NO_LOGPROBS}")
        return {token: self._checked(value) for token, value in found.items()}

    async def _prompt_logprob(self, prompt: Tokens, tokens: Tokens) -> float:
        """Return the log-probability of tokens after a prompt."""
        ids = prompt + tokens
        body = {"model": self._model, "prompt": ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        found = await self._client.text(body, partial(read_prompt_logprobs, ids=ids, start=len(prompt)))
        if found is None:
            raise NoLogprobsError(f"{self.name} gives no prompt log-probabilities. {_NO_LOGPROBS}")
        return sum(map(self._checked, found))

    def _checked(self, logprob: float) -> float:
        if logprob > 1e-3:
            raise ModelError(
                f"{self.name} sent {logprob:g} as a log-probability. Start vLLM with --logprobs-mode raw_logprobs (its default)."
            )
        return logprob

    def _turns(self, request: Request, can: Capabilities) -> list[dict[str, str]]:
        """Return the turns that a request is sent with. vLLM is sent choices and texts as begun answers, to tokenize."""
        if isinstance(request, CompleteRequest):
            prefill = request.prefill and self._begun(request.prefill, can)
        else:
            prefill = "…" if self._tokenizes else self._begun(getattr(request, "prefill", ""), can)
        return self._conversation(request.messages, prefill, can)[0]

    def _conversation(self, messages: Sequence[Message], prefill: str, can: Capabilities) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Return messages, with `prefill` as the start of the assistant's turn, or asked for in words, and the flags that go with them."""
        if not can.system:
            messages = without_system(messages) or messages
        turns = as_json(alternating(messages) if can.joins else messages)
        if not prefill:
            return turns, self._switch
        if not can.continues:
            prefill = split_reasoning(prefill).answer
        if can.continues:
            return [*turns, {"role": "assistant", "content": prefill}], can.flags | self._switch
        if turns and turns[-1]["role"] == "user":
            turns[-1]["content"] += f"\n\n{_OPENING}{prefill}"
        else:
            turns.append({"role": "user", "content": f"{_OPENING}{prefill}"})
        return turns, self._switch
