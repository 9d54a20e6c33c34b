"""Values to put where something else belongs, and how many of them to try."""

import string
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

T = TypeVar("T")
DEEP = 30
"""How many times more examples the slow tier tries."""
AWKWARD = (
    "",
    " ",
    "\x00",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2028",
    "\ufeff",
    "../../etc/passwd",
    "/etc/passwd",
    "~nobody-of-this-name/x",
    "a\x00b",
    "x" * 5000,
    "http://127.0.0.1:1/v1",
    "{{ response }}",
    "[[user]]",
    "<|im_end|>",
    "[[[",
    '["A"]',
    "nan",
    "1e400",
    "=1+1",
    "\n\nHuman: a\n\nAssistant: b",
)
TEXT = st.sampled_from(AWKWARD) | st.text(max_size=30)
SCALAR = st.none() | st.booleans() | st.integers(-(2**70), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(string.ascii_lowercase) | TEXT, inner, max_size=3),
    max_leaves=6,
)


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = "A"
    for _ in range(depth):
        value = [value]
    return value


def mutated(good: Any, wrong: st.SearchStrategy[Any] = JSON) -> st.SearchStrategy[Any]:
    """JSON like `good`, with up to three values anywhere in it replaced, or keys of mappings left out."""

    @st.composite
    def change(draw: st.DrawFn) -> Any:
        value = good
        for _ in range(draw(st.integers(1, 3))):
            value = _change(draw, value, wrong)
        return value

    return change()


def _change(draw: st.DrawFn, value: Any, wrong: st.SearchStrategy[Any]) -> Any:
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or draw(st.integers(0, 5)) == 0:
        return draw(wrong)
    key = draw(st.sampled_from(inside))
    if isinstance(value, list):
        return [_change(draw, v, wrong) if i == key else v for i, v in enumerate(value)]
    if draw(st.integers(0, 5)) == 0:
        return {k: v for k, v in value.items() if k != key}
    return {k: _change(draw, v, wrong) if k == key else v for k, v in value.items()}


def fuzz(check: Callable[[Any], None], strategy: st.SearchStrategy[Any], examples: int) -> None:
    """Try a check on so many values."""
    quiet = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
    settings(max_examples=examples, suppress_health_check=quiet)(given(strategy)(check))()


def depths(examples: int) -> Callable[[T], T]:
    """Parametrise a test by how many `examples` to try: so many, and `DEEP` times as many in the slow tier."""
    return pytest.mark.parametrize("examples", [examples, pytest.param(DEEP * examples, marks=pytest.mark.slow)])
