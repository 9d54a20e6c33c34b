"""Tells the person for whom a run waits: another process, a lock, or a server that asks for patience."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from cai.core.console import Reporter

NOTICE_SECONDS = 5.0
"""Shorter waits are not told."""
_AGAIN_SECONDS = 60.0


@dataclass
class _Told:
    reporter: Reporter
    at: dict[str, float] = field(default_factory=dict)


_current: ContextVar[_Told | None] = ContextVar("_current", default=None)


@contextmanager
def telling(reporter: Reporter) -> Iterator[None]:
    """Let `tell_waiting` speak through a reporter for the block."""
    token = _current.set(_Told(reporter))
    try:
        yield
    finally:
        _current.reset(token)


def tell_waiting(for_whom: str, text: str) -> None:
    """Say that the run waits, at most once a minute for each cause.

    Args:
        for_whom: the cause.
        text: for whom, for how long, and how to go on.
    """
    told, now = _current.get(), time.monotonic()
    if told is not None and now - told.at.get(for_whom, -_AGAIN_SECONDS) >= _AGAIN_SECONDS:
        told.at[for_whom] = now
        told.reporter.say(text, "yellow")
