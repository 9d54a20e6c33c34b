"""Work that asks models, one job at a time, in a thread with an event loop of its own: the pages stay quick, and a job can be stopped.

Nothing that a job paid for is lost with it: every finished call is in the workspace's call store, and asking again costs only the rest.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from cai.core.console import Reporter
from cai.errors import CaiError

State = Literal["waiting", "running", "done", "stopped", "failed"]
KEPT = 20
"""Finished jobs whose results can still be looked at."""
_log = logging.getLogger(__name__)


class Job(Reporter):
    """One piece of work, as a page sees it.

    Args:
        kind: which template shows its parts.
    """

    def __init__(self, kind: str) -> None:
        self.id = secrets.token_urlsafe(9)
        self.kind = kind
        self.state: State = "waiting"
        self.parts: list[Any] = []
        """What it has found so far."""
        self.note = ""
        self.calls = 0
        self.warnings: list[str] = []
        self.error = ""
        self._stop: Callable[[], object] | None = None
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "failed")

    def progress(self, done: int, total: int | None, unit: str = "items") -> None:
        """Keep how far it is."""
        self.note = f"{unit}: {done} of {total}" if total else unit

    def call(self) -> None:
        """Count a model's answer."""
        self.calls += 1

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.warnings.append(text)

    def stop(self) -> None:
        """End it at its next step."""
        with self._lock:
            if self.state == "waiting":
                self.state = "stopped"
            elif self.state == "running" and self._stop is not None:
                self._stop()

    def run(self, work: Callable[["Job"], Awaitable[None]]) -> None:
        """Do the work in this thread."""

        async def main() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            with self._lock:
                if self.state == "stopped":
                    return
                self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
                self.state = "running"
            try:
                await work(self)
            finally:
                with self._lock:
                    self._stop = None  # a stop that comes now would find the loop closed

        try:
            asyncio.run(main())
            outcome: State = "done"
        except asyncio.CancelledError:
            outcome = "stopped"
        except CaiError as e:
            outcome, self.error = "failed", str(e)
        except Exception as e:  # noqa: BLE001 - a bug of ours: the page must say so, and the terminal where
            _log.exception("a job of the studio failed")
            outcome, self.error = "failed", f"{type(e).__name__}: {e}. This is a bug; the terminal shows where."
        with self._lock:
            if self.state != "stopped":
                self.state = outcome


class Jobs:
    """The jobs of one app, in a row."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="studio-job")
        self._jobs: dict[str, Job] = {}

    def start(self, kind: str, work: Callable[[Job], Awaitable[None]]) -> Job:
        """Put a job at the end of the row."""
        job = Job(kind)
        self._jobs[job.id] = job
        for old in [j for j in self._jobs.values() if j.is_over][:-KEPT]:
            del self._jobs[old.id]
        self._pool.submit(job.run, work)
        return job

    def get(self, job_id: str) -> Job | None:
        """Return a job, while it is kept."""
        return self._jobs.get(job_id)

    def close(self) -> None:
        """Stop every job and wait for the one that runs."""
        for job in list(self._jobs.values()):
            job.stop()
        self._pool.shutdown(wait=True)
