"""Access control: only a browser on this machine with the token gets an answer, and only for requests from the app's own pages.

Every request is checked in this order:

1. `Host` must be this server's address. This stops DNS rebinding, where another host name points at 127.0.0.1.
2. `Sec-Fetch-Site` and `Origin` must name this origin, because SameSite cookies ignore the port.
3. The cookie must contain the token, which is new at every start. `/enter?token=…`, the address that `cai studio` prints, sets the cookie.
4. A request body must declare its length, at most `MAX_BODY_BYTES`.

Response headers forbid other origins, inline scripts and styles, frames and caching.
"""

import secrets
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2 * 1024 * 1024
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Default headers of every response; a response can override them."""
ENTER = "/enter"
_SAFE = ("GET", "HEAD")


class Guard:
    """ASGI middleware that checks every request.

    Args:
        app: the app that handles accepted requests.
        port: port of this server.
        token: secret of this server process.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self._app = app
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self._cookie = f"cai-studio-{port}"
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a browser can open a WebSocket from any page
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """Return an error response, or the response to `/enter`; None if the app may handle the request."""
        host = request.headers.getlist("host")
        if len(host) != 1 or host[0].lower() not in self._hosts:
            return _refuse(421, "This is not the address that `cai studio` printed.")
        entering = request.method in _SAFE and request.url.path == ENTER
        own = f"http://{host[0].lower()}"
        if request.method not in _SAFE and request.headers.get("origin") != own:
            return _refuse(403, "Only the app's own pages may make changes.")
        if not entering and request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _refuse(403, "This request came from another site. Open the address that `cai studio` printed.")
        if entering:
            return self._enter(request)
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return _refuse(
                401, "Open the address that `cai studio` printed when it started. It contains a token that is new at every start."
            )
        if request.method not in _SAFE:
            length = request.headers.get("content-length", "")
            if not length.isascii() or not length.isdigit() or "transfer-encoding" in request.headers:
                return _refuse(411, "The request needs a Content-Length header.")
            if int(length) > MAX_BODY_BYTES:
                return _refuse(413, f"The request is larger than {MAX_BODY_BYTES // 2**20} MiB.")
        return None

    def _enter(self, request: Request) -> Response:
        given = parse_qs(request.url.query).get("token", [""])
        if len(given) != 1 or not self._is_token(given[0]):
            return _refuse(401, "The token is not valid. Open the address that `cai studio` printed when it last started.")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return answer

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _refuse(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)
