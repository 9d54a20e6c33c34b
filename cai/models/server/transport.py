"""An HTTP client whose replies end: within a time and a size, and without the API key.

The key goes only where the client was made for, and is cut out of every reply; a server on this machine is never asked through a proxy.
"""

import asyncio
import email.utils
import math
import re
import zlib
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Any

import httpx2

from cai.core.interrupt import Gate
from cai.core.waiting import NOTICE_SECONDS, tell_waiting
from cai.models.server.address import is_loopback
from cai.models.server.refusals import RETRIED, is_refusal, words_in
from cai.recipe import ModelSpec

MAX_REPLY_BYTES = 32 * 1024 * 1024
MAX_HELD_BYTES = 256 * 1024 * 1024
"""Of all replies that are being read at one time."""
MAX_PARTS = 1_000_000
"""Commas of a reply: there are as many values in it, and each takes up to a kibibyte once it is read."""
SECRET_CHARACTERS = 8
"""Shorter keys are placeholders ("EMPTY", "none"), which a model may well say."""
_SPARE_CONNECTIONS = 2  # to ask a server again what it serves while its requests wait
_GONE = {502, 503, 504}
_TRIES, _TRY_AGAIN = "x-stainless-retry-count", "x-should-retry"
"""Headers of the `openai` client's: which try a request is, and, in a reply, whether to send it again."""


class EndlessError(httpx2.DecodingError):
    """A reply that is longer than any can be."""


def wait_until_seconds(headers: httpx2.Headers) -> float | None:
    """Return how long a server asks to wait that says it as a date (RFC 9110 §10.2.3), by its own clock; None otherwise.

    The `openai` client reads such a date by this machine's clock, and asks no more where that is some minutes slow.
    """
    try:
        until, today = (email.utils.parsedate_to_datetime(headers[name]).timestamp() for name in ("retry-after", "date"))
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return max(until - today, 0.0)


class BoundedClient(httpx2.AsyncClient):
    """An HTTP client whose replies end, within a time and a size. It may be told to send no more (`sending.close()`).

    Args:
        url: of the server; no proxy is used where that is this machine.
        spec: `concurrency`, `timeout_seconds`.
        key: the API key, if any.
        transport: replaces the network, for tests.
    """

    def __init__(self, url: str, spec: ModelSpec, key: str | None, transport: httpx2.AsyncBaseTransport | None) -> None:
        connections = spec.concurrency + _SPARE_CONNECTIONS

        def authorize(request: httpx2.Request) -> httpx2.Request:
            for name in ("authorization", "openai-organization", "openai-project"):  # the client reads OPENAI_… variables of its own
                request.headers.pop(name, None)
            if key:
                request.headers["authorization"] = f"Bearer {key}"
            request.headers["accept-encoding"] = "identity"
            return request

        super().__init__(
            auth=authorize,
            transport=transport,
            trust_env=not is_loopback(url),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        self.sending = Gate()
        self.lost = False
        """Whether a connection broke, or a gateway lost it, since this was last set to False."""
        self._seconds = spec.timeout_seconds
        self._held = 0
        self._key = None if key is None or len(key) < SECRET_CHARACTERS else key.encode()

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and return its whole response.

        Raises:
            httpx2.RequestError: as httpx2 does, also for a reply that takes too long or is too long.
        """
        async with self.sending:
            if options.get("stream"):  # the caller reads the pieces as they come
                streamed = await super().send(request, **options)
                return await (self._bounded if streamed.is_success else self._read)(streamed, request)
            reply = asyncio.create_task(self._exchange(request, options))
            reply.add_done_callback(lambda task: task.cancelled() or task.exception())  # is looked at, also if this task is cancelled
            try:
                await self._wait(reply)
            finally:
                if not reply.done():
                    reply.cancel()
                    await asyncio.wait({reply})
            if reply.cancelled():
                raise httpx2.ReadTimeout(f"no whole reply within {self._seconds:g} s", request=request)
            try:
                response = reply.result()
            except httpx2.TransportError as e:
                self.lost = self.lost or not isinstance(e, httpx2.TimeoutException)
                raise
        self.lost = self.lost or response.status_code in _GONE
        seconds = response.headers.get("retry-after", "")
        if (response.status_code in RETRIED or response.status_code >= 500) and seconds.isdecimal() and float(seconds) > NOTICE_SECONDS:
            where = f"{request.url.host} answered {response.status_code} and asks to wait (Retry-After: {seconds[:9]} s)"
            tell_waiting("server", f"{where}. Requests are sent again; to send fewer at once, lower model.concurrency.")
        return response

    async def _wait(self, reply: "asyncio.Task[httpx2.Response]") -> None:
        """Wait until a reply is there or its time is over.

        The time is counted in short steps, and a step that takes longer than it should counts as a step. So time in which this process was
        stopped (Ctrl-Z) or busy doesn't count, and a reply that arrived meanwhile is read, not asked for and paid again.
        """
        step = min(1.0, self._seconds / 10)
        for _ in range(math.ceil(self._seconds / step)):
            if (await asyncio.wait({reply}, timeout=step))[0]:
                return

    async def _bounded(self, response: httpx2.Response, request: httpx2.Request) -> httpx2.Response:
        """Return a response whose pieces end, and come unpacked."""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            await response.aclose()
            raise httpx2.DecodingError(f"packed as {encoding[:40]!r}, which was not asked for", request=request)
        response.stream = _BoundedStream(response.stream, request)  # type: ignore[arg-type]  # an asynchronous one
        return response

    async def _exchange(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        return await self._read(await super().send(request, **{**options, "stream": True}), request)

    async def _read(self, response: httpx2.Response, request: httpx2.Request) -> httpx2.Response:
        """Return a response with its content, unpacked, and without the key. Raises `EndlessError` before it fills the memory."""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        unpacked = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # gzip or zlib
        pieces, size, parts = [], 0, 0
        try:
            if unpacked is not None and encoding not in ("gzip", "x-gzip", "deflate"):
                raise httpx2.DecodingError(f"packed as {encoding[:40]!r}, which was not asked for", request=request)
            async for raw in response.stream:  # type: ignore[union-attr]  # an asynchronous one
                piece = raw if unpacked is None else unpacked.decompress(raw, MAX_REPLY_BYTES + 1)
                pieces.append(piece)
                added = max(len(piece), len(raw))
                size, self._held, parts = size + added, self._held + added, parts + piece.count(b",")
                _refuse_many(parts, request)
                if size > MAX_REPLY_BYTES or self._held > MAX_HELD_BYTES:
                    most = MAX_REPLY_BYTES if size > MAX_REPLY_BYTES else MAX_HELD_BYTES
                    what = "longer than" if size > MAX_REPLY_BYTES else "all replies in flight are together longer than"
                    raise EndlessError(f"{what} {most // 2**20} MiB", request=request)
        except zlib.error as e:
            raise httpx2.DecodingError(f"not valid {encoding} ({e})", request=request) from e
        except EndlessError:
            pieces, piece, raw = [], b"", b""  # the error's traceback would keep them in memory
            raise
        finally:
            self._held -= size
            await response.aclose()
        headers = httpx2.Headers([(k, v) for k, v in response.headers.multi_items() if k.lower() != "content-encoding"])
        if (wait := wait_until_seconds(headers)) is not None:
            headers["retry-after"] = f"{wait:g}"
        content = b"".join(pieces)
        if request.headers.get(_TRIES, "0") != "0" and is_refusal(response.status_code, words_in(content)):
            headers[_TRY_AGAIN] = "false"
        if self._key is not None:
            content = content.replace(self._key, b"***")
            if b"\\u00" in content or b"/" in self._key or b'"' in self._key or b"\\" in self._key:
                content = _spelled(self._key).sub(b"***", content)
        return httpx2.Response(response.status_code, headers=headers, content=content, request=request)


def _refuse_many(parts: int, request: httpx2.Request) -> None:
    if parts > MAX_PARTS:
        raise EndlessError(f"of more than {MAX_PARTS:,} values", request=request)


class _BoundedStream(httpx2.AsyncByteStream):
    """The pieces of a reply, up to `MAX_REPLY_BYTES` and `MAX_PARTS`."""

    def __init__(self, stream: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self._stream = stream
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = parts = 0
        async for piece in self._stream:
            size, parts = size + len(piece), parts + piece.count(b",")
            _refuse_many(parts, self._request)
            if size > MAX_REPLY_BYTES:
                raise EndlessError(f"longer than {MAX_REPLY_BYTES // 2**20} MiB", request=self._request)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class KeyFilter:
    """Passes a text on piece by piece, without a key that may come in several of them.

    Args:
        key: the key; None or a short one is let through.
        show: receives the pieces.

    >>> shown: list[str] = []
    >>> text = KeyFilter("sk-secret", shown.append)
    >>> for piece in ("my key is sk-", "sec", "ret, s"): text.add(piece)
    >>> text.end()
    >>> shown
    ['my key is ', '***, ', 's']
    """

    def __init__(self, key: str | None, show: Callable[[str], None]) -> None:
        self._key = key if key is not None and len(key) >= SECRET_CHARACTERS else None
        self._show = show
        self._held = ""

    def add(self, piece: str) -> None:
        """Take the next piece. What may be a key's beginning waits for the next one."""
        text = self._held + piece
        self._held = ""
        if self._key is not None:
            text = text.replace(self._key, "***")
            begun = next((n for n in range(min(len(self._key) - 1, len(text)), 0, -1) if text.endswith(self._key[:n])), 0)
            text, self._held = text[: len(text) - begun], text[len(text) - begun :]
        if text:
            self._show(text)

    def end(self) -> None:
        """Pass on what waits: no more comes, so it was no key."""
        if self._held:
            self._show(self._held)


@lru_cache(maxsize=8)
def _spelled(key: bytes) -> "re.Pattern[bytes]":
    """Match a key in a JSON text, however its characters are escaped."""
    return re.compile("".join(f"(?:\\\\?{re.escape(c)}|\\\\u(?i:{ord(c):04x}))" for c in key.decode()).encode())
