"""Limits on what a model's chat template may compute. It comes with the model's files, and Jinja's sandbox lets it loop for ever.

They hold for every conversation: a template may behave for the first one and not for a later one. They cost some ten microseconds.
A thread counts the seconds and stops the template between two steps of Python. One step in C isn't stopped unless it takes memory.
"""

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

MAX_SECONDS = 5
"""For one rendering. A conversation of 1,000 turns takes some hundredths."""
MAX_BYTES = 4 << 30
"""Memory that this process may take during one rendering. So much, because other threads compute meanwhile, and their tensors count."""
MAX_REPEATED = 100_000
"""Characters or items that one multiplication may give."""
MAX_ADDED, MAX_TIMES = 1_000_000, 4
"""Characters that a template may write, and how often it may write the conversation in addition."""


class TemplateLimitError(Exception):
    """A chat template computes too much."""


class _TimeIsUpError(BaseException):
    """Raised in the thread that renders. Jinja catches every `Exception` where it computes constants."""


@contextlib.contextmanager
def bounded_template() -> Iterator[None]:
    """Stop the template with a `TemplateLimitError` if it runs for too long, takes too much memory or multiplies too much."""
    _bound_operators()
    try:
        with _bounded_memory(), _bounded_time():
            yield
    except _TimeIsUpError:
        raise TemplateLimitError(f"it runs for more than {MAX_SECONDS} seconds") from None
    except MemoryError:
        raise TemplateLimitError(f"it takes more than {MAX_BYTES >> 20} MiB of memory") from None


def check_length(text: str, contents: int) -> str:
    """Return what a template wrote. Raises `TemplateLimitError` if it is far longer than the conversation, of so many characters."""
    if len(text) > MAX_ADDED + MAX_TIMES * contents:
        raise TemplateLimitError(f"it writes {len(text):,} characters for a conversation of {contents:,}")
    return text


@lru_cache(maxsize=1)
def _bound_operators() -> None:
    """Bound what chat templates multiply, in this process: another thread may be rendering when this one ends.

    `transformers` renders them in this environment, and nothing else here uses it.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    ImmutableSandboxedEnvironment.intercepted_binops = frozenset(("*", "**"))
    ImmutableSandboxedEnvironment.call_binop = _multiply  # type: ignore[method-assign, assignment]


def _multiply(environment: Any, context: Any, operator: str, left: Any, right: Any) -> Any:
    sizes = [len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right)]
    if operator == "**" or sizes[0] * sizes[1] > MAX_REPEATED:
        raise TemplateLimitError(f"it computes {operator} of too much")
    return left * right


class _Rendering:
    """A rendering in a thread, and the seconds that it has left."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.left = MAX_SECONDS + 1  # the first second may have begun already


_running: dict[_Rendering, None] = {}
"""Who takes one out ends it: its thread, or the watch."""
_watch: threading.Thread | None = None


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    global _watch
    if _watch is None or not _watch.is_alive():  # none yet, or left behind by a fork
        _watch = threading.Thread(target=_stop_slow, name="template-limits", daemon=True)
        _watch.start()
    rendering = _Rendering()
    _running[rendering] = None
    try:
        yield
    finally:
        if _running.pop(rendering, rendering) is rendering and not isinstance(sys.exception(), _TimeIsUpError):
            while True:  # it is being stopped: that must not come after this block
                time.sleep(0.001)


def _stop_slow() -> None:
    while True:  # seconds are counted, so that time in which this process is stopped doesn't count
        time.sleep(1.0)
        for rendering in list(_running):
            rendering.left -= 1
            if rendering.left <= 0 and _running.pop(rendering, rendering) is None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(rendering.thread), ctypes.py_object(_TimeIsUpError))


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process take at most `MAX_BYTES` more of memory for the block; beyond, Python raises `MemoryError`. Only on Linux."""
    import resource

    soft, hard = _data_limit()
    try:
        with open("/proc/self/statm", "rb", buffering=0) as f:  # noqa: PTH123 - no path of ours
            limit = int(f.read().split()[5]) * resource.getpagesize() + MAX_BYTES
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    except (OSError, ValueError):
        pass
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@lru_cache(maxsize=1)
def _data_limit() -> tuple[int, int]:
    """Return the process's own limit, read once: another thread may be rendering under a lower one."""
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)
