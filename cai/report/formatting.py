"""Format numbers, and make invisible characters in texts visible. The template engine does the HTML escaping."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cai.constitution.diff import WordOp, word_diff
from cai.records import EvalResult

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters that HTML can't contain, that reorder the surrounding text, or that hide text."""

LEAST_KEPT = 0.25
"""Share of the longer text that both texts must have in common for their differences to be marked."""
MOST_COMPARED = 3000
"""Number of characters up to which two texts are compared word by word; the time grows with its square."""


def visible(text: str) -> str:
    r"""Replace control characters, direction overrides and lone surrogates by visible symbols.

    >>> visible("a\x00b\u202ec\r\nd")
    'a␀b⟨U+202E⟩c\nd'
    """
    return _INVISIBLE.sub(_name_character, text.replace("\r\n", "\n"))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with their dotted names; lists stay whole."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def percent(value: float) -> str:
    """Format a fraction as a percentage.

    >>> percent(0.1264), percent(0.004), percent(-0.2), percent(0.0)
    ('13%', '0.4%', '−20%', '0%')
    """
    hundredths = 100 * value
    digits = 1 if 0 < abs(hundredths) < 1 else 0
    return f"{hundredths:.{digits}f}%".replace("-0%", "0%").replace("-", "−")


def number(value: float) -> str:
    """Format a number with about three significant digits.

    >>> number(12345), number(12.34), number(0.01234), number(-3.0), number(0), number(2e-5)
    ('12,345', '12.3', '0.0123', '−3', '0', '2e−05')
    """
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def is_fraction(name: str) -> bool:
    """Return whether results of this name are fractions, shown as percentages."""
    plain = name.partition(":")[0].removesuffix("_change")
    return plain not in ("response_words", "response_words_ratio", "reward", "perplexity", "perplexity_ratio", "kappa")


def quantity(value: float, name: str) -> str:
    """Format a result's value in its unit."""
    if name in ("response_words_ratio", "perplexity_ratio"):
        return f"{value:.2f}×"
    return percent(value) if is_fraction(name) else number(value)


def interval(result: EvalResult) -> str:
    """Format the 95 % interval of a result.

    >>> interval(EvalResult("over_refusal", "policy", 0.2, 50, 0.11, 0.33))
    '11% to 33%'
    """
    return f"{quantity(result.low, result.name)} to {quantity(result.high, result.name)}"


def p_words(p: float | None) -> str:
    """Format a p-value; empty for None.

    >>> p_words(0.0004), p_words(0.03), p_words(None)
    ('<0.001', '0.030', '')
    """
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def points(difference: float) -> str:
    """Format a difference of fractions in percentage points, with one decimal if it would round to 0.

    >>> points(0.123), points(-0.5), points(0.003), points(0.0)
    ('+12', '−50', '+0.3', '0')
    """
    digits = 1 if 0 < abs(difference) < 0.01 else 0
    return f"{100 * difference:+.{digits}f}".replace("-", "−") if difference else "0"


def duration(seconds: float) -> str:
    """Format a duration.

    >>> duration(0.4), duration(75), duration(7384)
    ('0.4 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def signed(value: float) -> str:
    """Format a score with its sign.

    >>> signed(1.5), signed(-0.126), signed(-0.001)
    ('+1.50', '−0.13', '+0.00')
    """
    return f"{value:+z.2f}".replace("-", "−")


def plural(count: int, thing: str) -> str:
    """Format a count with its noun.

    >>> plural(1, "prompt"), plural(1200, "prompt"), plural(2, "reply")
    ('1 prompt', '1,200 prompts', '2 replies')
    """
    if count == 1:
        return f"1 {thing}"
    many = f"{thing[:-1]}ies" if thing.endswith("y") and thing[-2] not in "aeiou" else f"{thing}s"
    return f"{count:,} {many}"


def _name_character(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def word_changes(before: str, after: str) -> list[tuple[WordOp, str]]:
    """Return a word diff of two texts; empty if they are too long to compare, or have too little in common for a diff to be read."""
    if max(len(before), len(after)) > MOST_COMPARED:
        return []
    runs = word_diff(before, after)
    kept = sum(len(text) for op, text in runs if op == "same" and text.strip())
    return runs if kept >= LEAST_KEPT * max(len(before), len(after), 1) else []
