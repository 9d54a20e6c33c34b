"""Asks one model server through the `openai` client, with errors that say what to do.

The client does the HTTP, the retries (lost connections, time-outs, 408, 409, 429, 5xx) and honours `Retry-After`. What is added here:

- at most `concurrency` requests are in flight, waits between tries included, so that a server in trouble sees less traffic;
- a reply ends within `timeout_seconds` and `MAX_REPLY_BYTES`, however slowly it trickles (`transport`);
- a 500 that repeats and says that something of the request isn't taken is a refusal, as llama.cpp's are, and no outage (`refusals`);
- a reply that can't be read is asked for again, then it is the item's counted failure (`malformed_reply`);
- what is left after the last try is the item's failure (`ReplyError`) if others were answered meanwhile, and the server's (`ModelError`)
  otherwise;
- after a lost connection the server is asked again what it serves, before another reply of it is used, as far as it can say: a router
  whose servers change may answer requests and not that;
- the API key comes from the environment variable that the recipe names, goes only to the host that it was first used with, and is cut out
  of every reply and message; a server on this machine is never asked through a proxy.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec
from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI, AsyncStream
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion

from cai.core.jsonl import NOT_JSON
from cai.errors import ModelError, ReplyError
from cai.models.base import OnText
from cai.models.server.address import check_url, read_key, root_of
from cai.models.server.refusals import RETRIED, error_in, is_refusal, refusal, words_in
from cai.models.server.replies import Pieces, body_of, first_choice, well_formed
from cai.models.server.served import NotServedError, Served, identify
from cai.models.server.transport import SECRET_CHARACTERS, BoundedClient, KeyFilter
from cai.recipe import ModelSpec

T = TypeVar("T")
RETRIES = 7
"""Of the client, after the first try: its waits add up to half a minute, in which a server may come back."""
FIRST_RETRIES = 2
"""At the start, where nothing answers: a wrong address is told in seconds."""
READ_TRIES = 3
"""How often a reply is asked for that can't be read."""
_CONNECT_SECONDS = 10.0
_KEPT = "Finished calls are kept: run the same command again."
_UNREADABLE = (AttributeError, TypeError, LookupError, ValueError, RecursionError, MemoryError, *NOT_JSON)
"""What reading a reply raises that isn't what it must be: the client's types take whatever JSON came, unchecked."""


class UnansweredError(ModelError):
    """The server can't be reached, or fails at every try: it said nothing about itself."""


class FailingError(UnansweredError):
    """The server, or a router before it, answers, and with errors: it may be starting, or leaving out one that died."""


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
        return await self._ask("/chat/completions", body, lambda response: read(self._chat_reply(response.content)))

    async def stream(self, body: dict[str, Any], on_text: OnText, read: Callable[[ChatCompletion], T]) -> T:
        """Ask `/chat/completions` for a reply in pieces, once; `on_text` receives each piece. Raises as `chat` does."""
        pieces = Pieces()
        shown = {field: KeyFilter(self._key, on_text) for field in ("content", "reasoning")}
        async with self._places:
            try:
                events = await self._client.post(
                    "/chat/completions",
                    cast_to=object,  # as it came: the client would make an object of each of a million choices
                    body={**body, "stream": True},
                    options={"timeout": self._spec.timeout_seconds},  # between two pieces
                    stream=True,
                    stream_cls=AsyncStream[Any],
                )
                async for event in events:
                    for field, piece in pieces.add(event).items():
                        shown[field].add(well_formed(piece))
                for text in shown.values():
                    text.end()
            except (APIError, httpx2.HTTPError) as e:
                raise self._error(e if isinstance(e, APIError) else _lost(e), False) from None
            except ReplyError as e:
                raise ReplyError(e.reason, self.excerpt(e.detail)) from None
            except _UNREADABLE as e:
                raise ReplyError("malformed_reply", self.excerpt(_problem(e))) from None
        try:
            return read(ChatCompletion.construct(choices=[pieces.choice(self._masked)]))
        except _UNREADABLE as e:
            raise ReplyError("malformed_reply", self.excerpt(_problem(e))) from None

    async def text(self, body: dict[str, Any], read: Callable[[TextCompletion], T]) -> T:
        """Ask `/completions`; as `chat`."""
        return await self._ask("/completions", body, lambda response: read(TextCompletion.construct(**first_choice(response.json()))))

    async def post_root(self, path: str, body: dict[str, Any], shape: type[T]) -> T:
        """Ask what vLLM has beside the protocol, at the server's root without `/v1`; as `chat`, with the reply read as `shape`."""
        return await self._ask(f"{root_of(self.url)}{path}", body, lambda response: msgspec.json.decode(response.content, type=shape))

    async def finish(self) -> None:
        """Wait for the replies to what was sent, and send nothing more."""
        await self._http.sending.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _chat_reply(self, content: bytes) -> ChatCompletion:
        return ChatCompletion.construct(**first_choice(body_of(content, self._masked)))

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key and len(self._key) >= SECRET_CHARACTERS else text

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
        if not isinstance(error, APIConnectionError):  # among the pieces of a stream
            sent = error_in({"error": error.body}) or ReplyError("server_error", error.message)
            told = ReplyError(sent.reason, self.excerpt(sent.detail))
            return told, told
        text = self.excerpt(str(cause)) or type(cause).__name__
        port = urlsplit(self.url).port
        start = f"vllm serve {self._spec.name or 'MODEL'}{f' --port {port}' if port else ''}"
        failure = UnansweredError(f"can't reach {self.url} ({text}): start it with `{start}`, or correct model.path. {_KEPT}")
        refused = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
        return failure, None if refused else ReplyError("server_error", f"connection lost: {text}")

    def _refusal(self, error: APIStatusError) -> tuple[ModelError, ReplyError | None]:
        """Return the error for a status that isn't a success, and the one to raise instead if others were answered."""
        status, said = error.status_code, self.excerpt(words_in(error.response.content))
        where = f"{self.url} answered {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            held = "is refused" if self._key else "is not set"
            variable = self._spec.api_key_env
            return ModelError(f"{where}\nThe key in ${variable} {held}. Put a valid one there (export {variable}=…)."), None
        if status == 402:
            return ModelError(f"{where}\nThe account behind ${self._spec.api_key_env} can't pay for more. {_KEPT}"), None
        if status in (404, 405):
            return NotServedError(f"{where}\nCheck model.path (most servers want it to end in /v1) and model.name."), None
        if status == 429:
            wait = self.excerpt(error.response.headers.get("retry-after", ""), 40)
            asked = f", and asks to wait (Retry-After: {wait})" if wait else ""
            return UnansweredError(
                f"{where}\nThe server limits how fast it is asked{asked}. Lower model.concurrency, or wait. {_KEPT}"
            ), None
        if (status in RETRIED or status >= 500) and not is_refusal(status, said):
            failure = FailingError(f"{where}\nThe server failed at every try. See its log, and restart it. {_KEPT}")
            return failure, ReplyError("server_error", str(failure)) if status >= 500 else None
        if status < 400:
            location = self.excerpt(error.response.headers.get("location", "nowhere"))
            return ModelError(f"{where}\nIt redirects to {location}. Put the right URL into model.path."), None
        refused = refusal(status, said)
        return refused, refused


def _problem(error: Exception) -> str:
    """Say what is wrong with a reply: in our words where we looked, else that it isn't the protocol's."""
    worded = isinstance(error, ValueError | msgspec.DecodeError) and not isinstance(error, UnicodeDecodeError)
    return str(error) if worded else f"not a reply of the OpenAI protocol ({type(error).__name__})"


def _lost(error: httpx2.HTTPError) -> APIConnectionError:
    """Return the client's error for a reply that broke off in the middle of its pieces."""
    wrapped = APIConnectionError(message=str(error), request=error.request)
    wrapped.__cause__ = error
    return wrapped
