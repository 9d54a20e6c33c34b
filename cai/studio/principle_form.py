"""What the editor's form shows of each principle, as its YAML has it, and what the form sends back."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cai.constitution.editing import drafted_fields
from cai.constitution.lint import LintFinding
from cai.constitution.load import constitution_schema, entries
from cai.core.yaml_source import YamlSource
from cai.records import DEFAULT_WORDING, LABELLED_KINDS

_PLACE = re.compile(r"principles\[\d+\](?:\.([\w-]+)(?:\[\d+\])?\.?(\S*?))?: (.*)", re.DOTALL)
_INPUTS = {"integer": "number", "boolean": "choice", "object": "json"}


class CheckRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule of a check."""

    rule: str
    value: Any
    kinds: list[str] = []
    """Kinds of prompt that it is for; empty: all kinds of the principle."""


class ExampleTexts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Example responses."""

    good: list[str] = []
    bad: list[str] = []


@dataclass(frozen=True, slots=True)
class FormProblem:
    """A finding about one principle."""

    field: str
    """The key that it is about; empty: the whole principle, or a key that the form doesn't have."""
    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class PrincipleForm:
    """What the form shows of a principle, as written in the text."""

    id: str
    line: int
    statement: str
    wording: dict[str, str]
    """Requests and questions of its own, by field."""
    drafted: tuple[str, ...]
    """Fields of them that a model drafted."""
    applies_to: tuple[str, ...]
    weight: Any
    """None if it is left out."""
    check: tuple[CheckRow, ...]
    examples: ExampleTexts
    openings: tuple[str, ...]
    source: str
    problems: tuple[FormProblem, ...]


def principle_forms(source: YamlSource, text: str, findings: Sequence[LintFinding]) -> tuple[PrincipleForm, ...]:
    """Return the form of each principle; empty unless all are mappings. A finding belongs to the principle whose lines it is on."""
    rows = entries(source)
    if not all(isinstance(row, dict) for row in rows):
        return ()
    starts = [source.lines[("principles", n)] for n in range(len(rows))]
    ends = [*starts[1:], len(text) + 1][: len(starts)]
    forms = []
    for n, (row, drafted, start, end) in enumerate(zip(rows, drafted_fields(source, text), starts, ends, strict=True)):
        said = {name: str(row.get(name) or "").strip() for name in ("id", "statement", "source", *DEFAULT_WORDING)}
        kinds = row.get("applies_to", ())
        keys = {source.lines[("principles", n, key)]: key for key in row}
        problems = tuple(_problem(f, said["id"], keys) for f in findings if f.line is not None and start <= f.line < end)
        wording = {name: said[name] for name in DEFAULT_WORDING if said[name]}
        known = tuple(k for k in LABELLED_KINDS if not isinstance(kinds, list) or k in kinds)
        check, examples = tuple(_rows(row.get("check"))), _examples(row.get("examples"))
        openings = tuple(str(text).strip() for text in given) if isinstance(given := row.get("openings"), list) else ()
        weight = row.get("weight")
        forms.append(
            PrincipleForm(
                said["id"],
                start,
                said["statement"],
                wording,
                drafted,
                known,
                weight,
                check,
                examples,
                openings,
                said["source"],
                problems,
            )
        )
    return tuple(forms)


def check_of(rows: Sequence[CheckRow]) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Return a check as the YAML has it: rules that follow each other and are for the same kinds are one block; None without rules.

    >>> check_of([CheckRow("max_words", 9), CheckRow("no_lists", True), CheckRow("refuses", True, ["harmful"])])
    [{'max_words': 9, 'no_lists': True}, {'kinds': ['harmful'], 'refuses': True}]
    """
    blocks: list[dict[str, Any]] = []
    for row in rows:
        if not blocks or blocks[-1].get("kinds", []) != row.kinds or row.rule in blocks[-1]:
            blocks.append({"kinds": row.kinds} if row.kinds else {})
        blocks[-1][row.rule] = row.value
    return blocks[0] if len(blocks) == 1 else blocks or None


def examples_of(texts: ExampleTexts) -> dict[str, list[str]] | None:
    """Return examples as the YAML has them; None without any."""
    found = {name: kept for name, given in (("good", texts.good), ("bad", texts.bad)) if (kept := [t for t in given if t.strip()])}
    return found or None


def check_rules() -> list[dict[str, str]]:
    """Return the rules that a check may have: name, what it means, and which input its value needs."""
    properties: dict[str, Any] = constitution_schema()["$defs"]["check"]["properties"]
    return [{"name": n, "about": p["description"], "input": _input(p)} for n, p in properties.items() if n != "kinds"]


def _input(schema: Mapping[str, Any]) -> str:
    return "lines" if "oneOf" in schema or "$ref" in schema else _INPUTS.get(schema["type"], "text")


def _rows(check: Any) -> Iterator[CheckRow]:
    for block in check if isinstance(check, list) else [check]:
        if isinstance(block, dict):
            given = block.get("kinds")
            kinds = sorted(map(str, given), key=_place_of) if isinstance(given, list) else []
            for rule, value in block.items():
                if rule != "kinds":
                    yield CheckRow(rule, [value] if rule == "ends_with" and isinstance(value, str) else value, kinds)


def _place_of(kind: str) -> int:
    return next((i for i, known in enumerate(LABELLED_KINDS) if known == kind), len(LABELLED_KINDS))


def _examples(examples: Any) -> ExampleTexts:
    texts = {name: examples.get(name) if isinstance(examples, dict) else None for name in ("good", "bad")}
    return ExampleTexts(**{name: [str(t).strip() for t in given] if isinstance(given, list) else [] for name, given in texts.items()})


def _problem(finding: LintFinding, principle_id: str, keys: Mapping[int, str]) -> FormProblem:
    """Return a finding without what the form shows anyway: which principle it is about, and which field."""
    found = _PLACE.fullmatch(finding.message)
    if found is None:
        field = keys.get(max((line for line in keys if line <= (finding.line or 0)), default=0), "")
        first = field == keys.get(min(keys, default=0)) and finding.rule not in ("duplicate-id", "schema")
        return FormProblem("" if first else field, finding.severity, finding.message.removeprefix(f"{principle_id}: "))
    field, inside, text = found[1] or "", found[2] or "", found[3]
    inside = re.sub(r"\[(\d+)\]", lambda m: f" {int(m[1]) + 1}", inside)
    if text.startswith("unknown key"):
        text, inside = text.replace("key", "rule", 1) if field == "check" else text, ""
    return FormProblem(field, finding.severity, f"{inside}: {text}" if inside else text)
