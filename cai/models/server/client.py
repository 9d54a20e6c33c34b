"""Asks one model server through the `openai` client, with errors that say what to do.

The client does the HTTP, the retries (lost connections, time-outs, 408, 409, 429, 5xx) and honours `Retry-After`. What is added here:

- at most `concurrency` requests are in flight, waits between tries included, so that a server in trouble sees less traffic;
- a reply ends within `timeout_seconds` and `MAX_REPLY_BYTES`, however slowly it trickles;
- a reply that can't be read is asked for again, then it is the item's counted failure (`malformed_reply`);
- what is left after the last try is the item's failure (`ReplyError`) if others were answered meanwhile, and the server's (`ModelError`)
  otherwise;
- after a lost connection the server is asked again what it serves, before another reply of it is used, as far as it can say: a router
  whose servers change may answer requests and not that;
- the API key comes from the environment variable that the recipe names, goes only to the host that it was first used with, and is cut out
  of every reply and message; a server on this machine is never asked through a proxy.
"""

import asyncio
import email.utils
import math
import re
import zlib
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec
from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI, AsyncStream
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from cai.core.interrupt import Gate
from cai.core.jsonl import NOT_JSON
from cai.core.waiting import NOTICE_SECONDS, tell_waiting
from cai.errors import ModelError, ReplyError
from cai.models.base import OnText
from cai.models.server.address import check_url, is_loopback, read_key, root_of
from cai.models.server.served import NotServedError, Served, identify
from cai.recipe import ModelSpec

T = TypeVar("T")
RETRIES = 7
"""Of the client, after the first try: its waits add up to half a minute, in which a server may come back."""
FIRST_RETRIES = 2
"""At the start, where nothing answers: a wrong address is told in seconds."""
READ_TRIES = 3
"""How often a reply is asked for that can't be read."""
MAX_REPLY_BYTES = 32 * 1024 * 1024
MAX_HELD_BYTES = 256 * 1024 * 1024
"""Of all replies that are being read at one time."""
_SECRET_CHARACTERS = 8
"""Shorter keys are placeholders ("EMPTY", "none"), which a model may well say."""
_CONNECT_SECONDS = 10.0
_SPARE_CONNECTIONS = 2  # to ask a server again what it serves while its requests wait
_GONE = {502, 503, 504}
_RETRIED = {408, 409, 429}
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
_UNREADABLE = (AttributeError, TypeError, LookupError, ValueError, RecursionError, MemoryError, *NOT_JSON)
"""What reading a reply raises that isn't what it must be: the client's types take whatever JSON came, unchecked."""


class UnansweredError(ModelError):
    """The server can't be reached, or fails at every try: it said nothing about itself."""


class FailingError(UnansweredError):
    """The server, or a router before it, answers, and with errors: it may be starting, or leaving out one that died."""


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
        self._key = None if key is None or len(key) < _SECRET_CHARACTERS else key.encode()

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and return its whole response.

        Raises:
            httpx2.RequestError: as httpx2 does, also for a reply that takes too long or is too long.
        """
        async with self.sending:
            if options.get("stream"):  # the caller reads the pieces as they come
                return await super().send(request, **options)
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
        if (response.status_code in _RETRIED or response.status_code >= 500) and seconds.isdecimal() and int(seconds) > NOTICE_SECONDS:
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

    async def _exchange(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        return await self._read(await super().send(request, **{**options, "stream": True}), request)

    async def _read(self, response: httpx2.Response, request: httpx2.Request) -> httpx2.Response:
        """Return a response with its content, unpacked, and without the key. Raises `EndlessError` before it fills the memory."""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        unpacked = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # gzip or zlib
        pieces, size = [], 0
        try:
            if unpacked is not None and encoding not in ("gzip", "x-gzip", "deflate"):
                raise httpx2.DecodingError(f"packed as {encoding[:40]!r}, which was not asked for", request=request)
            async for raw in response.stream:  # type: ignore[union-attr]  # an asynchronous one
                piece = raw if unpacked is None else unpacked.decompress(raw, MAX_REPLY_BYTES + 1)
                pieces.append(piece)
                added = max(len(piece), len(raw))
                size, self._held = size + added, self._held + added
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
        if self._key is not None:
            content = content.replace(self._key, b"***")
            if b"\\u00" in content or b"/" in self._key or b'"' in self._key or b"\\" in self._key:
                content = _spelled(self._key).sub(b"***", content)
        return httpx2.Response(response.status_code, headers=headers, content=content, request=request)


@lru_cache(maxsize=8)
def _spelled(key: bytes) -> "re.Pattern[bytes]":
    """Match a key in a JSON text, however its characters are escaped."""
    return re.compile("".join(f"(?:\\\\?{re.escape(c)}|\\\\u(?i:{ord(c):04x}))" for c in key.decode()).encode())


class ServerClient:
    """Asks one server.

    Args:
        spec: uses `path`, `name`, `adapter`, `concurrency`, `timeout_seconds`, `api_key_env`.
        transport: replaces the network, for tests.

    Raises:
        ModelError: the URL or key can't be used.
    """

    def __init__(self, spec: ModelSpec, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.url = check_url(spec.path)
        self._spec = spec
        self._key = read_key(spec.api_key_env, self.url)
        self._http = BoundedClient(self.url, spec, self._key, transport)
        self._client = AsyncOpenAI(
            api_key="unused",  # the HTTP client sets the key, or none
            base_url=self.url,
            timeout=httpx2.Timeout(None, connect=min(_CONNECT_SECONDS, spec.timeout_seconds)),  # the HTTP client has the reply's
            max_retries=RETRIES,
            http_client=self._http,
        )
        self._places = asyncio.Semaphore(spec.concurrency)
        self._answered = 0
        self._served: Served | None = None
        self._looking = asyncio.Lock()

    async def connect(self) -> Served:
        """Find out what the server serves.

        Raises:
            ModelError: it can't be reached, refuses the key, or doesn't serve the model.
        """
        try:
            self._served = await self._identify(FIRST_RETRIES)
        except FailingError:
            self._served = await self._identify(RETRIES)
        return self._served

    async def chat(self, body: dict[str, Any], read: Callable[[ChatCompletion], T]) -> T:
        """Ask `/chat/completions`, as often as it takes, and return what `read` makes of the reply.

        Args:
            body: the request, with what servers add to the protocol.
            read: raises `ValueError`, or whatever reading a wrong type raises, for a reply that can't be right.

        Raises:
            ReplyError: this request can't be answered: `prompt_too_long`, `refused_by_server`, `malformed_reply`, `server_error` or
                `timeout`.
            NotServedError: 404 or 405.
            ModelError: the server can't be reached, refuses the key, fails on everything, or has come back as another model.
        """
        return await self._ask("/chat/completions", body, lambda response: read(ChatCompletion.construct(**response.json())))

    async def stream(self, body: dict[str, Any], on_text: OnText, read: Callable[[ChatCompletion], T]) -> T:
        """Ask `/chat/completions` for a reply in pieces, once; `on_text` receives each piece. Raises as `chat` does."""
        said: dict[str, str] = {"content": "", "reasoning_content": ""}
        ended = None
        async with self._places:
            try:
                events = await self._client.post(
                    "/chat/completions",
                    cast_to=ChatCompletionChunk,
                    body={**body, "stream": True},
                    options={"timeout": self._spec.timeout_seconds},  # between two pieces
                    stream=True,
                    stream_cls=AsyncStream[ChatCompletionChunk],
                )
                async for event in events:
                    for choice in (event.choices or ())[:1]:
                        for field in said:
                            piece = getattr(choice.delta, field, None) or ""
                            said[field] += piece
                            if len(said[field]) > MAX_REPLY_BYTES:
                                raise ValueError(f"longer than {MAX_REPLY_BYTES // 2**20} MiB")
                            on_text(self._masked(piece))
                        ended = choice.finish_reason or ended
            except (APIError, httpx2.HTTPError) as e:
                raise self._error(e if isinstance(e, APIError) else APIConnectionError(message=str(e), request=e.request), False) from None
            except _UNREADABLE as e:
                raise ReplyError("malformed_reply", self.excerpt(_problem(e))) from None
        try:
            message = {field: self._masked(text) for field, text in said.items()}
            return read(ChatCompletion.construct(choices=[{"finish_reason": ended, "message": message}]))
        except _UNREADABLE as e:
            raise ReplyError("malformed_reply", self.excerpt(_problem(e))) from None

    async def text(self, body: dict[str, Any], read: Callable[[TextCompletion], T]) -> T:
        """Ask `/completions`; as `chat`."""
        return await self._ask("/completions", body, lambda response: read(TextCompletion.construct(**response.json())))

    async def post_root(self, path: str, body: dict[str, Any], shape: type[T]) -> T:
        """Ask what vLLM has beside the protocol, at the server's root without `/v1`; as `chat`, with the reply read as `shape`."""
        return await self._ask(f"{root_of(self.url)}{path}", body, lambda response: msgspec.json.decode(response.content, type=shape))

    async def finish(self) -> None:
        """Wait for the replies to what was sent, and send nothing more."""
        await self._http.sending.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key and len(self._key) >= _SECRET_CHARACTERS else text

    def excerpt(self, text: str, length: int = 300) -> str:
        """Return the start of a server's words, printable, in one line, and without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * length]).split())
        return line if len(line) <= length else line[:length] + "…"

    async def _ask(self, path: str, body: dict[str, Any], read: Callable[[httpx2.Response], T]) -> T:
        # Not `chat.completions.create`, which looks at every token of a prompt: 145 ms for a prompt of 1,400.
        async with self._places:
            return await self._answer(
                lambda: self._client.post(path, cast_to=httpx2.Response, body=body), read, before_reading=self._ensure_same_model
            )

    async def _answer(
        self,
        send: Callable[[], Awaitable[httpx2.Response]],
        read: Callable[[httpx2.Response], T],
        before_reading: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Send until a reply can be read. Without `before_reading` it is no item that asks, and a failure is the server's."""
        answered_before = self._answered
        for tries_left in reversed(range(READ_TRIES)):
            try:
                response = await send()
            except APIError as e:
                raise self._error(e, before_reading is not None and self._answered > answered_before) from None
            if before_reading is not None:
                await before_reading()
            try:
                reply = read(response)
            except _UNREADABLE as e:
                if not tries_left:
                    raise ReplyError("malformed_reply", self.excerpt(f"{_problem(e)}: {response.text}", 400)) from None
            except ReplyError as e:
                self._answered += 1
                raise ReplyError(e.reason, self.excerpt(e.detail)) from None
            else:
                self._answered += 1
                return reply
        raise AssertionError("returned or raised at the last try")

    async def _identify(self, retries: int) -> Served:
        client = self._client.with_options(max_retries=retries)

        async def look(path: str, body: dict[str, Any] | None, shape: Any) -> Any:
            def send() -> Awaitable[httpx2.Response]:
                if body is None:
                    return client.get(path, cast_to=httpx2.Response)
                return client.post(f"{root_of(self.url)}{path}", cast_to=httpx2.Response, body=body)

            return await self._answer(send, lambda response: msgspec.json.decode(response.content, type=shape))

        return await identify(look, self.url, self._spec, self.excerpt)

    async def _ensure_same_model(self) -> None:
        """After a lost connection, see that the server didn't come back as another model. Whoever asks meanwhile waits."""
        if not self._http.lost:
            return
        async with self._looking:
            if not self._http.lost:
                return
            self._http.lost = False
            try:
                served = await self._identify(retries=0)
                assert self._served is not None
                if differences := served.differences(self._served):
                    raise ModelError(
                        f"{self.url} doesn't serve the same model as before: {self.excerpt('; '.join(differences))}. Start it as it was, "
                        "with the same model, name, adapter, context length and chat template, and run the same command again."
                    )
            except UnansweredError:
                self._http.lost = True  # the next reply asks again
            except BaseException:
                self._http.lost = True
                raise

    def _error(self, error: APIError, others_answered: bool) -> ModelError:
        """Return what to raise for what the client gave up on."""
        if isinstance(error, APIStatusError):
            failure, of_item = self._refusal(error)
        else:
            failure, of_item = self._loss(error)
        return of_item if others_answered and of_item is not None else failure

    def _loss(self, error: APIError) -> tuple[ModelError, ReplyError | None]:
        """Return the error for a reply that never came, and the one to raise instead if others were answered."""
        cause = error.__cause__ or error
        if isinstance(cause, httpx2.DecodingError):
            malformed = ReplyError("malformed_reply", self.excerpt(str(cause)))
            return malformed, malformed
        if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
            return ModelError(f"{self.url}: can't be asked ({self.excerpt(str(cause))})"), None
        if isinstance(error, APITimeoutError) and not isinstance(cause, httpx2.ConnectTimeout):
            text = f"no reply within {self._spec.timeout_seconds:g} s, at every try"
            advice = "Raise timeout_seconds, lower concurrency, or restart the server."
            return UnansweredError(f"{self.url}: {text}. {advice} {_KEPT}"), ReplyError("timeout", text)
        assert isinstance(error, APIConnectionError), repr(error)
        text = self.excerpt(str(cause)) or type(cause).__name__
        port = urlsplit(self.url).port
        start = f"vllm serve {self._spec.name or 'MODEL'}{f' --port {port}' if port else ''}"
        failure = UnansweredError(f"can't reach {self.url} ({text}): start it with `{start}`, or correct model.path. {_KEPT}")
        refused = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
        return failure, None if refused else ReplyError("server_error", f"connection lost: {text}")

    def _refusal(self, error: APIStatusError) -> tuple[ModelError, ReplyError | None]:
        """Return the error for a status that isn't a success, and the one to raise instead if others were answered."""
        status, said = error.status_code, self.excerpt(_message(error))
        where = f"{self.url} answered {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            held = "is refused" if self._key else "is not set"
            variable = self._spec.api_key_env
            return ModelError(f"{where}\nThe key in ${variable} {held}. Put a valid one there (export {variable}=…)."), None
        if status in (404, 405):
            return NotServedError(f"{where}\nCheck model.path (most servers want it to end in /v1) and model.name."), None
        if status == 429:
            wait = self.excerpt(error.response.headers.get("retry-after", ""), 40)
            asked = f", and asks to wait (Retry-After: {wait})" if wait else ""
            return UnansweredError(
                f"{where}\nThe server limits how fast it is asked{asked}. Lower model.concurrency, or wait. {_KEPT}"
            ), None
        if status in _RETRIED or status >= 500:
            failure = FailingError(f"{where}\nThe server failed at every try. See its log, and restart it. {_KEPT}")
            return failure, ReplyError("server_error", str(failure)) if status >= 500 else None
        if status < 400:
            location = self.excerpt(error.response.headers.get("location", "nowhere"))
            return ModelError(f"{where}\nIt redirects to {location}. Put the right URL into model.path."), None
        refusal = ReplyError(
            "prompt_too_long" if any(words in said.lower() for words in _TOO_LONG) else "refused_by_server", f"{status}: {said}"
        )
        return refusal, refusal


def _problem(error: Exception) -> str:
    """Say what is wrong with a reply: in our words where we looked, else that it isn't the protocol's."""
    worded = isinstance(error, ValueError | msgspec.DecodeError) and not isinstance(error, UnicodeDecodeError)
    return str(error) if worded else f"not a reply of the OpenAI protocol ({type(error).__name__})"


def _message(error: APIStatusError) -> str:
    """Return what an error's body says: `error.message` as OpenAI has it, `message` or `detail` as others, else the body."""
    body = error.body
    said: object = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(said, dict):
        said = said.get("message") or said.get("detail")
    return said if isinstance(said, str) else error.response.text
