"""YAML that people edit: what is read, what is refused and on which line, and that nothing else ever escapes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cai.core.yaml_source import MAX_BYTES, MAX_DEPTH, load_yaml, parse_yaml, schema_problems
from cai.errors import ConstitutionError, RecipeError

F = Path("f.yaml")


def parse(text: str) -> Any:
    return parse_yaml(text.encode(), F, RecipeError).data


def refused(raw: str | bytes) -> str:
    with pytest.raises(RecipeError) as e:
        parse_yaml(raw.encode() if isinstance(raw, str) else raw, F, RecipeError)
    return str(e.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E3", 1000.0),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("3.", 3.0),
        ("0", 0),
        ("-12", -12),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("No", "No"),
        ("off", "off"),
        ("2026-11-23", "2026-11-23"),
        ("12:30", "12:30"),
        ("010", "010"),
        ("1_000", "1_000"),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("'5'", "5"),
        ('"\\u00e9"', "é"),
        ("=", "="),
        ("<<", "<<"),
        ("bf16", "bf16"),
        ("v1.0e", "v1.0e"),
    ],
)
def test_scalars_are_read_by_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = parse(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_nested_data_and_their_lines() -> None:
    text = "# top\nname: x\nlist:\n  - one\n  - key: value\n    deep: [a,\n      {b: c}]\ntext: |\n  several\n  lines\n'quoted key': 1\n"
    source = parse_yaml(text.encode(), F, RecipeError)
    assert source.data == {
        "name": "x",
        "list": ["one", {"key": "value", "deep": ["a", {"b": "c"}]}],
        "text": "several\nlines\n",
        "quoted key": 1,
    }
    assert source.where(("list", 1, "deep", 1, "b")) == "f.yaml:7: list[1].deep[1].b"
    assert source.where(("text",)) == "f.yaml:8: text"
    assert source.where(("list", 0)) == "f.yaml:4: list[0]"
    assert source.where(("list", 1, "missing", "more")) == "f.yaml:5: list[1].missing.more"
    assert source.where(()) == "f.yaml:1"


def test_an_empty_file_is_nothing() -> None:
    assert parse_yaml(b"", F, RecipeError).data is None
    assert parse_yaml(b"# only a comment\n", F, RecipeError).data is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\n'a': 3\n", "f.yaml:3: duplicate key 'a' (first on line 1)"),
        ("a:\n  - b: 1\n    b: 2\n", "f.yaml:3: duplicate key 'b' (first on line 2)"),
        ("a: &x 1\nb: *x\n", "f.yaml:2: aliases (*name) are not supported; write the value out"),
        ("a: &x [1]\nb:\n  <<: *x\n", "f.yaml:3: aliases"),
        (
            "a: 1\nb: !!python/object/apply:os.system ['true']\n",
            "f.yaml:2: tags (tag:yaml.org,2002:python/object/apply:os.system) are not supported",
        ),
        ("!!python/name:os.system : 1\n", "f.yaml:1: tags"),
        ("a: !secret {b: 1}\n", "f.yaml:1: tags (!secret) are not supported"),
        ("!!set {a, b}\n", "f.yaml:1: tags"),
        ("a: !!timestamp x\n", "f.yaml:1: tags"),
        ("a: !!str 5\n", "f.yaml:1: tags"),
        ("? [a, b]\n: 1\n", "f.yaml:1: a key must be plain text"),
        ('"\\u0000": 1\n', "f.yaml:1: key '\\x00' has characters that can't be shown"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: not valid YAML"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2: not valid YAML"),
        ("a: 'open\n", "f.yaml:2: not valid YAML"),
        ("a: b: c\n", "f.yaml:1: not valid YAML"),
        ("a:\n\t- b\n", "f.yaml:2: not valid YAML"),
        ("a: 1\nb: 1e999\n", "f.yaml:2: not a valid value: '1e999' (too large)"),
        ("a: " + "9" * 5000, "f.yaml:1: not a valid value: '" + "9" * 80 + "'"),
        ('a: "\\ud800"\n', "f.yaml:1: not a valid value"),
        ("%YAML 3.0\n---\na: 1\n", "f.yaml:1: not valid YAML"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_on_its_line(text: str, said: str) -> None:
    assert refused(text).startswith(said)


@pytest.mark.parametrize("raw", [b"a: \x00", b"\xff\xfe\x00", b"a: \xc3\x28", bytes(range(256)), b"\x7fELF\x02\x01", b"\x89PNG\r\n\x1a\n"])
def test_binary_junk_is_not_text(raw: bytes) -> None:
    assert refused(raw).startswith("f.yaml: not text (")


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "{a: "])
@pytest.mark.parametrize("times", [40, 5000, 200_000])
def test_deep_nesting_is_refused_at_once(opening: str, times: int) -> None:
    assert f"nested deeper than {MAX_DEPTH} levels" in refused((opening * times)[: MAX_BYTES - 1])


def test_deep_indentation_is_refused_on_its_line() -> None:
    assert refused("".join(" " * i + "a:\n" for i in range(100))) == f"f.yaml:{MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH} levels"


def test_nesting_up_to_the_limit_is_read() -> None:
    value = parse("[" * MAX_DEPTH + "x" + "]" * MAX_DEPTH)
    for _ in range(MAX_DEPTH):
        (value,) = value
    assert value == "x"
    assert "nested deeper" in refused("[" * (MAX_DEPTH + 1) + "x" + "]" * (MAX_DEPTH + 1))


def test_a_bomb_of_aliases_never_unfolds() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    assert refused(bomb).startswith("f.yaml:2: aliases")


def test_size_is_limited() -> None:
    assert refused(b"#" * (MAX_BYTES + 1)) == "f.yaml: larger than 1024 KiB"
    assert parse_yaml(b"#" * MAX_BYTES, F, RecipeError).data is None


def test_files_that_cannot_be_read_raise_the_error_asked_for(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConstitutionError, match="no such file"):
            load_yaml(path, ConstitutionError)
    (tmp_path / "ok.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    source = load_yaml(tmp_path / "ok.yaml", ConstitutionError)
    assert source.data == {"a": 1, "b": 2}
    assert source.where(("b",)) == f"{tmp_path / 'ok.yaml'}:2: b"


PIECES = st.sampled_from(
    [
        *"abc:-?,[]{}#&*!|>'\"%@`~=\n\t 019.eE+\\/",
        "  ",
        ": ",
        "- ",
        "---\n",
        "!!int ",
        "!!map ",
        "&x ",
        "*x",
        "<<: ",
        "\ufeff",
        "\x85",
        "\u2028",
        "\\ud800",
    ]
)


@given(st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=40).map("".join).map(str.encode)))
@example(b"!<!> x")
@example(b"%TAG ! !\n--- !x y")
@example(b'"\\UFFFFFFFF"')
@example(b"a: |99999999999999999999\n")
def test_any_bytes_give_data_or_the_error_asked_for(raw: bytes) -> None:
    try:
        parse_yaml(raw, F, ConstitutionError)
    except ConstitutionError as e:
        assert str(e).startswith("f.yaml:")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdef_-. ", min_size=1), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_json_is_read_as_what_it_is(value: object) -> None:
    assert parse_yaml(json.dumps(value).encode(), F, RecipeError).data == value


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0},
        "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": False}},
        "either": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"deep": {"type": "integer"}}}]},
    },
    "required": ["n"],
    "additionalProperties": False,
}


def test_every_schema_problem_is_listed_in_line_order() -> None:
    text = "n: -1\nlist:\n  - x: ok\n  - x: 3\n    y: 1\n    z: 1\nother: 1\neither:\n  deep: no\n"
    assert schema_problems(parse_yaml(text.encode(), F, RecipeError), SCHEMA) == [
        "f.yaml:1: n: must be a whole number, at least 0; found -1",
        "f.yaml:4: list[1].x: must be a text; found 3",
        "f.yaml:5: list[1].y: unknown keys 'y', 'z'; known: x",
        "f.yaml:7: other: unknown key 'other'. Did you mean 'either'?",
        "f.yaml:9: either.deep: must be a whole number; found 'no'",
    ]


def test_a_missing_key_is_shown_where_it_should_stand() -> None:
    assert schema_problems(parse_yaml(b"list: []\n", F, RecipeError), SCHEMA) == ["f.yaml:1: 'n' is missing"]


def test_a_huge_wrong_value_is_shown_in_part() -> None:
    (problem,) = schema_problems(parse_yaml(b"n: " + b"x" * 100_000, F, RecipeError), SCHEMA)
    assert len(problem) < 400
    assert problem.startswith("f.yaml:1: n: must be a whole number, at least 0; found 'xxx") and problem.endswith("...'")
