"""Loading: the schema, every problem reported with its line, and nothing but ConstitutionError for any input."""

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai.constitution.load import SCHEMA_PATH, constitution_schema, load_constitution
from cai.errors import ConstitutionError
from cai.records import PROMPT_KINDS

ROOT = Path(__file__).parents[2]
GOOD = """\
# yaml-language-server: $schema=schema.json
id: small
name: Small
description: For tests.
principles:
  - id: no-fabrication
    statement: Never invent facts.
    critique: >-
      Point out what is invented
      in your last response.
    revision: |
      Rewrite your last response without it.
    ask_positive: Are the facts in the response real?
    ask_negative: Does the response contain made-up facts?
    compare: Which response has fewer made-up facts?
    applies_to: [helpful]
    weight: 2
  - id: answer-the-question
    statement: Answer the question.
    critique: Say what your last response missed.
    revision: Rewrite your last response so that it answers.
    ask_positive: Does the response answer the question?
    ask_negative: Does the response leave the question open?
    compare: Which response answers the question better?
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConstitutionError) as caught:
        load_constitution(write(tmp_path, text))
    return str(caught.value)


def test_good_file_loads_with_defaults_and_without_the_white_space_of_yaml_blocks(tmp_path):
    constitution = load_constitution(write(tmp_path, GOOD))
    first, second = constitution.principles
    assert (constitution.id, constitution.name) == ("small", "Small")
    assert first.critique == "Point out what is invented in your last response."
    assert first.revision == "Rewrite your last response without it."
    assert (first.applies_to, first.weight) == (("helpful",), 2.0)
    assert (second.applies_to, second.weight, second.source) == (("harmful", "borderline", "helpful"), 1.0, "")


def test_schema_is_valid_explains_every_field_and_knows_the_kinds():
    schema = constitution_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    principle = schema["$defs"]["principle"]
    fields = {**schema["properties"], **principle["properties"]}
    assert len(fields) == 17
    assert all(f["title"] and f["description"] for f in fields.values())
    assert set(principle["properties"]["applies_to"]["items"]["enum"]) == set(PROMPT_KINDS) - {"other"}


def test_schema_beside_the_constitutions_is_the_packaged_one():
    assert (ROOT / "constitution" / "schema.json").read_text() == SCHEMA_PATH.read_text()
    assert json.loads(SCHEMA_PATH.read_text()) == constitution_schema()


def test_every_problem_is_listed_with_file_line_and_path(tmp_path):
    text = (
        GOOD.replace("id: answer-the-question", "id: no-fabrication")
        .replace("[helpful]", "[helpfull]")
        .replace("weight: 2", "weight: .nan")
    )
    statement = next(line for line in text.splitlines(keepends=True) if line.startswith("    statement: ") and "invent" not in line)
    text = (
        text.replace(statement, "")
        .replace("    compare: Which response answers the question better?\n", "    comparison: Which?\n")
        .replace("id: small", "id: Small One")
    )
    message = problems_of(tmp_path, text)
    path = tmp_path / "c.yaml"
    assert "6 problems" in message
    assert f"{path}:2: id: 'Small One' is not lowercase kebab case" in message
    assert f"{path}:16: principles[0].applies_to[0]: 'helpfull' is none of" in message
    assert f"{path}:17: principles[0].weight: must be a number above 0 and at most 1000; found '.nan'" in message
    assert f"{path}:18: principles[1]: 'statement' is missing" in message
    assert f"{path}:18: principles[1].id: duplicate id 'no-fabrication' (first on line 6)" in message
    assert f"{path}:23: principles[1].comparison: unknown key 'comparison'. Did you mean 'compare'?" in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("weight: 2", "weight: 0", ":17: principles[0].weight: must be a number above 0 and at most 1000; found 0"),
        ("weight: 2", "weight: yes", ":17: principles[0].weight: must be a number above 0 and at most 1000; found 'yes'"),
        ("[helpful]", "[]", ":16: principles[0].applies_to: must not be empty"),
        ("[helpful]", "[other]", ":16: principles[0].applies_to[0]: 'other' is none of"),
        ("Never invent facts.", "' '", ":7: principles[0].statement: must not be empty"),
        ("Never invent facts.", "42", ":7: principles[0].statement: must be a text; found 42"),
        ("weight: 2", "weight: *w", ":17: aliases"),
        ("weight: 2", "weight: 2\n    weight: 3", ":18: duplicate key 'weight' (first on line 17)"),
        ("For tests.", '"\\uD800"', ":4: not a valid value"),
        ("For tests.", "!!timestamp x", ":4: tags (tag:yaml.org,2002:timestamp) are not supported"),
    ],
)
def test_fault_is_named_where_it_stands(tmp_path, old, new, expected):
    assert GOOD.count(old) == 1
    assert f"{tmp_path / 'c.yaml'}{expected}" in problems_of(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("- a", "list"), ("hello", "str"), ("# only a comment", "nothing")])
def test_file_that_is_no_mapping(tmp_path, text, found):
    assert f"expected a mapping with id, name, description and principles; found {found}" in problems_of(tmp_path, text)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConstitutionError, match=r"absent\.yaml: no such file\. Make a workspace"):
        load_constitution(tmp_path / "absent.yaml")
    (tmp_path / "general.yaml").write_text(GOOD)
    with pytest.raises(
        ConstitutionError, match=r"genral\.yaml: no such file\. Did you mean '.*/general\.yaml'\? There are: .*/general\.yaml"
    ):
        load_constitution(tmp_path / "genral.yaml")
    with pytest.raises(ConstitutionError, match="no such file"):
        load_constitution(tmp_path)


def test_long_text_is_refused_without_repeating_all_of_it(tmp_path):
    message = problems_of(tmp_path, GOOD.replace("Never invent facts.", "x" * 5000))
    assert ":7: principles[0].statement:" in message and "too long" in message and len(message) < 600


# Pieces that YAML treats specially, spliced into a valid file or standing alone.
PIECES = [
    "!!timestamp x",
    "!!bool x",
    '!!int ""',
    '"\\UFFFFFFFF"',
    "&a [*a]",
    "<<: 1",
    "? [a]\n: b",
    "\t- b",
    "%YAML 9.9",
    "---",
    "...",
    "2001-99-99",
]
PIECES += [
    "0x",
    "1_000",
    "1e999",
    ".nan",
    "-.inf",
    "~",
    "[[",
    "}",
    "!!set {a}",
    "!!binary x",
    "|2\n",
    "\x00",
    "\ufeff",
    "\u2028",
    "\x85",
    "9" * 5000,
]
pieces = st.sampled_from(PIECES)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")), pieces.map(str.encode)))
def test_any_bytes_give_a_constitution_error(tmp_path, raw):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConstitutionError):
        load_constitution(path)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD)), st.integers(0, 30), st.one_of(pieces, st.text(max_size=20)))
def test_damaged_file_loads_or_gives_a_constitution_error(tmp_path, at, cut, piece):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes((GOOD[:at] + piece + GOOD[at + cut :]).encode("utf-8", "surrogatepass"))
    try:
        constitution = load_constitution(path)
    except ConstitutionError as e:
        assert str(path) in str(e)
    else:
        assert constitution.principles and constitution.hash


def test_what_a_principle_leaves_out_is_in_the_constitutions_language(tmp_path):
    file = tmp_path / "c.yaml"
    head = "id: c\nname: C\ndescription: D\nlanguage: de\nprinciples:\n"
    text = f"{head}  - {{ id: kurz, statement: Fass dich kurz, compare: 'Welche ist kürzer?' }}\n"
    file.write_text(text)
    principle = load_constitution(file).principles[0]
    assert principle.ask_positive == "Folgt die Antwort dem Grundsatz?" and principle.own_wording == {"compare": "Welche ist kürzer?"}
    file.write_text(text.replace("language: de", "language: xx"))
    with pytest.raises(ConstitutionError, match=r"c\.yaml:4: language: 'xx' is none of"):
        load_constitution(file)
