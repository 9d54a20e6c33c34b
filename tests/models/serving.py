"""The toy vLLM on a real port, in a process of its own that a test may kill.

python -m tests.models.serving PORT [SECONDS]     # 0: any port; it is printed. SECONDS: what a chat reply takes
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

from cai.ids import derive_seed
from tests.models.fake_vllm import FakeVllm

ROOT = Path(__file__).parents[2]
WORDS = "we can look at this with care and then choose a kind honest step that helps you now without any harm".split()


def say_something_of_its_own(request: httpx2.Request, body: Any) -> httpx2.Response | None:
    """Chat replies that depend on the whole request and on nothing else, whichever server gives them."""
    if request.url.path != "/v1/chat/completions":
        return None
    words = [WORDS[derive_seed(body["seed"], str(body), i) % len(WORDS)] for i in range(12)]
    choice = {"index": 0, "message": {"role": "assistant", "content": " ".join(words).capitalize() + "."}, "finish_reason": "stop"}
    return httpx2.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 12}})


def serve(port: int, seconds: float) -> None:
    """Serve until killed."""
    fake = FakeVllm([say_something_of_its_own])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            if self.path == "/v1/chat/completions":
                time.sleep(seconds)
            self._answer()

        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            reply = fake.transport.handle_request(httpx2.Request(self.command, f"http://here{self.path}", content=content))
            self.send_response(reply.status_code)
            self.send_header("content-length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # five, as it is, resets the connections of a client that opens many at once

    server = Server(("127.0.0.1", port), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


class ServerProcess:
    """A served toy vLLM. `kill` ends it like a power cut; `start` brings it back on the same port."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.models.serving", str(self.port), str(self.seconds)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def servers(count: int, seconds: float = 0.0) -> Iterator[list[ServerProcess]]:
    """Some servers, killed at the end."""
    running: list[ServerProcess] = []
    try:
        for _ in range(count):
            running.append(ServerProcess(seconds))
        yield running
    finally:
        for server in running:
            server.kill()


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
