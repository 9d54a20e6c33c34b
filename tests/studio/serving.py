"""What tests of the app say to it."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from cai.core.workspace import Workspace
from cai.studio.access import Links, Role


@dataclass
class Served:
    """A running app and a client, which has no token before `enter`."""

    client: httpx2.Client
    port: int
    workspace: Workspace

    @functools.cached_property
    def links(self) -> Links:
        """The workspace's links, opened as another process opens them."""
        return Links(self.workspace)

    @functools.cached_property
    def token(self) -> str:
        """The owner's."""
        return self.links.token(None, "admin", 1)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def enter(self, token: str = "") -> httpx2.Client:
        """Give the client a token (the owner's if none is given), as a link does, and the headers of a browser on the app's own pages."""
        assert self.client.get(f"/enter?token={token or self.token}").status_code == 200
        self.client.headers["origin"] = self.origin
        return self.client

    @contextlib.contextmanager
    def visit(self, name: str, role: Role, days: int = 1) -> Iterator["Served"]:
        """The same app with a client of someone else, who has entered by a link of their own."""
        with httpx2.Client(base_url=self.origin, trust_env=False, timeout=20) as client:
            other = Served(client, self.port, self.workspace)
            other.enter(self.links.token(name, role, days))
            yield other

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()
