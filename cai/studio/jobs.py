"""Background jobs that call models. They run one at a time in a thread with its own event loop, and can be stopped.

Finished calls of a stopped job are in the workspace's call store, so starting it again makes only the remaining calls.
"""

import asyncio
import contextlib
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from cai.core.console import Reporter
from cai.errors import CaiError

State = Literal["waiting", "running", "done", "stopped", "failed"]
KEPT = 20
"""Number of finished jobs whose results are kept."""
_log = logging.getLogger(__name__)


class Job(Reporter):
    """A background job and its progress, as shown on a page.

    Args:
        kind: name of the template for its results.
    """

    def __init__(self, kind: str) -> None:
        self.id = secrets.token_urlsafe(9)
        self.kind = kind
        self.state: State = "waiting"
        self.parts: list[Any] = []
        """Results so far."""
        self.note = ""
        self.calls = 0
        self.warnings: list[str] = []
        self.error = ""
        self._stop: Callable[[], object] | None = None
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Return whether the job has ended."""
        return self.state in ("done", "stopped", "failed")

    def progress(self, done: int, total: int | None, unit: str = "items") -> None:
        """Record the progress."""
        self.note = f"{unit}: {done} of {total}" if total else unit

    @contextlib.contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Note the model that is loaded inside the block."""
        before, self.note = self.note, f"loading {Path(model).name}"
        yield
        self.note = before

    def call(self) -> None:
        """Count one model call."""
        self.calls += 1

    def warn(self, text: str) -> None:
        """Record a warning."""
        self.warnings.append(text)

    def stop(self) -> None:
        """Cancel the job."""
        with self._lock:
            if self.state == "waiting":
                self.state = "stopped"
            elif self.state == "running" and self._stop is not None:
                self._stop()

    def run(self, work: Callable[["Job"], Awaitable[None]]) -> None:
        """Run the job in this thread."""

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
                    self._stop = None  # the event loop is about to close

        try:
            asyncio.run(main())
            outcome: State = "done"
        except asyncio.CancelledError:
            outcome = "stopped"
        except CaiError as e:
            outcome, self.error = "failed", str(e)
        except Exception as e:  # noqa: BLE001 - a bug: show it on the page, and the traceback in the terminal
            _log.exception("a job of the studio failed")
            outcome, self.error = "failed", f"{type(e).__name__}: {e}. This is a bug; the terminal shows the traceback."
        with self._lock:
            if self.state != "stopped":
                self.state = outcome


class Jobs:
    """The job queue of the app."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="studio-job")
        self._jobs: dict[str, Job] = {}

    def start(self, kind: str, work: Callable[[Job], Awaitable[None]]) -> Job:
        """Add a job to the queue."""
        job = Job(kind)
        self._jobs[job.id] = job
        for old in [j for j in self._jobs.values() if j.is_over][:-KEPT]:
            del self._jobs[old.id]
        self._pool.submit(job.run, work)
        return job

    def get(self, job_id: str) -> Job | None:
        """Return a job; None if it is unknown or no longer kept."""
        return self._jobs.get(job_id)

    def close(self) -> None:
        """Stop all jobs and wait for the running one."""
        for job in list(self._jobs.values()):
            job.stop()
        self._pool.shutdown(wait=True)
