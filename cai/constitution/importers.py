"""Import principles from other projects' JSON, and write a constitution as readable YAML.

Two formats are supported: the Constitutional AI paper's JSON (Bai et al. 2022, arXiv 2212.08073: an object of critique and revision
requests, or a list of comparison instructions), and llm-swarm's JSON (`{"constitutions": [{"critic", "revision"}, ...]}`). Their texts are
kept; wrappers such as `\\n\\nCritiqueRequest:` and ` Options:` are removed. A statement is derived by these rules, and each principle's
`source` says so, so that a person can improve it. What the file doesn't have (judging questions, for example) keeps its default wording,
which is asked beside the statement.

1. A revision request "... to remove (all) X content ..." or "... that does not have any X" becomes a statement about X. Other requests in
   the same text are ignored.
2. "... to avoid" or "refrain from doing Y" becomes one about doing Y.
3. Any other revision request, and a comparison instruction, is quoted.

Neither format has prompt kinds, so every principle applies to all kinds.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cai.constitution.load import constitution_schema
from cai.core.console import printable
from cai.core.jsonl import read_file
from cai.core.yaml_source import YamlSource, schema_problems
from cai.errors import ConstitutionError
from cai.records import WORDINGS, Constitution, Examples, Principle, ResponseCheck

EDITOR_LINE = "# yaml-language-server: $schema=schema.json\n"
MAX_BYTES = 8 * 1024 * 1024

_BEFORE = re.compile(r"^\s*(?:CritiqueRequest|RevisionRequest|Human)\s*:\s*")
_AFTER = re.compile(r"\s*(?:Critique|Revision|Options|Assistant)\s*:\s*$")
_TAIL = r"(?: that is [^.;]*|, (?:including|especially) [^.;]*)?"
_REMOVAL = re.compile(
    rf"\b(?:(?:to remove|that removes) (?:any and all |all |any )?(?P<what>[^.;]*?\bcontent\b{_TAIL})"
    r"|that does not (?:have|contain) any (?:trace of )?(?P<any>[^.;]*))"
)
_ABSTENTION = re.compile(r"\b(?:avoids?|refrains? from) (?P<doing>[a-z]+ing\b[^.;]*)")
_TRANSCRIPT = re.compile(r"(?:^|\n)\s*(?:Human|Assistant|H|A)\s*:")


def import_constitution(paths: Path | Sequence[Path]) -> Constitution:
    """Import principles from one or more JSON files into one constitution.

    Args:
        paths: one or more files in a supported format.

    Raises:
        ConstitutionError: lists all problems in all files.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    if not files:
        raise ConstitutionError("nothing to import: name at least one JSON file")
    problems: list[str] = []
    principles: list[Principle] = []
    for path in files:
        try:
            principles += _read(path, _load_json(path), problems)
        except ConstitutionError as e:
            problems.append(str(e))
    names = " and ".join(path.name for path in files)
    constitution = Constitution(
        id=kebab(files[0].stem)[:64].strip("-") or "imported",
        name=f"Imported from {names}"[:120],
        description=f"Imported from {names}. The statements were made by rule; write better ones.",
        principles=tuple(with_unique_ids(principles)),
    )
    if not problems:
        problems += problems_of(constitution, files[0])
    if problems:
        raise ConstitutionError(
            f"nothing imported: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n" + "\n".join(f"  {p}" for p in problems)
        )
    return constitution


def problems_of(constitution: Constitution, path: Path) -> list[str]:
    """Return the schema errors of an imported constitution; `path` is the source file, for the messages."""
    data = msgspec.json.decode(msgspec.json.encode(_mapping(constitution)))
    return schema_problems(YamlSource(path, data, {(): 1}), constitution_schema())


def dump_yaml(constitution: Constitution, language: str = "en", comments: Sequence[str] = ()) -> str:
    """Return a constitution as YAML with a schema comment for editors, long texts folded and defaults left out.

    Loading the result gives an equal constitution, if no text begins or ends with white space.

    Args:
        language: whose default requests and questions are left out (ISO 639-1).
        comments: a line to stand above each principle; none where there are none.
    """
    whole, wording = _mapping(constitution), WORDINGS[language]
    if language != "en":
        rows = [{name: value for name, value in row.items() if wording.get(name) != value} for row in whole.pop("principles")]
        whole |= {"language": language, "principles": rows}
    head, *blocks = re.split(r"(?m)^(?=  - )", dump_blocks(whole, "principles"))
    above = [f"  # {printable(' '.join(comment.split()))}\n" for comment in comments] or [""] * len(blocks)
    return EDITOR_LINE + head + "".join(line + block for line, block in zip(above, blocks, strict=True))


def _mapping(constitution: Constitution) -> dict[str, Any]:
    rows = [principle_row(p) for p in constitution.principles]
    return {"id": constitution.id, "name": constitution.name, "description": constitution.description, "principles": rows}


def principle_row(p: Principle) -> dict[str, Any]:
    """Return a principle as a mapping for YAML, without fields that have their default value."""
    row = _row(p)
    if "check" in row:
        row["check"] = [_row(check) for check in p.check]
    if "examples" in row:
        row["examples"] = _row(p.examples)
    if "applies_to" in row:
        row["applies_to"] = InOneLine(p.applies_to)
    if "weight" in row and float(p.weight).is_integer():
        row["weight"] = int(p.weight)
    return row


def _row(record: Principle | ResponseCheck | Examples) -> dict[str, Any]:
    """Return the fields that don't have their default value."""
    found = {f.name: value for f in fields(record) if (value := getattr(record, f.name)) != f.default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def dump_blocks(whole: dict[str, Any], *lists: str) -> str:
    """Return a mapping as YAML, with an empty line before each of the named lists and between their items."""
    text = yaml.dump(whole, Dumper=BlockDumper, sort_keys=False, allow_unicode=True, width=112)
    text = re.sub(rf"(?m)^(?=(?:{'|'.join(lists)}):|  - )", "\n", text)
    return re.sub(rf"(?m)^((?:{'|'.join(lists)}):\n)\n", r"\1", text)


class InOneLine(list[Any]):
    """A list that is written in flow style: [a, b]."""


class OneLineMapping(dict[str, Any]):
    """A mapping that is written in flow style: {a: b}."""


class BlockDumper(yaml.SafeDumper):
    """Writes block style with indented lists, long texts folded, and texts with unusual characters in double quotes."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _write_text(dumper: BlockDumper, text: str) -> yaml.Node:
    style = None
    if not text.isprintable():
        style = '"'
    elif len(text) > 80 and text.strip() == text and "  " not in text:
        style = ">"
    elif not text[:1].isalpha():  # PyYAML follows YAML 1.1, in which 1e5 is a string
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


BlockDumper.add_representer(str, _write_text)
BlockDumper.add_representer(OneLineMapping, lambda dumper, items: dumper.represent_mapping("tag:yaml.org,2002:map", items, flow_style=True))
BlockDumper.add_representer(InOneLine, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))


def _load_json(path: Path) -> Any:
    try:
        raw = read_file(path, MAX_BYTES)
    except OSError as e:
        raise ConstitutionError(f"{path}: can't be read ({e.strerror or e})") from e
    try:
        return json.loads(raw)
    except json.JSONDecodeError as e:
        raise ConstitutionError(f"{path}:{e.lineno}: not valid JSON: {e.msg}") from e
    except (ValueError, RecursionError) as e:
        raise ConstitutionError(f"{path}: not valid JSON: {e}") from e


def _read(path: Path, data: Any, problems: list[str]) -> list[Principle]:
    """Detect a file's format and return its principles. Errors in single entries are added to `problems`."""
    if isinstance(data, dict) and "constitutions" in data:
        return _read_requests(path, data["constitutions"], "principle", ("critic", "revision"), problems)
    if isinstance(data, dict) and data:
        return _read_requests(path, data, "", ("prompt", "edit_request"), problems)
    if isinstance(data, list) and data:
        return _read_comparisons(path, data, problems)
    raise ConstitutionError(
        f"{path}: unknown format; expected the paper's "
        '{"name": {"prompt": [...], "edit_request": "..."}} or ["Choose the response ... Options:"], or llm-swarm\'s '
        '{"constitutions": [{"critic": "...", "revision": "..."}]}'
    )


def _read_requests(path: Path, data: Any, prefix: str, keys: tuple[str, str], problems: list[str]) -> list[Principle]:
    """Read critique and revision requests from an object or a list."""
    if isinstance(data, dict):
        named: list[tuple[str, str, Any]] = [(kebab(key), f"{path}: {key}", entry) for key, entry in data.items()]
    elif isinstance(data, list):
        named = [(f"{prefix}-{i}", f"{path}: constitutions[{i}]", entry) for i, entry in enumerate(data)]
    else:
        raise ConstitutionError(f"{path}: constitutions: expected a list of {{{keys[0]}, {keys[1]}}}; found {type(data).__name__}")
    principles = []
    for principle_id, where, entry in named:
        texts = [_text(entry.get(key)) if isinstance(entry, dict) else None for key in keys]
        missing = [key for key, text in zip(keys, texts, strict=True) if not text]
        if missing:
            problems.append(f"{where}: expected a text under {' and '.join(map(repr, missing))}; found {str(entry)[:80]!r}")
        else:
            principles.append(_from_requests(principle_id, str(texts[0]), str(texts[1]), f"{path.name}: {where.split(': ')[-1]}"))
    if not named:
        problems.append(f"{path}: no principles found")
    return principles


def _read_comparisons(path: Path, data: list[Any], problems: list[str]) -> list[Principle]:
    principles = []
    for i, entry in enumerate(data):
        if text := _text(entry):
            principles.append(_from_comparison(f"comparison-{i}", text, f"{path.name}: [{i}]"))
        else:
            problems.append(f"{path}: [{i}]: expected a comparison instruction, a text; found {str(entry)[:80]!r}")
    return principles


def _text(value: Any) -> str | None:
    """Return a text, or the only text of a list, without its wrappers; None for other values and for dialogues."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        return None
    text = _AFTER.sub("", _BEFORE.sub("", value)).strip()
    return None if _TRANSCRIPT.search(text) else text


def _from_requests(principle_id: str, critique: str, revision: str, source: str) -> Principle:
    """Make a principle from a critique request and a revision request.

    >>> _from_requests("a", "Find rude content.", "Please rewrite the response to remove all rude content.", "x").statement
    'The response must not contain rude content.'
    """
    if found := _REMOVAL.search(revision):
        statement = f"The response must not contain {(found['what'] or found['any']).strip()}."
    elif found := _ABSTENTION.search(revision):
        statement = f"The response must refrain from {found['doing'].strip()}."
    else:
        statement = f"Write every response so that nobody has to ask for this: “{revision}”"
    return Principle(principle_id, statement, critique, revision, source=f"{source} (statement derived from its revision request)")


def _from_comparison(principle_id: str, instruction: str, source: str) -> Principle:
    """Make a principle from a comparison instruction."""
    compares = instruction.endswith("?") and "which" in re.split(r"(?<=[.!?])\s", instruction)[-1].lower()
    return Principle(
        principle_id,
        statement=f"Write the response that would be chosen under this instruction: “{instruction}”",
        compare=instruction if compares else f"{instruction} Which response should be chosen?",
        source=f"{source} (statement derived from its comparison)",
    )


def kebab(name: str) -> str:
    """Return a name as a lowercase kebab-case id.

    >>> kebab("paper_CritiqueRevision3")
    'paper-critique-revision-3'
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "-", name)
    return re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-")


def with_unique_ids(principles: Iterable[Principle]) -> list[Principle]:
    """Give every principle a unique id: shorten long ids, replace empty ids, and number repeated ids."""
    taken: set[str] = set()
    result = []
    for p in principles:
        base = p.id[:56].strip("-") or "principle"
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        result.append(replace(p, id=name))
    return result
