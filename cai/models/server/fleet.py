"""Several servers of one model as one: patient retries, least-loaded routing, and replicas that drop out and come back.

A request about a text goes to the replica that its text's hash prefers, since a server's prefix cache lives in that server, unless that
replica has more than its share in flight; then to the next in the hash's order (consistent hashing with bounded loads, Mirrokni et al.
2016). A request about no text in particular goes to whichever has least in flight. No replica has more than `concurrency` in flight; the
rest wait here, not in a queue chosen too early.

A replica whose connections break, that answers 502 to 504, or twice in a row misses a look at its health, is drained: it gets no new
requests, and is asked again and again what it serves. Once it says the same as before it is back. The requests that it took along go to
others at once. One server alone is treated the same way, only that there is no other: what fails is tried again after a wait.

Waits double from one second, spread by a hash of the request (no global random numbers), and give way to the server's `Retry-After`; the
place stays taken, so that servers in trouble see less traffic. What is left after the last try is the request's fault (`ReplyError`) if
others were answered meanwhile, and the servers' (`ModelError`) otherwise.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx

from cai.core.interrupt import Gate
from cai.errors import ModelError
from cai.ids import content_hash, split_fraction
from cai.models.server.http_client import JsonClient, TryFailed, back_off_seconds
from cai.models.server.served import Served, identify
from cai.recipe import ModelSpec

T = TypeVar("T")
TRIES = 6
FIRST_TRIES = 3
"""At the start: a wrong address should be told in seconds; a server that dies later gets half a minute to come back."""
HEALTH_SECONDS = 10.0
"""Between two looks at a replica's health, or at whether it is back."""
FREE_HOPS = 3
"""How often one request goes from a server that is gone to another without a wait. Few: it may be what kills them."""
_SHARE = 1.25
_MISSES = 2
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Replica:
    """One server, and how it is doing."""

    client: JsonClient
    up: bool = False
    lives: int = 0
    """How often it came up: what an earlier life's requests say of it no longer counts."""
    in_flight: int = 0
    answered: int = 0
    trouble: str = ""
    """Why it may not come back, as far as that was said."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it went down: is it really?"""
    check: "asyncio.Task[None] | None" = None


class Fleet:
    """Asks whichever server is there.

    Args:
        spec: uses `path` (one URL, or several with commas between), `concurrency`, and what `JsonClient` and `identify` use.
        transport: replaces the network, for tests.
        sleep: replaces `asyncio.sleep` between tries, for tests.
        health_seconds: between two looks at a replica.

    Raises:
        ModelError: a URL or the key can't be used, or a URL is there twice.
    """

    def __init__(
        self,
        spec: ModelSpec,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        health_seconds: float = HEALTH_SECONDS,
    ) -> None:
        self.replicas = [Replica(JsonClient(url, spec, transport)) for url in spec.urls]
        urls = [r.client.url for r in self.replicas]
        if twice := sorted({url for url in urls if urls.count(url) > 1}):
            raise ModelError(f"model.path: {', '.join(twice)} is there more than once. Name each server once.")
        self._spec = spec
        self._sleep = sleep
        self._health_seconds = health_seconds
        self._served: Served | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._answered = 0
        self._sending = Gate()
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """The first server's URL, and how many others there are."""
        others = len(self.replicas) - 1
        return self.replicas[0].client.url + (f" (+{others})" if others else "")

    async def connect(self) -> Served:
        """Find out what the servers serve, and begin to watch them. Those that aren't there yet may come later; one must be there.

        Raises:
            ModelError: none can be reached, one doesn't serve the model, or they serve different ones.
        """
        found = await asyncio.gather(*(self._first_contact(r) for r in self.replicas), return_exceptions=True)
        for outcome in found:
            if isinstance(outcome, BaseException) and not isinstance(outcome, TryFailed):
                raise outcome
        served = {r.client.url: o for r, o in zip(self.replicas, found, strict=True) if isinstance(o, Served)}
        away = [o.error for o in found if isinstance(o, TryFailed)]
        if not served:
            raise away[0] if len(away) == 1 else ModelError("\n".join(map(str, away)))
        first, self._served = next(iter(served.items()))
        for url, other in served.items():
            if differences := other.differences(self._served):
                raise ModelError(_not_alike(url, differences, first))
        for error in away:
            _log.warning("%s\nWork starts with %d of %d servers; this one is taken in once it answers.", error, len(served), len(found))
        for replica in self.replicas:
            if replica.client.url in served:
                self._back(replica)
        if len(self.replicas) > 1:
            self._watchers = [asyncio.create_task(self._watch(r)) for r in self.replicas]
        return self._served

    async def ask(
        self,
        path: str,
        body: dict[str, Any] | None,
        shape: type[T],
        check: Callable[[T], None] = lambda _: None,
        *,
        about: str = "",
    ) -> T:
        """Ask as `JsonClient.attempt` does, as often and wherever it takes.

        Args:
            path: as there.
            body: as there.
            shape: as there.
            check: as there.
            about: names the text that the request is about; requests about one text share a prefix. Empty: none in particular.

        Raises:
            ReplyError: this request can't be answered: `prompt_too_long`, `refused_by_server`, `malformed_reply`, `server_error` or
                `timeout`.
            NotServedError: 404 or 405.
            ModelError: no server can be reached, one refuses the key, or they fail on everything.
        """
        request_hash = content_hash((path, body))
        answered_before, attempt, hops = self._answered, 0, min(FREE_HOPS, len(self.replicas) - 1)
        failed_at: set[Replica] = set()
        held: Replica | None = await self._take(about, failed_at)
        try:
            while True:
                assert held is not None
                replica, life = held, held.lives
                try:
                    await self._ready(replica)
                    life = replica.lives
                    async with self._sending:
                        reply = await replica.client.attempt(path, body, shape, check)
                except TryFailed as e:
                    failed = e
                else:
                    self._answered += 1
                    replica.answered += 1
                    return reply
                failed_at.add(replica)
                if failed.lost and life == replica.lives:
                    self._drain(replica, str(failed))
                if failed.lost and hops and self._has_others(replica):
                    hops -= 1
                else:
                    attempt += 1
                    if attempt == TRIES:
                        alive = self._answered > answered_before
                        raise failed.of_item if alive and failed.of_item is not None else failed.error
                    await self._sleep(failed.wait_seconds or back_off_seconds(request_hash, attempt - 1))
                if self._has_others(replica):
                    held = None
                    self._give_back(replica)
                    held = await self._take(about, failed_at)
        finally:
            if held is not None:
                self._give_back(held)

    def excerpt(self, text: str) -> str:
        """Return the start of a server's words, as `JsonClient.excerpt` does."""
        return self.replicas[0].client.excerpt(text)

    async def finish(self) -> None:
        """Wait for the replies to what was sent, and send nothing more."""
        await self._sending.close()

    async def close(self) -> None:
        """Stop watching, and close the connections."""
        tasks = [*self._watchers, *(r.check for r in self.replicas if r.check is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in self.replicas:
            await replica.client.close()

    # --- who is asked ---

    def _has_others(self, replica: Replica) -> bool:
        return any(r.up and r is not replica for r in self.replicas)

    def _choose(self, about: str, avoid: Set[Replica]) -> Replica | None:
        """Return the replica to ask, or None where all that are up have their fill. With none up, any may turn out to be back.

        Args:
            about: as in `ask`.
            avoid: those where the request failed before, asked again only where no other has room.
        """
        up = [r for r in self.replicas if r.up] or self.replicas
        free = [r for r in up if r.in_flight < self._spec.concurrency]
        free = [r for r in free if r not in avoid] or free
        if not free:
            return None
        if about and len(free) > 1:
            share = math.ceil(_SHARE * (sum(r.in_flight for r in up) + 1) / len(up))
            within = [r for r in free if r.in_flight < share]
            if within:
                return max(within, key=lambda r: split_fraction(about, r.client.url))
        return min(free, key=lambda r: r.in_flight)

    async def _take(self, about: str, avoid: Set[Replica]) -> Replica:
        """Wait for a replica with room, first come, first served, and hold a place in it."""
        queued = bool(self._waiting)
        again = False
        while queued or (replica := self._choose(about, avoid)) is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if again:
                self._waiting.appendleft(waiter)  # somebody was quicker: this one stays the first in the queue
            else:
                self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.cancelled():
                    self._waiting.remove(waiter)
                else:
                    self._wake(1)
                raise
            queued, again = False, True
        replica.in_flight += 1
        return replica

    def _give_back(self, replica: Replica) -> None:
        replica.in_flight -= 1
        self._wake(1)

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._waiting))):
            self._waiting.popleft().set_result(None)

    # --- who is there ---

    async def _first_contact(self, replica: Replica) -> Served:
        url = replica.client.url
        for attempt in range(FIRST_TRIES - 1):
            try:
                return await identify(replica.client.attempt, url, self._spec)
            except TryFailed as e:
                wait = e.wait_seconds
            await self._sleep(wait or back_off_seconds(content_hash(url), attempt))
        return await identify(replica.client.attempt, url, self._spec)

    async def _ready(self, replica: Replica) -> None:
        """Return at once if a replica is up; otherwise see whether it is back. Whoever asks meanwhile shares the answer."""
        if replica.up:
            return
        if replica.check is None:
            replica.check = asyncio.create_task(self._look(replica))
            replica.check.add_done_callback(partial(_forget_check, replica))
        await asyncio.shield(replica.check)

    async def _look(self, replica: Replica) -> None:
        """Let a replica come back if it serves what it must."""
        url = replica.client.url
        try:
            served = await identify(replica.client.attempt, url, self._spec)
            assert self._served is not None
            if differences := served.differences(self._served):
                raise ModelError(_not_alike(url, differences, "before"))
        except ModelError as e:
            if len(self.replicas) > 1 and str(e) != replica.trouble:
                _log.warning("%s\nIt gets no requests.", e)
            replica.trouble = str(e)
            raise TryFailed(e) from None
        self._back(replica)

    def _back(self, replica: Replica) -> None:
        replica.up, replica.trouble = True, ""
        replica.lives += 1
        self._wake(self._spec.concurrency)

    def _drain(self, replica: Replica, why: str) -> None:
        if not replica.up:
            return
        replica.up = False
        replica.news.set()
        if len(self.replicas) > 1:
            left = sum(r.up for r in self.replicas)
            _log.warning(
                "%s gets no new requests until it answers again; %d of %d servers left. (%s)",
                replica.client.url,
                left,
                len(self.replicas),
                why,
            )

    async def _watch(self, replica: Replica) -> None:
        misses, answered = 0, -1
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._health_seconds):
                    await replica.news.wait()
            replica.news.clear()
            if not replica.up:
                misses = 0
                with contextlib.suppress(TryFailed):
                    await self._ready(replica)
            elif replica.answered != answered or await replica.client.healthy():
                misses = 0
            else:
                misses += 1
                if misses == _MISSES:
                    self._drain(replica, "no answer at /health")
            answered = replica.answered


def _forget_check(replica: Replica, task: "asyncio.Task[None]") -> None:
    replica.check = None
    if not task.cancelled():
        task.exception()  # marks it as seen: whoever waited for it may have been cancelled


def _not_alike(url: str, differences: list[str], than: str) -> str:
    listed = "; ".join(differences)
    return (
        f"{url} doesn't serve the same model as {than}: {listed}. The servers of one model.path answer for each other: start each with the "
        "same model, name, adapter, context length and chat template, or leave the odd one out."
    )
