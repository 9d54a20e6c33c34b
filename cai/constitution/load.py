"""Load a constitution from YAML and report all schema errors at once."""

import contextlib
import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cai.core.workspace import find_workspace, shipped_workspace
from cai.core.yaml_source import YamlSource, load_yaml, parse_yaml, schema_problems
from cai.errors import ConstitutionError, RecipeError
from cai.records import WORDINGS, Constitution, Principle

R = TypeVar("R", Constitution, Principle)
SCHEMA_PATH = Path(__file__).with_name("schema.json")
"""Path of the schema. Workspaces have a copy in constitution/, for editors."""


@cache
def constitution_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a constitution file."""
    schema: dict[str, Any] = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    return schema


def load_constitution(source: Path | str) -> Constitution:
    """Load and validate a constitution. White space around texts is removed, so the YAML block style does not matter.

    Args:
        source: a YAML file; or a name such as `"general"`, which means `constitution/general.yaml` of the current workspace or, if there
            is none, of the constitutions shipped with `cai`.

    Raises:
        ConstitutionError: lists all problems with file, line and YAML path; or there is no constitution of that name.
    """
    path = _named(source) if isinstance(source, str) and "/" not in source and not source.endswith((".yaml", ".yml")) else Path(source)
    return _read(load_yaml(path, ConstitutionError, "constitution"))


def _named(name: str) -> Path:
    """Return the file of a named constitution. Raises `ConstitutionError` with the known names if there is none."""
    roots = [shipped_workspace()]
    with contextlib.suppress(RecipeError):
        roots.insert(0, find_workspace(Path.cwd()).root)
    files = {path.stem: path for root in reversed(roots) for path in sorted((root / "constitution").glob("*.yaml"))}
    if name not in files:
        raise ConstitutionError(f"no constitution {name!r}; there are: {', '.join(sorted(files))}. Or give the path of a YAML file")
    return files[name]


def parse_constitution(text: str, path: Path) -> Constitution:
    """Parse and validate a constitution from text; `path` is the name used in error messages. Raises as `load_constitution` does."""
    return _read(parse_yaml(text.encode(), path, ConstitutionError))


def _read(source: YamlSource) -> Constitution:
    path, problems = source.path, source_problems(source)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConstitutionError(f"{path}: not a valid constitution: {count}\n" + "\n".join(f"  {p}" for p in problems))
    constitution = read_fields(worded(source.data), Constitution)
    if constitution is None:  # only if the schema and the record type disagree
        raise ConstitutionError(f"{path}: passes schema.json but is not a Constitution; schema.json and cai/records disagree")
    return constitution


def language_of(path: Path) -> str:
    """Return the language (ISO 639-1) of a valid constitution's file; `en` where it names none. Raises as `load_constitution` does."""
    return str(load_yaml(path, ConstitutionError, "constitution").data.get("language", "en"))


def worded(data: dict[str, Any]) -> dict[str, Any]:
    """Return a constitution's data with the default requests and questions of its language in every principle that leaves them out."""
    defaults = WORDINGS[data.get("language", "en")]
    return {**data, "principles": [defaults | principle for principle in data["principles"]]}


def source_problems(source: YamlSource) -> list[str]:
    """Return all schema errors, and the duplicate ids, which a schema can't express."""
    if not isinstance(source.data, dict):
        found = "nothing" if source.data is None else type(source.data).__name__
        return [f"{source.path}:1: expected a mapping with id, name, description and principles; found {found}"]
    problems = schema_problems(source, constitution_schema())
    first: dict[str, int] = {}
    for i, entry in enumerate(entries(source)):
        if not isinstance(entry, dict):
            continue
        principle_id = entry.get("id")
        if isinstance(principle_id, str):
            j = first.setdefault(principle_id.strip(), i)
            if j != i:
                line = source.lines[("principles", j, "id")]
                problems.append(f"{source.where(('principles', i, 'id'))}: duplicate id {principle_id.strip()!r} (first on line {line})")
    return problems


def entries(source: YamlSource) -> list[Any]:
    """Return the items of the list `principles`, without validating them; empty if there is no such list."""
    found = source.data.get("principles") if isinstance(source.data, dict) else None
    return found if isinstance(found, list) else []


def read_fields(data: Any, record_type: type[R]) -> R | None:
    """Convert YAML data to a record, with white space stripped from its texts; return None if it does not fit."""
    try:
        return msgspec.convert(_stripped(data), record_type)
    except msgspec.ValidationError:
        return None


_LISTS = {"check": dict, "ends_with": str}
"""Keys whose value is a list, and may be written without it if it has one item; with the type of an item."""
_EXACT = ("matches", "not_matches", "json_schema")
"""Keys whose white space matters."""


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: [_stripped(v)] if isinstance(v, _LISTS.get(k, ())) else v if k in _EXACT else _stripped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_stripped(v) for v in value]
    return value.strip() if isinstance(value, str) else value
