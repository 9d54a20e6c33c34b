"""Edit one principle in the text of a constitution. Comments and layout of all other lines stay as they are.

Principles must be in block style, with each key on its own line. After an edit the text is parsed again: if it does not hold exactly what
was asked for, the edit is refused. Texts that a model drafted are marked with a comment, which an edit by a person removes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cai.constitution.importers import BlockDumper, InOneLine, OneLineMapping
from cai.constitution.load import entries
from cai.core.yaml_source import YamlSource, parse_yaml
from cai.errors import ConstitutionError
from cai.ids import content_hash
from cai.records import DEFAULT_WORDING

DRAFTED = "# drafted from the statement by "
"""Start of the comment above a text that a model drafted. It ends with a hash of the statement, in brackets."""
_OF_STATEMENT = re.compile(r"\[([0-9a-f]{8})\]$")
_COMMENT = re.compile(r"\s+#[^'\"]*$")
_ORDER = ("id", "statement", "openings", *DEFAULT_WORDING, "applies_to", "weight", "source", "check", "examples")
UNWRITTEN = "…"
"""Statement of a principle that is still to be written, in any language."""
_BY_HAND = "edit it as text"
_SHORT = 90
"""Number of characters up to which a list or mapping is written in one line."""


@dataclass(frozen=True)
class _Lines:
    """The lines of one principle: `keys` maps each key to its first line and the line after its last one (from 0)."""

    start: int
    end: int
    indent: int
    """Column of the keys."""
    keys: dict[str, tuple[int, int]]


def set_fields(text: str, index: int, values: Mapping[str, Any], drafted_by: str = "") -> str:
    """Set fields of one principle.

    Args:
        text: the constitution's YAML.
        index: number of the principle, from 0.
        values: new values by field; None removes a field.
        drafted_by: name of the model that drafted the texts, which marks them; empty for a person's.

    Raises:
        ConstitutionError: the text can't be parsed, or this principle can only be edited as text.
    """
    source = _parsed(text)
    _item(source, text, index)
    now = entries(source)[index]
    values = {name: value for name, value in values.items() if drafted_by or not _same(now.get(name), value)}
    for name, value in values.items():
        text = _set(text, index, name, value, drafted_by)
    wanted = [dict(e) if isinstance(e, dict) else e for e in entries(source)]
    for name, value in values.items():
        wanted[index].pop(name, None)
        if value is not None:
            wanted[index][name] = value
    return _checked(text, wanted, source)


def add_principle(text: str, principle_id: str, statement: str) -> str:
    """Append a principle. Raises as `set_fields` does."""
    source = _parsed(text)
    last = _item(source, text, len(entries(source)) - 1)
    lines = text.splitlines(keepends=True)
    block = _yaml({"id": principle_id, "statement": statement}, last.indent)
    if lines[last.end - 1][-1:] != "\n":
        lines[last.end - 1] += "\n"
    lines[last.end : last.end] = ["\n", *_with_dash(block, last.indent)]
    return _checked("".join(lines), [*entries(source), {"id": principle_id, "statement": statement}], source)


def remove_principle(text: str, index: int) -> str:
    """Remove a principle, with the comments above it. Raises as `set_fields` does; also for the last principle that is left."""
    source = _parsed(text)
    if len(entries(source)) < 2:
        raise ConstitutionError("a constitution needs at least one principle")
    blocks, head, tail = _blocks(source, text, index)
    del blocks[index]
    return _checked(head + "".join(blocks) + tail, [e for i, e in enumerate(entries(source)) if i != index], source)


def move_principle(text: str, index: int, to: int) -> str:
    """Move a principle, with the comments above it, to another place in the list. Raises as `set_fields` does."""
    source = _parsed(text)
    blocks, head, tail = _blocks(source, text, index)
    wanted = list(entries(source))
    blocks.insert(to, blocks.pop(index))
    wanted.insert(to, wanted.pop(index))
    return _checked(head + "".join(blocks) + tail, wanted, source)


def drafted_fields(source: YamlSource, text: str) -> list[tuple[str, ...]]:
    """Return, for each principle, its fields that are marked as drafted by a model."""
    lines = text.splitlines()
    found = []
    for i, entry in enumerate(entries(source)):
        at = {name: source.lines.get(("principles", i, name), 0) for name in (entry if isinstance(entry, dict) else ())}
        found.append(tuple(name for name, line in at.items() if line > 1 and lines[line - 2].lstrip().startswith(DRAFTED)))
    return found


def stale_drafts(source: YamlSource) -> list[tuple[str, ...]]:
    """Return, for each principle, its fields that a model drafted from another statement than it has now."""
    lines, found = source.text.splitlines(), []
    for i, (entry, names) in enumerate(zip(entries(source), drafted_fields(source, source.text), strict=True)):
        marks = {name: _OF_STATEMENT.search(lines[source.lines[("principles", i, name)] - 2].rstrip()) for name in names}
        found.append(tuple(name for name, mark in marks.items() if mark is not None and mark[1] != _mark_of(entry)))
    return found


def _mark_of(entry: Mapping[str, Any]) -> str:
    return content_hash(str(entry.get("statement", "")).strip())[:8]


def _set(text: str, index: int, name: str, value: Any, drafted_by: str) -> str:
    source = _parsed(text)
    item = _item(source, text, index)
    lines = text.splitlines(keepends=True)
    old = lines[slice(*item.keys[name])] if name in item.keys else []
    new = [] if value is None else _yaml({name: value}, item.indent, old)
    if drafted_by and new:
        new.insert(0, f"{' ' * item.indent}{DRAFTED}{drafted_by} [{_mark_of(entries(source)[index])}]\n")
    if name in item.keys:
        start, end = item.keys[name]
        comment = _COMMENT.search(lines[start]) if end == start + 1 else None
        if comment and len(new) == 1:  # a comment on the same line stays
            new = [new[0].rstrip("\n") + comment[0].rstrip("\n") + "\n"]
        elif isinstance(value, dict | list):
            new = _with_comments(new, old)
        if start == item.start:
            if value is None or drafted_by:
                raise ConstitutionError(f"{name} is the principle's first key: {_BY_HAND}")
            new = _with_dash(new, item.indent)
        elif lines[start - 1].lstrip().startswith(DRAFTED):
            start -= 1
    else:
        before = [item.keys[k][1] for k in _ORDER[: _ORDER.index(name)] if k in item.keys]
        start = end = max(before, default=item.end)
    if start and new and lines[start - 1][-1:] != "\n":
        lines[start - 1] += "\n"
    lines[start:end] = new
    return "".join(lines)


def _same(now: Any, value: Any) -> bool:
    """Return whether a field has this value already. Texts are compared without the white space around them, 1 and true are different."""
    if isinstance(now, str) and isinstance(value, str):
        return now.strip() == value.strip()
    return now == value and repr(now) == repr(value)


_LIKENESS: tuple[Callable[[str], str | None], ...] = (
    lambda line: line,
    lambda line: line.lstrip("- ").partition(":")[0] if ":" in line else None,
    lambda line: "-" if line.startswith("-") else None,
)
"""How a line is found again, surest first: by its text, by its key, by being an item."""


def _with_comments(new: list[str], old: list[str]) -> list[str]:
    """Return the new lines of a field with the comments of its old ones, each at the line with the same text, else key, else place."""
    commented: list[tuple[str, list[str], str]] = []
    above: list[str] = []
    for line in old:
        if line.strip() and not line.lstrip().startswith("#"):
            found = _COMMENT.search(line.rstrip("\n"))
            commented.append((line[: found.start() if found else None].strip(), above, found[0] if found else ""))
            above = []
        elif line.strip():
            above.append(line)
    kept: dict[int, tuple[str, list[str], str]] = {}
    for key in _LIKENESS:
        for one in list(commented):
            place = next((i for i, line in enumerate(new) if i not in kept and key(line.strip()) == key(one[0]) is not None), None)
            if place is not None:
                kept[place] = one
                commented.remove(one)
    made = []
    for i, line in enumerate(new):
        _, before, behind = kept.get(i, ("", [], ""))
        made += [*before, line.rstrip("\n") + behind + "\n"]
    return made + above


def _yaml(values: dict[str, Any], indent: int, old: list[str] | None = None) -> list[str]:
    values = {name: _short(value, old or [], name) for name, value in values.items()}
    dumped = yaml.dump(values, Dumper=BlockDumper, sort_keys=False, allow_unicode=True, width=112 - indent)
    return [f"{' ' * indent}{line}" for line in dumped.splitlines(keepends=True)]


def _short(value: Any, old: list[str], name: str = "") -> Any:
    """Return a value whose short lists and mappings are written in one line, but for those that `old`, the lines before, had in several."""
    free = len(old) < 2
    if isinstance(value, dict):
        inner = {key: _short(v, old, key) for key, v in value.items()}
        return OneLineMapping(inner) if free and _is_short(inner.values(), str(inner)) else inner
    if isinstance(value, list):
        items = [_short(v, old) for v in value]
        as_before = free or any(re.match(rf"[\s-]*{re.escape(name)}: *\[", line) for line in old)
        return InOneLine(items) if as_before and _is_short(items, str(items)) else items
    return value


def _is_short(values: Iterable[Any], written: str) -> bool:
    nested = any(isinstance(v, dict) or (isinstance(v, list) and not isinstance(v, InOneLine)) for v in values)
    return len(written) <= _SHORT and not nested


def _with_dash(lines: list[str], indent: int) -> list[str]:
    return [f"{' ' * (indent - 2)}- {lines[0][indent:]}", *lines[1:]]


def _parsed(text: str) -> YamlSource:
    return parse_yaml(text.encode(), Path("the constitution"), ConstitutionError)


def _item(source: YamlSource, text: str, index: int) -> _Lines:
    entry = entries(source)[index] if 0 <= index < len(entries(source)) else None
    if not isinstance(entry, dict) or not entry:
        raise ConstitutionError(f"there is no principle {index + 1} to edit")
    lines = text.splitlines()
    firsts = sorted((source.lines["principles", index, key] - 1, key) for key in entry)
    start = firsts[0][0]
    dash = lines[start].lstrip()
    indent = len(lines[start]) - len(dash) + 2
    block = dash.startswith("- ") and all(lines[n][indent:].startswith((key, f'"{key}', f"'{key}")) for n, key in firsts)
    if not block or len({n for n, _ in firsts}) < len(firsts):
        raise ConstitutionError(f"principle {index + 1} is not written one key a line: {_BY_HAND}")
    keys = {key: (n, _end(lines, n, indent)) for n, key in firsts}
    return _Lines(start, max(end for _, end in keys.values()), indent, keys)


def _end(lines: list[str], start: int, indent: int) -> int:
    """Return the line after a key's value: the value's lines are indented more than the key. Empty lines after it don't belong to it."""
    end = start + 1
    for n in range(start + 1, len(lines)):
        stripped = lines[n].lstrip()
        if stripped and len(lines[n]) - len(stripped) <= indent:
            break
        if stripped:
            end = n + 1
    return end


def _blocks(source: YamlSource, text: str, index: int) -> tuple[list[str], str, str]:
    """Return the text of each principle with the empty lines and comments above it, what is before the first, and what follows the last.

    Raises:
        ConstitutionError: there is no principle `index`, or one of them can only be edited as text.
    """
    _item(source, text, index)
    items = [_item(source, text, i) for i in range(len(entries(source)))]
    lines = text.splitlines(keepends=True)
    if lines[items[-1].end - 1][-1:] != "\n":
        lines[items[-1].end - 1] += "\n"
    starts = [items[0].start, *(item.end for item in items[:-1])]
    blocks = ["".join(lines[a : item.end]) for a, item in zip(starts, items, strict=True)]
    return blocks, "".join(lines[: items[0].start]), "".join(lines[items[-1].end :])


def _checked(text: str, wanted: list[Any], before: YamlSource) -> str:
    """Return the text if it holds these principles, and everything else as before."""
    try:
        found = _parsed(text).data
    except ConstitutionError:
        found = None
    if found != {**before.data, "principles": wanted}:
        raise ConstitutionError(f"the layout of this constitution does not allow this edit: {_BY_HAND}")
    return text
