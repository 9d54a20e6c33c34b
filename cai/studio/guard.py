"""Access control: only a browser with a valid link gets an answer, and only to what its role may request from the app's own pages.

Every request is checked in this order:

1. `Host` must be an address of this server. This stops DNS rebinding, where another host name points at 127.0.0.1.
2. `Sec-Fetch-Site` and `Origin` must name this origin, because SameSite cookies ignore the port.
3. The cookie must contain the token of a link. `/enter?token=…`, the link itself, sets the cookie.
4. The link's role must allow the route (`access.may`).
5. A request body must declare its length, at most `MAX_BODY_BYTES`.

Response headers forbid other origins, inline scripts and styles, frames and caching.
"""

from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from cai.errors import CaiError
from cai.studio.access import LinkError, Links, may
from cai.studio.web import page

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
        port: port of this server, for the cookie's name.
        links: the links that open it.
        origins: scheme, host and port of each address under which browsers may open it.
    """

    def __init__(self, app: Starlette, port: int, links: Links, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = {origin.partition("://")[2]: origin for origin in origins}
        self._port = port
        self._links = links

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
        hosts = request.headers.getlist("host")
        own = self._origins.get(hosts[0].lower()) if len(hosts) == 1 else None
        if own is None:
            return _refuse(421, "This is not the address that `cai studio` printed.")
        entering = request.method in _SAFE and request.url.path == ENTER
        if request.method not in _SAFE and request.headers.get("origin") != own:
            return _refuse(403, "Only the app's own pages may make changes.")
        if not entering and request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _refuse(403, "This request came from another site. Open the address that `cai studio` printed.")
        is_secure = own.startswith("https://")
        cookie = f"{'__Host-' if is_secure else ''}cai-studio-{self._port}"
        tokens = parse_qs(request.url.query).get("token", []) if entering else [request.cookies.get(cookie, "")]
        token = tokens[0] if len(tokens) == 1 else ""
        if not token and not entering:
            return _refuse(401, "Open the link that you were given, or the address that `cai studio` printed. It contains a token.")
        try:
            link = self._links.read(token)
        except CaiError as e:  # the others: the revocations can't be read
            return _refuse(401 if isinstance(e, LinkError) else 503, str(e))
        if entering:
            answer = page("enter")  # no redirect: a browser that comes from another site would send it without the cookie
            answer.set_cookie(cookie, token, httponly=True, samesite="strict", path="/", secure=is_secure)
            return answer
        route = next((route for route in self._app.routes if route.matches(request.scope)[0] is Match.FULL), None)
        if not may(link.role, request.method, getattr(route, "path", "")):
            text = f"Your link has the role {link.role}, which does not allow this."
            if request.method not in _SAFE:
                return _refuse(403, text)
            return page("error", 403, title="Not with this link", text=text, visitor=link)
        if request.method not in _SAFE:
            length = request.headers.get("content-length", "")
            if not length.isascii() or not length.isdigit() or "transfer-encoding" in request.headers:
                return _refuse(411, "The request needs a Content-Length header.")
            if int(length) > MAX_BODY_BYTES:
                return _refuse(413, f"The request is larger than {MAX_BODY_BYTES // 2**20} MiB.")
        request.state.visitor = link
        return None


def _refuse(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)
