"""What tests of the app say to it."""

from dataclasses import dataclass
from typing import Any

import httpx2

from cai.core.workspace import Workspace

TOKEN = "a-token-of-this-test"  # noqa: S105 - no secret


@dataclass
class Served:
    """A running app and a client, which has no token before `enter`."""

    client: httpx2.Client
    port: int
    workspace: Workspace

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def enter(self) -> httpx2.Client:
        """Give the client its token, as the printed address does, and the headers of a browser on the app's own pages."""
        assert self.client.get(f"/enter?token={TOKEN}").status_code == 303
        self.client.headers["origin"] = self.origin
        return self.client

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()
