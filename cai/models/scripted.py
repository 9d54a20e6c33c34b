"""A deterministic fake model, instant and offline, for tests, drills and dry runs.

Its answers depend only on the request and the script, so two runs agree byte for byte, in any order and with any batching.
"""

import asyncio
import math
import struct
from collections.abc import Callable

from cai.core.interrupt import Gate
from cai.ids import content_hash, derive_seed
from cai.models.requests import (
    ChoiceLogprobs,
    ChoicesRequest,
    CompleteRequest,
    Completion,
    HiddenState,
    Reply,
    Request,
    StateRequest,
    TextLogprob,
)

STATE_SIZE = 8
"""Numbers in a scripted model's hidden state."""
_WORDS = tuple(
    "I can help with that by looking at what matters here first then choosing a safe and honest next step you should talk to someone "
    "who knows your case well before you act on it because small details change the answer and good advice is specific kind clear".split()
)


def default_script(request: Request) -> Reply:
    """Answer any request with text, log-probabilities or hidden states hashed from it."""
    number = int(content_hash(request), 16)
    if isinstance(request, CompleteRequest):
        length = min(request.sampling.max_tokens, 8 + number % 24)
        words = [_WORDS[derive_seed(number % 2**31, i) % len(_WORDS)] for i in range(length)]
        return Completion(" ".join(words).capitalize() + ".", False, sum(len(m.content.split()) for m in request.messages), length)
    prompt_tokens = sum(len(m.content.split()) for m in request.messages)
    if isinstance(request, ChoicesRequest):
        weights = [1 + derive_seed(number % 2**31, choice) % 97 for choice in request.choices]
        return ChoiceLogprobs(tuple(math.log(w / (sum(weights) + 1)) for w in weights), prompt_tokens)
    if isinstance(request, StateRequest):
        mean, last = (
            struct.pack(f"<{STATE_SIZE}f", *(derive_seed(number % 2**31, part, i) % 199 / 99 - 1 for i in range(STATE_SIZE)))
            for part in ("mean", "last")
        )
        return HiddenState(mean, last, prompt_tokens)
    tokens = max(1, len(request.text.split()))
    return TextLogprob(-tokens * (1 + (number % 1000) / 500), tokens, prompt_tokens)


class ScriptedEngine:
    """An engine that answers with a function.

    Args:
        script: returns the reply to a request, or raises `ReplyError`. Must be deterministic.
        name: part of the fingerprint: give different scripts different names.
        delay_seconds: simulated seconds per call, which don't block other calls.
    """

    def __init__(self, script: Callable[[Request], Reply] = default_script, name: str = "scripted", delay_seconds: float = 0.0) -> None:
        self.name = name
        self.fingerprint = f"scripted:{name}"
        self.calls: int = 0
        self.layers = 2
        self._script = script
        self._delay_seconds = delay_seconds
        self._gate = Gate()

    async def submit(self, request: Request) -> Reply:
        """Answer one request from the script."""
        async with self._gate:
            self.calls += 1
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            return self._script(request)

    async def finish(self) -> None:
        """Finish the calls in progress and start no more."""
        await self._gate.close()

    async def close(self) -> None:
        """Nothing to release."""
