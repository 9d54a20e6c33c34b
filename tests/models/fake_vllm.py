"""A vLLM server in memory: a toy tokenizer and a toy distribution, asked over httpx2's mock transport.

`/tokenize`, prompt log-probabilities and next-token log-probabilities all come from the same two functions, so a client that sums the
wrong tokens gets the wrong number. `hooks` answer first where they return a response: that is how tests make it misbehave.
"""

import functools
import json
import math
import string
from collections.abc import Callable
from typing import Any

import httpx2

from cai.ids import split_fraction

VOCAB = ["<system>", "<user>", "<assistant>", "<end>", "Yes", "No", "Not", " Yes", " sure", "ab", *string.printable, "<think>"]
IDS = {token: i for i, token in enumerate(VOCAB)}
Hook = Callable[[httpx2.Request, Any], httpx2.Response | None]


def tokenize(text: str) -> list[int]:
    """Longest match first, so that `a` followed by `b` becomes the one token `ab`."""
    ids = []
    while text:
        token = max((t for t in VOCAB if text.startswith(t)), key=len)
        ids.append(IDS[token])
        text = text[len(token) :]
    return ids


def render(messages: list[dict[str, str]], open_end: bool, opens: str = "") -> str:
    """The chat template; `open_end` leaves the last turn open, and `opens` begins every other answer."""
    text = "".join(f"<{m['role']}>{m['content']}<end>" for m in messages)
    return text.removesuffix("<end>") if open_end else text + "<assistant>" + opens


def logprob(prefix: list[int], token: int) -> float:
    """Log-probability of a token after a prefix: hashed weights, normalised over the vocabulary."""
    return _distribution(tuple(prefix))[token]


@functools.lru_cache(maxsize=4096)
def _distribution(prefix: tuple[int, ...]) -> list[float]:
    weights = [0.05 + split_fraction(str(prefix), str(t)) for t in range(len(VOCAB))]
    total = sum(weights)
    return [math.log(w / total) for w in weights]


def total(prompt: str, text: str) -> float:
    """Log-probability of a text after a prompt, tokenized together."""
    before, ids = tokenize(prompt), tokenize(prompt + text)
    return sum(logprob(ids[:i], ids[i]) for i in range(len(before), len(ids)))


class FakeVllm:
    """Serves the toy model. `old` ignores `logprob_token_ids`, as vLLM before 0.22 did; the chat template begins answers with `opens`."""

    def __init__(self, hooks: list[Hook] | None = None, old: bool = False, top: int = 20, opens: str = "", **card: Any) -> None:
        self.hooks = hooks or []
        self.opens = opens
        self.old = old
        self.top = top
        self.cards: list[dict[str, Any]] = [
            {"id": "toy", "owned_by": "vllm", "root": "/models/toy", "parent": None, "max_model_len": 512, "created": 1} | card
        ]
        self.seen: list[tuple[str, Any]] = []
        self.headers: list[httpx2.Headers] = []
        self.transport = httpx2.MockTransport(self._answer)

    def bodies(self, path: str) -> list[Any]:
        return [body for seen, body in self.seen if seen == path]

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content) if request.content else None
        self.seen.append((request.url.path, body))
        self.headers.append(request.headers)
        for hook in self.hooks:
            if (response := hook(request, body)) is not None:
                return response
        if request.url.path == "/health":
            return httpx2.Response(200)
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"object": "list", "data": self.cards})
        if request.url.path == "/tokenize":
            return self._tokenize(body)
        if request.url.path == "/v1/chat/completions":
            return self._chat(body)
        if request.url.path == "/v1/completions":
            return self._complete(body)
        return httpx2.Response(404, json={"detail": "Not Found"})

    def _render(self, body: Any) -> str:
        return render(body["messages"], body.get("continue_final_message", False), self.opens)

    def _tokenize(self, body: Any) -> httpx2.Response:
        ids = tokenize(self._render(body) if "messages" in body else body["prompt"])
        strings = [VOCAB[i] for i in ids] if body.get("return_token_strs") else None
        return httpx2.Response(200, json={"count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": strings})

    def _chat(self, body: Any) -> httpx2.Response:
        prompt = tokenize(self._render(body))
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": len(prompt) + 1}
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}
        if body.get("logprobs"):
            likely = sorted(((logprob(prompt, t), VOCAB[t]) for t in range(len(VOCAB))), reverse=True)[: body["top_logprobs"]]
            top = [{"token": token, "logprob": value, "bytes": None} for value, token in likely]
            choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        return httpx2.Response(200, json={"id": "x", "choices": [choice], "usage": usage})

    def _complete(self, body: Any) -> httpx2.Response:
        prompt = body["prompt"]
        choice: dict[str, Any] = {"index": 0, "text": "Y", "finish_reason": "length"}
        if "prompt_logprobs" in body:
            rows = [{str(t): {"logprob": logprob(prompt[:i], t), "rank": 1, "decoded_token": VOCAB[t]}} for i, t in enumerate(prompt)]
            choice["prompt_logprobs"] = [None, *rows[1:]]
        if "logprobs" in body:
            likely = sorted(range(len(VOCAB)), key=lambda t: -logprob(prompt, t))[: self.top]
            wanted = likely if self.old else [likely[0], *body["logprob_token_ids"]]
            choice["logprobs"] = {"top_logprobs": [{f"token_id:{t}": logprob(prompt, t) for t in wanted}]}
        return httpx2.Response(200, json={"id": "x", "choices": [choice], "usage": {"prompt_tokens": len(prompt)}})
