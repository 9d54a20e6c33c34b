"""The exception tree drawn in the module's docstring is the one that exists."""

import inspect
import re

import cai.errors
from cai.errors import CaiError, ReplyError


def drawn() -> dict[str, tuple[str, str | None]]:
    """Read the picture: class name to parent's name and stdlib kin."""
    parents: list[tuple[int, str]] = []
    tree: dict[str, tuple[str, str | None]] = {}
    for line in (cai.errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│├└─ ]*)(\w+Error)\b(?:\s+\((\w+)\))?", line):
            indent, name, kin = len(found[1]), found[2], found[3]
            parents = [p for p in parents if p[0] < indent]
            tree[name] = (parents[-1][1] if parents else "Exception", kin)
            parents.append((indent, name))
    return tree


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    classes = {name: c for name, c in vars(cai.errors).items() if inspect.isclass(c)}
    actual = {name: (c.__bases__[0].__name__, c.__bases__[1].__name__ if len(c.__bases__) > 1 else None) for name, c in classes.items()}
    assert drawn() == actual
    assert len(actual) == 10


def test_every_error_says_what_it_is_for() -> None:
    for cls in (CaiError, *CaiError.__subclasses__(), ReplyError):
        assert cls.__doc__
        assert cls.__module__ == "cai.errors"


def test_a_reply_error_keeps_reason_and_detail_apart() -> None:
    e = ReplyError("empty_reply", "no text")
    assert (e.reason, e.detail, str(e)) == ("empty_reply", "no text", "empty_reply: no text")
    assert str(ReplyError("cancelled")) == "cancelled"
