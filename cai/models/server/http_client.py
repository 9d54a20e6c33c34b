"""JSON over HTTP to one model server, one try at a time, with errors that say what to do.

It knows status codes, nothing of models: `cai.models.server.engine` says what to ask and how to read the reply, `cai.models.server.fleet`
when to try
again and where. Worth another try (`TryFailed`) are lost connections, time-outs, 408, 409, 425, 429, 5xx, and replies that can't be
read. The API key is read once from the environment and cut out of every message.
"""

import asyncio
import email.utils
import math
import os
import time
from collections.abc import Callable
from datetime import UTC
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from cai.core.jsonl import NOT_JSON
from cai.errors import ModelError, ReplyError
from cai.ids import split_fraction
from cai.recipe import ModelSpec

T = TypeVar("T")
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
MAX_REPLY_BYTES = 64 * 1024 * 1024
_CONNECT_SECONDS = 10.0
_HEALTH_SECONDS = 10.0
_SPARE_CONNECTIONS = 2  # so that a look at a server's health never waits for its requests
_RETRIED = {408, 409, 425, 429}
_NOT_THERE = {502, 503, 504}
_KEPT = "Finished calls are kept: run the same command again."
_TOO_LONG = (
    "context length",
    "context_length",
    "context size",
    "context window",
    "maximum model length",
    "max_model_len",
    "too long",
    "is too large",
)


class MalformedError(ValueError):
    """A reply that doesn't have the shape it must have; worth another try."""


class EndlessError(ValueError):
    """A reply that is longer than any can be."""


class NotServedError(ModelError):
    """The server has no such address, or no such model."""


class TryFailed(Exception):
    """One try went wrong in a way that another may not.

    Args:
        error: what to say if it was the last try.
        of_item: what to say instead if the server answered others meanwhile, so that it is this request's own fault.
        wait_seconds: how long the server asks to wait, if it says so.
        lost: the server itself may be gone.
    """

    def __init__(self, error: ModelError, of_item: ReplyError | None = None, wait_seconds: float | None = None, lost: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.of_item = of_item
        self.wait_seconds = wait_seconds
        self.lost = lost


def retry_after_seconds(headers: httpx.Headers, now: float) -> float | None:
    """Return how long the server asks to wait, from 0 to `LONGEST_WAIT_SECONDS`; None where it doesn't say so legibly (RFC 9110 §10.2.3).

    A date is read against the server's own `Date`, so that neither a wrong clock here nor one that jumps makes the wait wrong.

    Args:
        headers: of the reply.
        now: seconds since the epoch, used where the reply has no `Date`.
    """
    value = headers.get("retry-after", "").strip()
    try:
        today = _http_date(headers["date"]) if "date" in headers else now
        seconds = _http_date(value) - today if value.endswith("GMT") else float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def _http_date(text: str) -> float:
    parsed = email.utils.parsedate_to_datetime(text)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def back_off_seconds(request_hash: str, attempt: int) -> float:
    """Return the wait after failed try `attempt` (from 0): doubling, between half and all of it, the same for the same request.

    >>> back_off_seconds("a", 3) == back_off_seconds("a", 3) != back_off_seconds("b", 3)
    True
    """
    longest = min(FIRST_WAIT_SECONDS * 2.0**attempt, LONGEST_WAIT_SECONDS)
    return longest * (0.5 + 0.5 * split_fraction(f"{request_hash}:{attempt}", "back-off"))


def check_url(url: str) -> str:
    """Return a base URL without its last slash.

    Raises:
        ModelError: it isn't plain `http(s)://host[:port]/path`, or has a password or query in it, which would end up in records.
    """
    try:
        parts = urlsplit(url)
        httpx.URL(url)
        _ = parts.port
    except (ValueError, httpx.InvalidURL) as e:
        raise ModelError(f"model.path: not a URL ({e}). Expected for example http://127.0.0.1:8000/v1") from e
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ModelError(
            f"model.path: the URL of {parts.hostname} has a user, password or query in it, and it would be kept in the call store. "
            "Put the key into the environment variable that api_key_env names."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelError(f"model.path: {url!r} is not an http(s) URL. Expected for example http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def read_key(variable: str) -> str | None:
    """Return the API key in an environment variable, or None. Raises `ModelError` where it can't be a header's value."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ModelError(f"${variable}: an API key is plain ASCII in one line; this one isn't (not shown). Set it again.")
    return key or None


class JsonClient:
    """Posts JSON and reads typed replies, for one server.

    Args:
        url: the server's base URL.
        spec: uses `name`, `concurrency`, `timeout_seconds`, `api_key_env`.
        transport: replaces the network, for tests.

    Raises:
        ModelError: the URL or key can't be used.
    """

    def __init__(self, url: str, spec: ModelSpec, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = check_url(url)
        self._spec = spec
        self._key = read_key(spec.api_key_env)
        connections = spec.concurrency + _SPARE_CONNECTIONS
        self._client = httpx.AsyncClient(
            transport=transport,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(spec.timeout_seconds, connect=min(_CONNECT_SECONDS, spec.timeout_seconds), pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def attempt(self, path: str, body: dict[str, Any] | None, shape: type[T], check: Callable[[T], None] = lambda _: None) -> T:
        """Post a body (or get, where it is None) once, and return the reply, read as `shape`.

        Args:
            path: added to the base URL; one that starts with `//` is added to the server's root, without `/v1`.
            body: the JSON to post.
            shape: what the reply must be; fields it doesn't name are ignored.
            check: raises `MalformedError` for a reply of the right shape that still can't be right.

        Raises:
            TryFailed: another try may do better.
            ReplyError: this request can't be answered: `prompt_too_long` or `refused_by_server`.
            NotServedError: 404 or 405.
            ModelError: the server refuses the key, or can't be asked at all.
        """
        try:
            async with asyncio.timeout(self._spec.timeout_seconds):  # httpx's own starts anew with every byte
                response = await self._fetch("GET" if body is None else "POST", self._address(path), body)
        except (httpx.DecodingError, EndlessError) as e:
            raise TryFailed(ReplyError("malformed_reply", self.excerpt(str(e)))) from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as e:
            raise ModelError(f"{self.url}: can't be asked ({self.excerpt(str(e))})") from None
        except (httpx.TransportError, TimeoutError) as e:
            raise self._lost(e) from None
        status = response.status_code
        if response.is_success:
            try:
                reply = msgspec.json.decode(response.content, type=shape)
                check(reply)
            except (MalformedError, *NOT_JSON) as e:
                raise TryFailed(ReplyError("malformed_reply", f"{e}: {self.excerpt(response.text)}")) from None
            return reply
        failure = self._failure(response)
        if status < 500 and status not in _RETRIED:
            raise failure
        of_item = ReplyError("server_error", str(failure)) if status >= 500 else None
        raise TryFailed(failure, of_item, retry_after_seconds(response.headers, time.time()), lost=status in _NOT_THERE)

    async def healthy(self) -> bool:
        """Whether the server answers at `/health` (vLLM's and llama.cpp's; elsewhere a 404 is an answer too)."""
        try:
            async with self._client.stream("GET", self._address("//health"), timeout=_HEALTH_SECONDS) as response:
                return response.status_code < 500  # what it says beside the status, at whatever length, is left unread
        except httpx.HTTPError:
            return False

    async def _fetch(self, method: str, url: str, body: Any) -> httpx.Response:
        """Return a whole response, unpacked. Raises `EndlessError` before it fills the memory."""
        async with self._client.stream(method, url, json=body) as response:
            pieces, size = [], 0
            async for piece in response.aiter_bytes():
                pieces.append(piece)
                size += len(piece)
                if size > MAX_REPLY_BYTES:
                    raise EndlessError(f"longer than {MAX_REPLY_BYTES // 2**20} MiB")
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() != "content-encoding"]
        return httpx.Response(response.status_code, headers=headers, content=b"".join(pieces))

    def _address(self, path: str) -> str:
        return f"{self.url.removesuffix('/v1')}{path[1:]}" if path.startswith("//") else f"{self.url}{path}"

    def excerpt(self, text: str, length: int = 300) -> str:
        """Return the start of a server's words, printable, in one line, and without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * length]).split())
        return line if len(line) <= length else line[:length] + "…"

    def _lost(self, e: httpx.TransportError | TimeoutError) -> TryFailed:
        if isinstance(e, httpx.TimeoutException | TimeoutError) and not isinstance(e, httpx.ConnectTimeout):
            text = f"no reply within {self._spec.timeout_seconds:g} s, at every try"
            error = ModelError(f"{self.url}: {text}. Raise timeout_seconds, lower concurrency, or restart the server. {_KEPT}")
            return TryFailed(error, ReplyError("timeout", text))
        text = self.excerpt(str(e)) or type(e).__name__
        port = urlsplit(self.url).port
        start = f"vllm serve {self._spec.name or 'MODEL'}{f' --port {port}' if port else ''}"
        error = ModelError(f"can't reach {self.url} ({text}): start it with `{start}`, or correct model.path. {_KEPT}")
        refused = isinstance(e, httpx.ConnectError | httpx.ConnectTimeout)
        return TryFailed(error, None if refused else ReplyError("server_error", f"connection lost: {text}"), lost=True)

    def _failure(self, response: httpx.Response) -> ModelError:
        """Return the error for a status that isn't a success."""
        status, said = response.status_code, self.excerpt(_message(response))
        where = f"{self.url} answered {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            held = "is refused" if self._key else "is not set"
            return ModelError(
                f"{where}\nThe key in ${self._spec.api_key_env} {held}. Put a valid one there (export {self._spec.api_key_env}=…)."
            )
        if status in (404, 405):
            return NotServedError(f"{where}\nCheck model.path (most servers want it to end in /v1) and model.name.")
        if status == 429:
            return ModelError(f"{where}\nThe server limits how fast it is asked. Lower model.concurrency, or wait. {_KEPT}")
        if status in _RETRIED or status >= 500:
            return ModelError(f"{where}\nThe server failed at every try. See its log, and restart it. {_KEPT}")
        if status < 400:
            return ModelError(
                f"{where}\nIt redirects to {self.excerpt(response.headers.get('location', 'nowhere'))}. Put the right URL into model.path."
            )
        reason = "prompt_too_long" if any(words in said.lower() for words in _TOO_LONG) else "refused_by_server"
        return ReplyError(reason, f"{status}: {said}")


def _message(response: httpx.Response) -> str:
    """Return what an error's body says: `error.message` as OpenAI has it, `message` or `detail` as others, else the body."""
    try:
        body = msgspec.json.decode(response.content)
    except NOT_JSON:
        return response.text
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else msgspec.json.encode(error).decode()
