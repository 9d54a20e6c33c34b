"""Runs of `cai` against a counting model server: both in processes of their own, both killable."""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.workspace import Workspace
from tests.drills.model_server import request_key
from tests.workspaces import cai, data_bytes, make_workspace, start_cai

PROMPTS = 8
CONCURRENCY = 32
RECIPE = """\
model: {{ path: "http://127.0.0.1:{port}/v1", concurrency: {concurrency}, timeout_seconds: {timeout} }}
prompts:
  train: [{{ path: prompts/drill.jsonl, kind: harmful }}]
  evaluate: [{{ path: prompts/eval_harmful.jsonl, limit: 4 }}]
critique: {{ min_p_revised: 0.01, drop_refusals: false }}
feedback: {{ principles: sample }}
"""
STAGES = ("run", "runs/s.yaml", "--only", "respond,critique")


@dataclass
class ModelServer:
    """A running server, and its log."""

    process: "subprocess.Popen[str]"
    port: int
    log: Path

    def lines(self) -> list[tuple[str, str]]:
        """What was sent: `answered` or a fault's name, and the request's key."""
        return [(line.split()[0], line.split()[1]) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def answered(self) -> Counter[str]:
        """How often each request was answered whole."""
        return Counter(key for what, key in self.lines() if what == "answered")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let it answer nothing for the block; what is asked meanwhile waits."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.communicate()


def start_server(log: Path, faults: str = "", seconds: float = 0.0, port: int = 0) -> ModelServer:
    """Start a server; return when it listens."""
    script = Path(__file__).with_name("model_server.py")
    command = [sys.executable, str(script), str(port), str(log), faults, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return ModelServer(process, int(process.stdout.readline()), log)


@contextlib.contextmanager
def model_server(log: Path, faults: str = "", seconds: float = 0.0) -> Iterator[ModelServer]:
    """A server for the block."""
    server = start_server(log, faults, seconds)
    try:
        yield server
    finally:
        server.kill()


def drill_workspace(folder: Path, port: int, timeout: float = 60.0, prompts: int = PROMPTS, concurrency: int = CONCURRENCY) -> Workspace:
    """A workspace whose recipe asks the server on a port."""
    workspace = make_workspace(folder, RECIPE.format(port=port, timeout=timeout, concurrency=concurrency), adapters=False)
    lines = (json.dumps({"prompt": f"How would I do harm number {i}?"}) for i in range(prompts))
    (folder / "prompts" / "drill.jsonl").write_text("\n".join(lines) + "\n")
    return workspace


def kept(workspace: Workspace) -> set[str]:
    """Keys of the requests whose answers are in the call store."""
    if not workspace.store_path.exists():
        return set()
    with contextlib.closing(sqlite3.connect(f"file:{workspace.store_path}?mode=ro", uri=True)) as store:
        try:
            rows = store.execute("SELECT request FROM calls").fetchall()
        except sqlite3.OperationalError:  # its table isn't made yet
            return set()
    requests = [json.loads(row[0]) for row in rows]
    opened = [[{"role": "assistant", "content": r["prefill"]}] if r["prefill"] else [] for r in requests]  # as the client sends it
    return {request_key(r["messages"] + turn, r.get("seed")) for r, turn in zip(requests, opened, strict=True)}


def wait_until(condition: Any, process: "subprocess.Popen[str]", seconds: float = 60) -> None:
    """Return when a condition holds, while a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended before: {process.communicate()}"
        assert time.monotonic() < deadline, "it never came to it"
        time.sleep(0.005)


def run_to_end(workspace: Workspace, *more: str) -> dict[str, bytes]:
    """Run the drill's stages to their end; return the record files of the run `s`."""
    done = cai(workspace.root, *STAGES, *more, timeout=600)
    assert done.returncode == 0, done.stderr
    return data_bytes(workspace.run("s"))


def start_run(workspace: Workspace, *more: str, **options: Any) -> "subprocess.Popen[str]":
    """Start the drill's stages."""
    return start_cai(workspace.root, *STAGES, *more, **options)


def ask_at(workspace: Workspace, port: int) -> None:
    """Point the recipe to a server on another port."""
    recipe = workspace.root / "runs" / "s.yaml"
    text, count = re.subn(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", recipe.read_text())
    assert count == 1
    recipe.write_text(text)
