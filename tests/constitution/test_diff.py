"""Text changes are found field by field, and word diffs lose nothing."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cai.constitution.diff import FieldChange, diff_constitutions, word_diff
from cai.records import Constitution, Principle


def principle(name: str, **fields: object) -> Principle:
    made = Principle(name, f"Be {name}.", f"How is it not {name}?", f"Make it {name}.", f"Is it {name}?", f"Is it un{name}?", "Which?")
    return replace(made, **fields)


OLD = Constitution("c", "C", "For tests.", (principle("kind"), principle("true"), principle("brief", weight=2.0)))


def test_equal_constitutions_have_no_difference():
    found = diff_constitutions(OLD, replace(OLD))
    assert found.is_empty and found.unchanged == 3


def test_an_edit_names_the_fields_that_differ():
    new = replace(OLD, name="D", principles=(principle("kind", weight=1.5, applies_to=("helpful",)), *OLD.principles[1:]))
    found = diff_constitutions(OLD, new)
    assert found.header == (FieldChange("name", "C", "D"),)
    (change,) = found.principles
    assert (change.kind, change.id, found.unchanged) == ("edited", "kind", 2)
    assert change.fields == (FieldChange("applies_to", "harmful, borderline, helpful", "helpful"), FieldChange("weight", "1", "1.5"))


def test_added_and_removed_principles_show_what_they_hold():
    new = replace(OLD, principles=(OLD.principles[0], OLD.principles[2], principle("new")))
    added, removed = diff_constitutions(OLD, new).principles
    assert (added.kind, added.id, removed.kind, removed.id) == ("added", "new", "removed", "true")
    assert added.fields[0] == FieldChange("statement", "", "Be new.") and removed.fields[0] == FieldChange("statement", "Be true.", "")
    assert [f.field for f in added.fields] == ["statement", "critique", "revision", "ask_positive", "ask_negative", "compare"]


def test_a_principle_with_only_another_id_is_renamed():
    new = replace(OLD, principles=(replace(OLD.principles[0], id="gentle"), *OLD.principles[1:]))
    (change,) = diff_constitutions(OLD, new).principles
    assert (change.kind, change.id, change.fields) == ("renamed", "gentle", (FieldChange("id", "kind", "gentle"),))


def test_another_order_is_said_and_is_no_edit():
    found = diff_constitutions(OLD, replace(OLD, principles=OLD.principles[::-1]))
    assert found.reordered and found.principles == () and not found.is_empty
    assert not diff_constitutions(OLD, replace(OLD, principles=(principle("new"), *OLD.principles))).reordered


def test_a_rewritten_phrase_is_one_change():
    assert word_diff("Never lie, cheat or steal.", "Never make things up or steal.") == [
        ("same", "Never "),
        ("removed", "lie, cheat"),
        ("added", "make things up"),
        ("same", " or steal."),
    ]


@given(st.text("ab ,.\n", max_size=30), st.text("ab ,.\n", max_size=30))
def test_a_word_diff_gives_both_texts_back(before: str, after: str):
    runs = word_diff(before, after)
    assert "".join(text for op, text in runs if op != "added") == before
    assert "".join(text for op, text in runs if op != "removed") == after
