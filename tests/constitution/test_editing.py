"""Editing one principle in the text of a constitution."""

from pathlib import Path

import pytest
import yaml

from cai.constitution.editing import DRAFTED, add_principle, drafted_fields, move_principle, remove_principle, set_fields, stale_drafts
from cai.constitution.lint import lint_text
from cai.constitution.load import parse_constitution
from cai.core.yaml_source import parse_yaml
from cai.errors import ConstitutionError

SHIPPED = sorted((Path(__file__).parents[2] / "constitution").glob("*.yaml"))
TEXT = """\
# mine
id: mine
name: Mine
description: For tests.
principles:
  # about sources
  - id: sources
    statement: >-
      Name the source of
      every claim.

    # a note
    compare: Which response names more sources?
  - id: short   # an id
    statement: Be short.  # keep me
# the end
"""


def principles(text: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = yaml.safe_load(text)["principles"]
    return found


def test_a_field_is_changed_and_every_other_line_stays() -> None:
    changed = set_fields(TEXT, 1, {"statement": "Be brief: always."})
    assert changed == TEXT.replace("statement: Be short.  # keep me", "statement: 'Be brief: always.'  # keep me")
    folded = set_fields(TEXT, 0, {"statement": "Name it."})
    assert folded == TEXT.replace(">-\n      Name the source of\n      every claim.\n", "Name it.\n")
    renamed = set_fields(TEXT, 1, {"id": "brief"})
    assert renamed == TEXT.replace("id: short   #", "id: brief   #")


def test_fields_are_added_in_order_and_removed() -> None:
    added = set_fields(TEXT, 0, {"revision": "Rewrite it.", "applies_to": ["harmful"]})
    assert list(principles(added)[0]) == ["id", "statement", "revision", "compare", "applies_to"]
    assert "    applies_to: [harmful]\n  - id: short" in added
    assert set_fields(added, 0, {"revision": None, "applies_to": None}) == TEXT


def test_drafts_are_marked_until_a_person_edits_them() -> None:
    drafted = set_fields(TEXT, 1, {"critique": "Say what is long.", "compare": "Which is shorter?"}, "embedded")
    assert drafted.count(f"    {DRAFTED}embedded [") == 2
    source = parse_yaml(drafted.encode(), Path("x"), ConstitutionError)
    assert drafted_fields(source, drafted) == [(), ("critique", "compare")]
    again = set_fields(drafted, 1, {"critique": "Point at what is long."}, "larger")
    assert again.count(DRAFTED) == 2 and f"{DRAFTED}larger" in again
    assert stale_drafts(parse_yaml(again.encode(), Path("x"), ConstitutionError)) == [(), ()]
    restated = parse_yaml(set_fields(again, 1, {"statement": "Be terse."}).encode(), Path("x"), ConstitutionError)
    assert stale_drafts(restated) == [(), ("critique", "compare")]
    assert [f.rule for f in lint_text(restated.text, Path("x"))].count("outdated-wording") == 2
    edited = set_fields(again, 1, {"critique": "Point at every long sentence."})
    assert edited.count(DRAFTED) == 1
    assert set_fields(edited, 1, {"critique": None, "compare": None}) == TEXT


def test_principles_are_added_moved_and_removed_with_their_comments() -> None:
    added = add_principle(TEXT, "kind", "Be kind.")
    assert [p["id"] for p in principles(added)] == ["sources", "short", "kind"] and added.endswith("# the end\n")
    moved = move_principle(added, 2, 0)
    assert [p["id"] for p in principles(moved)] == ["kind", "sources", "short"]
    assert remove_principle(added, 2) == TEXT.replace("# the end", "# the end")
    with pytest.raises(ConstitutionError, match="at least one principle"):
        remove_principle(remove_principle(TEXT, 0), 0)


def test_a_file_without_a_last_line_break_is_edited_too() -> None:
    bare = TEXT.replace("# the end\n", "").rstrip("\n")
    assert principles(set_fields(bare, 1, {"weight": 2}))[1]["weight"] == 2
    assert [p["id"] for p in principles(add_principle(bare, "kind", "Be kind."))] == ["sources", "short", "kind"]


@pytest.mark.parametrize(
    "text",
    [
        "id: a\nname: A\ndescription: b\nprinciples: [{id: a, statement: b}]\n",
        "id: a\nname: A\ndescription: b\nprinciples:\n  - {id: a, statement: b}\n",
        '{"id": "a", "name": "A", "description": "b", "principles": [{"id": "a", "statement": "b"}]}',
        "id: a\nname: A\ndescription: b\nprinciples: [just text]\n",
        "id: a\nname: A\ndescription: b\nprinciples: []\n",
    ],
)
def test_a_layout_that_is_not_one_key_a_line_is_refused(text: str) -> None:
    for act in (lambda: set_fields(text, 0, {"statement": "c"}), lambda: add_principle(text, "b", "c"), lambda: move_principle(text, 0, 0)):
        with pytest.raises(ConstitutionError):
            act()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_principle_of_the_shipped_constitutions_can_be_edited_and_put_back(path: Path) -> None:
    text = path.read_text()
    constitution = parse_constitution(text, path)
    for i, p in enumerate(constitution.principles):
        changed = set_fields(text, i, {"statement": f"{p.statement} And more: # yes.", "critique": "Say it.", "weight": 3})
        now = parse_constitution(changed, path).principles[i]
        assert (now.statement, now.critique, now.weight) == (f"{p.statement} And more: # yes.", "Say it.", 3)
        assert parse_constitution(move_principle(text, i, 0), path).principles[0] == p


CHECKED = """\
id: mine
name: Mine
description: For tests.
principles:
  - id: short
    statement: Be short.
    weight: 2 # twice
    # three words
    check: { max_words: 3 } # or four
    examples:
      # said by Ana
      good:
        # the shortest
        - Yes.
        - No. # also short
      bad: [This is far too long.]
  - id: kind
    statement: Be kind.
    check:
      # for the shop
      - kinds: [helpful]
        max_words: 30 # a screen
      - kinds: [harmful]
        # never
        refuses: true
"""


def test_rules_and_examples_are_edited_and_keep_their_comments() -> None:
    lines = set_fields(CHECKED, 0, {"check": {"max_words": 5}, "weight": 0.5})
    assert lines == CHECKED.replace("{ max_words: 3 } #", "{max_words: 5} #").replace("weight: 2 #", "weight: 0.5 #")
    blocks = [{"kinds": ["helpful"], "max_words": 40, "no_lists": True}, {"kinds": ["harmful"], "refuses": True}]
    changed = set_fields(CHECKED, 1, {"check": blocks})
    assert principles(changed)[1]["check"] == blocks
    for comment in ("# for the shop\n", "# a screen\n", "        # never\n        refuses: true"):
        assert changed.count(comment) == 1, changed
    examples = {"good": ["Yes.", "Nope.", "A colon: here.\nTwo lines."], "bad": ["This is far too long."]}
    changed = set_fields(CHECKED, 0, {"examples": examples})
    assert principles(changed)[0]["examples"] == examples
    assert changed.count("#") == CHECKED.count("#") and "# said by Ana\n      good:" in changed


def test_what_is_the_same_already_is_left_as_it_is_written() -> None:
    same = {"check": {"max_words": 3}, "weight": 2, "statement": " Be short.\n", "examples": principles(CHECKED)[0]["examples"]}
    assert set_fields(CHECKED, 0, same) == CHECKED
    assert set_fields(CHECKED, 0, {"check": None, "examples": None}).count("#") == 5
    assert "examples: {good: [Fine.]}\n  - id: kind" not in set_fields(CHECKED, 1, {"examples": {"good": ["Fine."]}})
