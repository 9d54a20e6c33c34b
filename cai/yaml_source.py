"""YAML that people edit: loaded safely, with the line of every value, so that each complaint can say where.

Refused with a clear error: custom tags, duplicate keys, aliases (nothing `cai` reads needs them, and they make YAML bombs), files over
1 MiB, nesting deeper than 32.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cai.errors import CaiError

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
YamlPath = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlSource:
    """A parsed file: its plain data, and the line (from 1) of every key and item by path."""

    path: Path
    data: Any
    lines: dict[YamlPath, int]

    def where(self, path: Iterable[str | int]) -> str:
        """Return `file:line: dotted.path` for a path, using the nearest enclosing line that is known."""
        path = tuple(path)
        known = path
        while known not in self.lines:
            known = known[:-1]
        dotted = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
        return f"{self.path}:{self.lines[known]}" + (f": {dotted}" if dotted else "")


def schema_problems(source: YamlSource, schema: dict[str, Any]) -> list[str]:
    """Check a file against a JSON Schema (2020-12) and return every problem, each with file, line and YAML path, in line order."""
    from jsonschema import Draft202012Validator

    found = []
    for e in Draft202012Validator(schema).iter_errors(source.data):
        while e.context:  # anyOf: show the branch that came closest
            e = max(e.context, key=lambda c: len(c.absolute_path))
        path = tuple(e.absolute_path)
        message = e.message if len(e.message) <= 300 else f"{e.message[:200]} ... {e.message[-80:]}"
        if e.validator == "pattern" and "description" in e.schema:
            message = f"{str(e.instance)[:80]!r} is not {e.schema['description']}"
        if e.validator == "additionalProperties":
            known = sorted(e.schema.get("properties", {}))
            extra = [k for k in e.instance if k not in known]
            path += (str(extra[0]),)
            message = f"unknown key{'s' if len(extra) > 1 else ''} {', '.join(map(repr, extra))}; known: {', '.join(known)}"
        found.append((source.lines.get(path, 0), f"{source.where(path)}: {message}"))
    return [text for _, text in sorted(found)]


def load_yaml(path: Path, error: type[CaiError]) -> YamlSource:
    """Read a YAML file.

    Args:
        path: the file.
        error: the `CaiError` to raise, for the kind of file it is.

    Raises:
        CaiError: of type `error`, naming file and line, where the file can't be read or isn't plain YAML.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise error(f"{path}: can't be read ({e.strerror or e})") from e
    if len(raw) > MAX_BYTES:
        raise error(f"{path}: larger than {MAX_BYTES // 1024} KiB")
    lines: dict[YamlPath, int] = {(): 1}

    def build(node: yaml.Node, at: YamlPath) -> Any:
        if len(at) > MAX_DEPTH:
            raise error(f"{path}:{node.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels")
        lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                key = key_node.value
                if not isinstance(key_node, yaml.ScalarNode):
                    raise error(f"{path}:{line}: a key must be plain text")
                if not key.isprintable():
                    raise error(f"{path}:{line}: key {key!r} has characters that can't be shown")
                if key in result:
                    raise error(f"{path}:{line}: key {key!r} stands twice (first on line {lines[(*at, key)]})")
                lines[(*at, key)] = line
                result[key] = build(value_node, (*at, key))
            return result
        if isinstance(node, yaml.SequenceNode):
            return [build(child, (*at, i)) for i, child in enumerate(node.value)]
        try:
            value = constructor.construct_object(node)
            if isinstance(value, str):
                value.encode()  # half a surrogate pair can be written in YAML, and nowhere else
        except (ValueError, LookupError, AttributeError, OverflowError) as e:  # what PyYAML's constructors let through
            raise error(f"{path}:{node.start_mark.line + 1}: not a valid value: {str(node.value)[:80]!r} ({e})") from e
        return value

    class _Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
                raise error(f"{path}:{line}: aliases (*name) are not read here; write the value out")
            return super().compose_node(parent, index)

    try:
        constructor = _Loader(raw)
        try:
            node = constructor.get_single_node()
            data = None if node is None else build(node, ())
        finally:
            constructor.dispose()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise error(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {e.problem}") from e
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as e:
        if isinstance(e, CaiError):
            raise
        raise error(f"{path}: not valid YAML: {e}") from e
    return YamlSource(path, data, lines)
