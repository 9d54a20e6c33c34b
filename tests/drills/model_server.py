"""A model server in a process of its own, that counts what it answers and can be told to misbehave.

    python model_server.py PORT LOG FAULTS [SECONDS]

Speaks as much of the OpenAI protocol as llama.cpp does: `/v1/models` and `/v1/chat/completions`, with log-probabilities. An answer
depends on the request alone. LOG gets a line for everything sent: `answered KEY`, or a fault's name and KEY; KEY is a hash of the request.
FAULTS are names with commas between: the first try of a request meets one of them, or is answered, by hash. SECONDS is how long an
answer takes. Port 0 takes a free one; the port is printed once the server listens.
"""

import contextlib
import email.utils
import hashlib
import json
import math
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = "I can help by looking at what matters first and then choosing a safe and honest next step so talk to someone kind".split()
HANG_SECONDS = 600.0


def request_key(messages: list[dict[str, str]], seed: int | None) -> str:
    """What makes two requests the same: the conversation and, for completions, the seed."""
    return hashlib.sha256(json.dumps([[[m["role"], m["content"]] for m in messages], seed]).encode()).hexdigest()[:16]


def answer(body: dict[str, Any], key: str) -> dict[str, Any]:
    """The right reply to a chat request, by its key."""
    number = int(key, 16)
    if body.get("logprobs"):
        p = 0.05 + 0.9 * (number % 997) / 997
        top = [{"token": "Yes", "logprob": math.log(p)}, {"token": "No", "logprob": math.log(1 - p)}]
        choice: dict[str, Any] = {"message": {"content": "Yes"}, "logprobs": {"content": [top[0] | {"top_logprobs": top}]}}
        tokens = 1
    else:
        tokens = 8 + number % 16
        text = " ".join(WORDS[(number >> i) % len(WORDS)] for i in range(tokens)).capitalize() + "."
        choice = {"message": {"role": "assistant", "content": text}}
    prompt = sum(len(m["content"].split()) for m in body["messages"])
    return {"choices": [choice | {"index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}}


class Handler(BaseHTTPRequestHandler):
    """One connection. What is shared hangs on the class."""

    protocol_version = "HTTP/1.1"
    faults: list[str] = []  # noqa: RUF012 - set once by main
    seconds = 0.0
    note: Callable[[str], None]
    tried: set[str] = set()  # noqa: RUF012 - one server a process
    lock = threading.Lock()

    def log_message(self, *args: object) -> None:
        """Say nothing: LOG is for what counts."""

    def do_GET(self) -> None:
        """`/v1/models`."""
        self.reply(200, json.dumps({"data": [{"id": "drill", "owned_by": "llamacpp"}]}).encode())

    def do_POST(self) -> None:
        """`/v1/chat/completions`; other addresses aren't there, as on an old llama.cpp."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/chat/completions"):
            self.reply(404, b"{}")
            return
        key = request_key(body["messages"], None if body.get("logprobs") else body["seed"])
        with self.lock:
            first = key not in self.tried
            self.tried.add(key)
        fault = self.faults[int(key, 16) % len(self.faults)] if first and self.faults else "none"
        if fault != "none":
            self.note(f"{fault} {key}")
            self.misbehave(fault, json.dumps(answer(body, key)).encode())
            return
        time.sleep(self.seconds)
        if self.reply(200, json.dumps(answer(body, key)).encode()):
            self.note(f"answered {key}")

    def misbehave(self, fault: str, whole: bytes) -> None:
        """Do what a fault's name says, in place of an answer."""
        good = json.loads(whole)
        statuses = {"busy": 429, "error": 500, "overloaded": 503}
        if fault in statuses:
            self.reply(statuses[fault], b'{"error": {"message": "later"}}', {"Retry-After": "1"} if fault == "busy" else {})
        elif fault == "until":  # a date by the server's own clock, which it sends along
            self.reply(429, b"", {"Retry-After": email.utils.formatdate(time.time() + 1, usegmt=True)})
        elif fault == "dribble":  # alive, and never done
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.2)
        elif fault == "hang":
            time.sleep(HANG_SECONDS)
        elif fault == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole[: len(whole) // 2])
            self.hang_up()
        elif fault == "half":  # whole by its length, and half a JSON
            self.reply(200, whole[: len(whole) // 2])
        elif fault == "html":
            self.reply(200, b"<html>Bad gateway</html>")
        elif fault == "empty":
            self.reply(200, b"")
        elif fault == "deep":
            self.reply(200, b"[" * 100_000)
        elif fault == "miscounted":
            self.reply(200, json.dumps(good | {"usage": {"prompt_tokens": -3, "completion_tokens": 10**9}}).encode())
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.hang_up()
        else:
            raise ValueError(fault)

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> bool:
        """Send a whole response; return whether it could be sent."""
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
        except OSError:  # the client is gone
            self.close_connection = True
            return False
        return True

    def hang_up(self) -> None:
        """Close the connection in the middle."""
        self.close_connection = True
        self.connection.close()


class Server(ThreadingHTTPServer):
    """Takes a burst of connections, and keeps quiet about those that end badly."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def handle_error(self, *args: object) -> None:
        """Clients are killed here: that is no news."""


def main(port: int, log: str, faults: str, seconds: float) -> None:
    """Serve until killed."""
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    Handler.note = staticmethod(lambda line: os.write(out, f"{line}\n".encode()))  # type: ignore[assignment]
    Handler.faults, Handler.seconds = [f for f in faults.split(",") if f], seconds
    with Server(("127.0.0.1", port), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
