"""Finds out how a server wants to be asked, while it is asked.

What a refusal says is remembered at once, for all requests (`capabilities.learned_from`). Where it says nothing, the request is tried
with other turns, and these are remembered if it is answered (`capabilities.guesses`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cai.errors import ReplyError
from cai.models.server.capabilities import Capabilities, guesses, learned_from

R = TypeVar("R")
Ask = Callable[[Capabilities], Awaitable[R]]
Turns = Callable[[Capabilities], Sequence[Mapping[str, str]]]


class LearnedCapabilities:
    """What is known of one server's capabilities.

    Args:
        known: before it is asked.
    """

    def __init__(self, known: Capabilities) -> None:
        self.can = known
        self._taken: set[str] = set()
        """Fields for turns that it has taken: `system`, and `continues`."""
        self._trying = asyncio.Lock()

    async def answer(self, ask: Ask[R], turns: Turns, proves: bool) -> R:
        """Ask as the server wants to be asked.

        Args:
            ask: sends a request in the way that its argument says.
            turns: gives the conversation that it sends.
            proves: whether an answer shows that chat requests may have such turns.

        Raises:
            ReplyError: as `ask` does.
        """
        while True:
            try:
                reply = await self._heeding(ask, {})
            except ReplyError as refusal:
                if not _is_refusal(refusal):
                    raise
                can = self.can
                async with self._trying:
                    if self.can is can:  # else another request's trial has found what is wrong
                        return await self._tried(ask, turns, refusal)
            else:
                if proves:
                    self._taken |= {k for k in ("system", "continues") if turns(self.can) != turns(_changed(self.can, {k: False}))}
                return reply

    async def _tried(self, ask: Ask[R], turns: Turns, refusal: ReplyError) -> R:
        """Ask with other turns, and remember those that are answered. Raises `refusal` if none are."""
        seen = [turns(self.can)]
        for changes in guesses(refusal.detail, self.can, self._taken):
            if (other := turns(_changed(self.can, changes))) in seen:
                continue
            seen.append(other)
            try:
                reply = await self._heeding(ask, changes)
            except ReplyError as e:
                if not _is_refusal(e):
                    raise
            else:
                self._remember(changes, refusal)
                return reply
        raise refusal

    async def _heeding(self, ask: Ask[R], changes: Mapping[str, Any]) -> R:
        """Ask, and again where a refusal says how, to this request or meanwhile to another."""
        while True:
            can = self.can
            try:
                return await ask(_changed(can, changes))
            except ReplyError as e:
                if not _is_refusal(e):
                    raise
                if self.can is can and (learned := learned_from(e.detail, can)):
                    self._remember(learned, e)
                if self.can is can:
                    raise

    def _remember(self, changes: Mapping[str, Any], refusal: ReplyError) -> None:
        self.can = _changed(self.can, {**changes, "refusals": {**self.can.refusals, **dict.fromkeys(changes, refusal.detail)}})


def _changed(can: Capabilities, changes: Mapping[str, Any]) -> Capabilities:
    return replace(can, **changes)


def _is_refusal(error: ReplyError) -> bool:
    """Whether a server refuses the request as it is written."""
    return error.reason == "refused_by_server" and error.detail.startswith(("400:", "422:", "500:", "501:"))
