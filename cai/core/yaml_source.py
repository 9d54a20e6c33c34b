"""Safe loading of YAML files, with the line of every value for error messages.

Tags, duplicate keys, aliases (they allow YAML bombs), files over 1 MiB and nesting deeper than 32 levels are errors. Plain scalars follow
the core schema of YAML 1.2, not PyYAML's 1.1: `2e-4` is a number; `yes`, `No`, dates and `.nan` are text.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cai.core.jsonl import read_file
from cai.core.schema_words import in_words, unknown_keys
from cai.core.workspace import no_such_file
from cai.errors import CaiError

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
_TAG = "tag:yaml.org,2002:"
YamlPath = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlSource:
    """A parsed file: its data, and the line (from 1) of every key and item, by path."""

    path: Path
    data: Any
    lines: dict[YamlPath, int]
    origins: dict[YamlPath, str] = field(default_factory=dict)
    """Where values came from that are not in the file, such as `--set seed=1`."""
    text: str = ""
    """The file's text, with its comments."""

    def where(self, path: Iterable[str | int]) -> str:
        """Return `file:line: dotted.path` for a path; the line is that of the nearest enclosing item with a known line.

        For a value that is not from the file, its origin is returned instead of file and line.
        """
        path = tuple(path)
        known = path
        if origin := next((self.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origins), None):
            return f"{origin}: {'.'.join(map(str, path))}"
        while known not in self.lines:
            known = known[:-1]
        dotted = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
        return f"{self.path}:{self.lines[known]}" + (f": {dotted}" if dotted else "")

    def at(self, path: YamlPath) -> Any:
        """Return the value at a path."""
        node = self.data
        for key in path:
            node = node[key]
        return node


def schema_problems(source: YamlSource, schema: dict[str, Any], at: YamlPath = ()) -> list[str]:
    """Validate a file, or its value at a path, against a JSON Schema (2020-12).

    Returns:
        All problems in line order, each with file, line and YAML path.
    """
    from jsonschema import Draft202012Validator

    found = []
    for e in (one for error in Draft202012Validator(schema).iter_errors(source.at(at)) for one in _within(error)):
        path = (*at, *e.absolute_path)
        message = in_words(e)
        if e.validator == "additionalProperties":
            known = sorted(e.schema.get("properties", {}))
            extra = [k for k in e.instance if k not in known]
            path += (str(extra[0]),)
            message = unknown_keys(extra, known)
        found.append((source.lines.get(path, 0), f"{source.where(path)}: {message}"))
    return [text for _, text in sorted(found)]


def _within(error: Any) -> Iterator[Any]:
    """Yield the errors behind one that says only that no alternative (`anyOf`, `oneOf`) holds: those of the closest alternative."""
    branches: dict[Any, list[Any]] = {}
    for e in error.context or ():
        branches.setdefault(e.schema_path[0], []).append(e)
    if not branches:
        yield error
        return
    deepest = {name: max(len(e.absolute_path) for e in branch) for name, branch in branches.items()}
    other_type = {name: any(e.validator == "type" and not e.path for e in branch) for name, branch in branches.items()}
    for e in branches[min(branches, key=lambda name: (other_type[name], -deepest[name]))]:
        yield from _within(e)


def load_yaml(path: Path, error: type[CaiError], folder: str = "") -> YamlSource:
    """Read a YAML file.

    Args:
        path: path of the file.
        error: exception type to raise, which depends on the kind of file.
        folder: folder of the workspace that holds files of this kind, which are listed if there is no such file.

    Raises:
        CaiError: of type `error`, with file and line: the file can't be read or is not plain YAML.
    """
    try:
        raw = read_file(path, MAX_BYTES)
    except (FileNotFoundError, IsADirectoryError) as e:
        raise error(no_such_file(path, folder)) from e
    except (OSError, ValueError) as e:  # a name with a NUL in it is a ValueError
        raise error(f"{str(path)[:200]}: can't be read ({getattr(e, 'strerror', None) or e})") from e
    return parse_yaml(raw, path, error)


def parse_yaml(raw: bytes, path: Path, error: type[CaiError]) -> YamlSource:
    """Parse YAML from memory; `path` is the name used in error messages. Raises as `load_yaml` does."""
    if len(raw) > MAX_BYTES:
        raise error(f"{path}: larger than {MAX_BYTES // 1024} KiB")
    lines: dict[YamlPath, int] = {(): 1}

    def build(node: yaml.Node, at: YamlPath) -> Any:
        lines.setdefault(at, _line(node))
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                line = _line(key_node)
                key = key_node.value
                if not isinstance(key_node, yaml.ScalarNode):
                    raise _RefusedError(line, "a key must be plain text")
                if not key.isprintable():
                    raise _RefusedError(line, f"key {key!r} has characters that can't be shown")
                if key in result:
                    raise _RefusedError(line, f"duplicate key {key!r} (first on line {lines[(*at, key)]})")
                lines[(*at, key)] = line
                result[key] = build(value_node, (*at, key))
            return result
        if isinstance(node, yaml.SequenceNode):
            return [build(child, (*at, i)) for i, child in enumerate(node.value)]
        return _scalar(node)

    try:
        loader = _Loader(raw)
        try:
            node = loader.get_single_node()
            data = None if node is None else build(node, ())
        finally:
            loader.dispose()
    except _RefusedError as e:
        raise error(f"{path}:{e.line}: {e.text}") from None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise error(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {e.problem}") from e
    except yaml.reader.ReaderError as e:
        raise error(f"{path}: not text ({e.reason} at character {e.position})") from e
    except (yaml.YAMLError, ValueError, OverflowError) as e:
        raise error(f"{path}: not valid YAML: {e}") from e
    return YamlSource(path, data, lines, text=raw.decode(errors="replace"))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _scalar(node: yaml.Node) -> Any:
    """Return the value of a plain or quoted scalar."""
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            number = float(text)
            if not math.isfinite(number):
                raise ValueError("too large")
            return number
        text.encode()  # YAML escapes can give lone surrogates, which are not valid UTF-8
        if "\0" in text:
            raise ValueError("a NUL character")
    except ValueError as e:
        raise _RefusedError(_line(node), f"not a valid value: {text[:80]!r} ({e})") from e
    return text


class _RefusedError(Exception):
    """Valid YAML that `cai` does not accept."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


class _Loader(yaml.SafeLoader):
    """Composes nodes; raises at the first alias, tag or node that is nested too deep."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - filled by add_implicit_resolver below
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.events.AliasEvent):
            raise _RefusedError(line, "aliases (*name) are not supported; write the value out")
        if event.tag is not None:
            raise _RefusedError(line, f"tags ({event.tag[:60]}) are not supported; write the plain value")
        if self.depth > MAX_DEPTH:
            raise _RefusedError(line, f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)\.[0-9]*([eE][-+]?[0-9]+)?|(0|[1-9][0-9]*)[eE][-+]?[0-9]+)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), list(_first))
