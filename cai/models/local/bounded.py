"""Limits on what a model's chat template may compute. It comes with the model's files, and Jinja's sandbox lets it loop for ever."""

import contextlib
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

MAX_LINES = 1_000_000
"""Of template code in one rendering. A conversation of 1,000 turns takes some 20,000."""
MAX_REPEATED = 100_000
"""Characters or items that one multiplication may give."""
MAX_BYTES = 1 << 30
"""Memory that the first rendering may take."""


_LOOPS = re.compile(r"\b(?:for|macro|recursive)\b")


class TemplateLimitError(Exception):
    """A chat template computes too much."""


@contextlib.contextmanager
def bounded_template(template: str) -> Iterator[None]:
    """Stop the template's code with a `TemplateLimitError` where it runs for too long, or multiplies too much."""
    from jinja2.sandbox import SandboxedEnvironment

    left, before = MAX_LINES, sys.gettrace()

    def count(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left < 0:
            raise TemplateLimitError(f"runs more than {MAX_LINES:,} lines")
        return count

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        return count if frame.f_code.co_filename == "<template>" else None

    def multiply(environment: Any, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > MAX_REPEATED:
            raise TemplateLimitError(f"computes {operator} of too much")
        return left * right

    kept = SandboxedEnvironment.intercepted_binops, SandboxedEnvironment.call_binop
    SandboxedEnvironment.intercepted_binops = frozenset(("*", "**"))
    SandboxedEnvironment.call_binop = multiply  # type: ignore[method-assign, assignment]
    if len(_LOOPS.findall(template)) > 1:  # one loop ends, and counting its lines takes 0.3 ms
        sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
        SandboxedEnvironment.intercepted_binops, SandboxedEnvironment.call_binop = kept  # type: ignore[method-assign]


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process take at most `MAX_BYTES` more of memory for the block; beyond, Python raises `MemoryError`. Only on Linux."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm") as f:  # noqa: PTH123 - no path of ours
            now = int(f.read().split()[0]) * resource.getpagesize()
        if before[0] == resource.RLIM_INFINITY or now + MAX_BYTES < before[0]:
            resource.setrlimit(resource.RLIMIT_AS, (now + MAX_BYTES, before[1]))
    except (OSError, ValueError):
        pass
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
