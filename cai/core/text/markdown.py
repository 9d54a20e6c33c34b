"""Foreign text in Markdown pages: cards and guidelines."""

import re

from cai.core.console import printable

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#+|~$&])")
_AT_LINE_START = re.compile(r"(?m)^(\s*)(?:([-=])|(\d+)([.)])(?=\s|$))")


def escape_markdown(text: str) -> str:
    r"""Escape a text for Markdown.

    >>> escape_markdown("# <b>1*2</b>\n- x\n1. y")
    '\\# \\<b\\>1\\*2\\</b\\>\n\\- x\n1\\. y'
    """
    escaped = _MARKUP.sub(r"\\\1", printable(text))
    return _AT_LINE_START.sub(lambda m: f"{m[1]}\\{m[2]}" if m[2] else f"{m[1]}{m[3]}\\{m[4]}", escaped)


def code(text: str) -> str:
    r"""Return a text in one line as a code span that it can't leave; one with markup of its own is escaped instead.

    >>> code("a`b"), code("<b>"), code("")
    ("`a'b`", '\\<b\\>', '')
    """
    line = " ".join(printable(text).replace("`", "'").split())
    return escape_markdown(line) if "<" in line else f"`{line}`" if line else ""


def hub_base(base: str) -> list[str]:
    """Return the line of a card's front matter that names a base model on the Hub; none for a folder."""
    return [f"base_model: {base}"] if re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) else []
