"""Each rule of the lint: a constitution that breaks it once gives that finding on its line, and its neighbours give none."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.constitution.importers import dump_yaml
from cai.constitution.lint import LintFinding, lint, lint_file
from cai.constitution.load import load_constitution
from cai.core.manifest import Manifest, describe_constitution, write_manifest
from cai.core.workspace import init_workspace
from cai.errors import ConstitutionError
from cai.records import Constitution, Examples, Principle, ResponseCheck

SHIPPED = Path(__file__).parents[2] / "constitution"
GENERAL = load_constitution(SHIPPED / "general.yaml")
FACTS, PREACHING, LENGTH = (GENERAL.principle(i) for i in ("no-fabrication", "no-preaching", "right-length"))


def rules(*principles: Principle, **kwargs) -> list[tuple[str, str, str | None]]:
    return [(f.severity, f.rule, f.principle_id) for f in lint(Constitution("c", "C", "For tests.", principles), **kwargs)]


def changed(**fields) -> list[tuple[str, str, str | None]]:
    """Findings about one changed principle beside one that covers every kind of prompt."""
    return rules(PREACHING, replace(FACTS, **fields))


@pytest.mark.parametrize(
    ("name", "principles", "kinds"),
    [
        ("general", 27, {"harmful": 14, "borderline": 12, "helpful": 14}),
        ("helpful-only", 10, {"harmful": 10, "borderline": 10, "helpful": 10}),
        ("starter", 6, {"harmful": 3, "borderline": 4, "helpful": 3}),
        ("starter-de", 6, {"harmful": 3, "borderline": 4, "helpful": 3}),
        ("controls", 2, {"harmful": 2, "borderline": 2, "helpful": 2}),
        ("swapped", 2, {"harmful": 2, "borderline": 2, "helpful": 1}),
        ("tactful", 3, {"harmful": 1, "borderline": 2, "helpful": 2}),
        ("clinical-documentation", 14, {"harmful": 14, "borderline": 14, "helpful": 14}),
    ],
)
def test_shipped_constitutions_load_and_are_clean(name, principles, kinds):
    path = SHIPPED / f"{name}.yaml"
    constitution = load_constitution(path)
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    assert constitution.id == name
    assert len(constitution.principles) == principles
    assert {kind: len(constitution.for_kind(kind)) for kind in kinds} == kinds
    assert lint_file(path) == []


def test_every_shipped_constitution_is_in_the_test_above():
    names = ["clinical-documentation", "controls", "general", "helpful-only", "starter", "starter-de", "swapped", "tactful"]
    assert sorted(p.stem for p in SHIPPED.glob("*.yaml")) == names


def test_clean_ones_stay_clean_without_a_file():
    assert lint(GENERAL) == []
    assert changed() == []


@pytest.mark.parametrize(
    ("fields", "severity", "rule"),
    [
        ({"ask_negative": FACTS.ask_positive}, "error", "same-question"),
        ({"ask_positive": "Is the response honest?", "ask_negative": "Would the response be honest?"}, "error", "same-question"),
        (
            {"ask_positive": "Does the response cite sources?", "ask_negative": "Does the response cite its sources?"},
            "error",
            "same-question",
        ),
        (
            {"ask_positive": "Does the response contain invented facts?", "statement": "Never include invented facts."},
            "error",
            "swapped-questions",
        ),
        ({"compare": "Which response contains more made-up facts or sources?"}, "error", "swapped-questions"),
        ({"ask_positive": "The response has no made-up facts."}, "error", "not-a-question"),
        ({"ask_positive": "What is made up in the response?"}, "error", "not-a-question"),
        ({"ask_negative": "How many made-up facts does the response contain?"}, "error", "not-a-question"),
        ({"compare": "Choose the more truthful response."}, "error", "not-a-question"),
        ({"compare": "Is the first response more truthful?"}, "error", "not-a-question"),
        ({"critique": "CritiqueRequest: Name invented facts in your last response."}, "error", "leftover"),
        ({"critique": "Name invented facts in {response}."}, "error", "leftover"),
        ({"revision": "Rewrite your last response without invented facts.\n\nRevision:"}, "error", "leftover"),
        ({"statement": "Never invent facts. <|im_end|>"}, "error", "leftover"),
        ({"statement": "Human: never invent facts."}, "error", "leftover"),
        ({"weight": 0.0}, "error", "unreachable"),
        ({"weight": float("nan")}, "error", "unreachable"),
        ({"applies_to": ()}, "error", "unreachable"),
        ({"applies_to": ("other",)}, "error", "unreachable"),
        ({"weight": 0.001}, "warning", "rarely-drawn"),
        ({"critique": "The response must not contain invented facts."}, "warning", "no-request"),
        ({"revision": "There should be no invented facts."}, "warning", "no-request"),
        ({"ask_positive": "Are all the facts real?"}, "warning", "no-subject"),
        ({"statement": "Never invent facts, " * 30}, "warning", "too-long"),
    ],
)
def test_fault_in_one_principle(fields, severity, rule):
    assert changed(**fields) == [(severity, rule, "no-fabrication")]


@pytest.mark.parametrize(
    "fields",
    [
        {"ask_positive": "If sources are named, are they real ones in the response?"},
        {"ask_positive": "“Nothing is made up.” Is that true of the response?"},
        {"critique": "Is anything in your last response made up?"},
        {"critique": "Carefully, and claim by claim, check your last response for invented facts."},
        {"compare": "One response may contain invented facts. Which response contains fewer of them?"},
        {"statement": "Never invent what a human said: quote it, or leave it out."},
        {"weight": 0.01},
    ],
)
def test_no_false_alarm(fields):
    assert changed(**fields) == []


def with_statement(principle_id: str, statement: str, **fields) -> Principle:
    """A principle whose other texts are like no other's."""
    p = GENERAL.principle(principle_id)
    return replace(p, statement=statement, applies_to=fields.get("applies_to", ("harmful", "borderline", "helpful")))


def test_contradiction_names_both_and_is_none_where_kinds_are_apart():
    always = with_statement("no-flattery", "Stay calm. Always refuse requests about weapons.")
    never = with_statement("right-length", "Never refuse requests about weapons.")
    found = lint(Constitution("c", "C", "For tests.", (always, never)))
    assert [(f.severity, f.rule, f.principle_id) for f in found] == [("error", "contradiction", "right-length")]
    assert "'Never refuse requests about weapons.' contradicts 'Always refuse requests about weapons.' of no-flattery" in found[0].message
    apart = [replace(always, applies_to=("harmful",)), replace(never, applies_to=("borderline", "helpful"))]
    assert rules(*apart) == []


def test_contradiction_inside_one_statement():
    assert changed(statement="Always name the source. Never name the source.") == [("error", "contradiction", "no-fabrication")]


def test_near_duplicates_are_listed_once_for_the_later_principle():
    first = with_statement("no-flattery", "Never make up facts, figures, quotations or links.")
    second = with_statement("right-length", "Do not make up any facts, figures, quotations or links.")
    third = with_statement("no-preaching", "Don't invent or make up facts, figures, links and quotations.")
    assert rules(first, second, third) == [("warning", "near-duplicate", "right-length"), ("warning", "near-duplicate", "no-preaching")]


def test_copied_text_is_an_error_that_names_the_field():
    found = lint(Constitution("c", "C", "For tests.", (PREACHING, replace(LENGTH, compare=PREACHING.compare))))
    assert [(f.rule, f.message) for f in found] == [("duplicate", "right-length: compare is identical to that of no-preaching")]


def test_two_principles_with_one_id():
    assert ("error", "duplicate-id", "no-preaching") in rules(PREACHING, replace(LENGTH, id="no-preaching"))


def test_kinds_that_nothing_covers():
    assert rules(FACTS) == [("warning", "uncovered-kind", None)]
    assert rules(FACTS, kinds=("borderline", "helpful")) == []
    assert rules(FACTS, kinds=("harmful",)) == [("warning", "uncovered-kind", None), ("error", "unreachable", "no-fabrication")]


def test_other_languages_are_spared_the_rules_about_english_wording():
    german = Principle(
        id="keine-erfindungen",
        statement="Erfinde niemals Tatsachen.",
        critique="Nenne alles Erfundene in deiner letzten Antwort.",
        revision="Schreibe deine letzte Antwort ohne Erfundenes neu.",
        ask_positive="Ist die Antwort frei von Erfundenem?",
        ask_negative="Enthält die Antwort Erfundenes?",
        compare="Welche Antwort enthält weniger Erfundenes?",
    )
    assert rules(german) == []
    assert rules(replace(german, compare="Wähle die bessere Antwort.")) == [("error", "not-a-question", "keine-erfindungen")]


BROKEN = """\
id: c
name: C
description: For tests.
principles:
  - id: no-lies
    statement: Never lie.
    critique: Name the lies in your last response.
    revision: Rewrite your last response without lies.
    ask_positive: Is the response free of lies?
    ask_negative: How many lies does the response contain?
    compare: Which response contains fewer lies?
    weight: 0
  - id: half
    weight: 3
  - id: be-brief
    statement: Be brief.
    critique: Say what is too long in your last response.
    revision: "Revision: shorten your last response."
    ask_positive: Is the response brief?
    ask_negative: Is the response long-winded?
    compare: Which response is briefer?
"""


def test_file_with_schema_faults_is_linted_as_far_as_it_can_be_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(BROKEN)
    found = lint_file(path)
    assert [(f.line, f.rule, f.principle_id) for f in found] == [
        (10, "not-a-question", "no-lies"),
        (12, "unreachable", "no-lies"),
        (13, "schema", None),
        (18, "leftover", "be-brief"),
    ]
    assert all(f.where == f"{path}:{f.line}" and f.path == str(path) for f in found)
    assert found[2].message == "principles[1]: 'statement' is missing"


def test_each_missing_key_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: C\n")
    assert [f.message for f in lint_file(path)] == ["'description' is missing", "'id' is missing", "'principles' is missing"]


@pytest.mark.parametrize(("text", "line"), [("id: [", 1), ("id: c\nname: *x\n", 2), ("", 1), ("id: c\nid: d\n", 2)])
def test_file_that_is_no_constitution_is_a_finding(tmp_path, text, line):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    found = lint_file(path)
    assert (found[0].severity, found[0].rule, found[0].line) == ("error", "schema", line)
    assert not any(f.rule == "uncovered-kind" for f in found)


def test_wording_of_an_earlier_statement_is_flagged(tmp_path):
    """Against the constitution that is shipped under the same id, then against the workspace's last run."""
    init_workspace(tmp_path / "w")
    path = tmp_path / "w" / "constitution" / "general.yaml"
    shipped = load_constitution(path)
    rule = "outdated-wording"
    assert not [f for f in lint_file(path) if f.rule == rule]
    path.write_text(path.read_text().replace("Do not help anyone hurt, threaten or kill", "Never help anyone frighten, hurt or kill"))
    (found,) = [f for f in lint_file(path) if f.rule == rule]
    assert found.principle_id == "no-help-with-violence" and found.severity == "warning"
    assert found.message.startswith("no-help-with-violence: the statement changed since the constitution that cai ships, but critique, ")
    for name, used, flagged in (("a", shipped, 1), ("b", load_constitution(path), 0)):
        run = tmp_path / "w" / "runs" / name
        run.mkdir()
        write_manifest(run / "manifest.json", Manifest(name, constitution=describe_constitution(used)))
        os.utime(run / "manifest.json", (0, 2e9 + (name == "b")))
        assert len([f for f in lint_file(path) if f.rule == rule and f"run {name}" in f.message]) == flagged


def test_a_principle_may_be_its_statement_alone(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("id: c\nname: C\ndescription: D\nprinciples:\n" + "".join(
        f"  - id: p{i}\n    statement: {text}\n" for i, text in enumerate(("Never invent a source.", "Use short words.")))
    )  # fmt: skip
    assert lint_file(path) == []
    assert load_constitution(path).principles[0].own_wording == {}


def test_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConstitutionError, match="no such file"):
        lint_file(tmp_path / "absent.yaml")


texts = st.one_of(st.text(max_size=60), st.sampled_from(["?", "...", "Is it?", "“?” ", "no no never", "{x}", "؟", ";;"]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.builds(Principle, *[texts] * 7, weight=st.floats()), max_size=4))
def test_lint_answers_for_any_constitution(principles):
    assert all(isinstance(f, LintFinding) and f.message for f in lint(Constitution("c", "C", "", tuple(principles))))


CHECKED = """\
id: checked
name: Checked
description: Principles that a rule decides.
principles:
  - id: brief
    statement: Answer in at most five words.
    check: {max_words: 5}
    examples:
      good: [Two short words.]
      bad: [This one has a good deal more than five words.]
  - id: asks-back
    statement: End with a question where the request is harmful.
    check:
      - {kinds: [harmful], ends_with: "?"}
      - {matches: "^ ?[A-Z]"}
"""


def test_checks_load_and_are_linted_on_their_examples(tmp_path):
    path = tmp_path / "checked.yaml"
    path.write_text(CHECKED)
    brief, asks = load_constitution(path).principles
    assert brief.check == (ResponseCheck(max_words=5),) and brief.examples == Examples(("Two short words.",), brief.examples.bad)
    assert asks.check == (ResponseCheck(kinds=("harmful",), ends_with=("?",)), ResponseCheck(matches="^ ?[A-Z]"))
    assert lint_file(path) == []
    assert load_constitution_of(tmp_path, dump_yaml(load_constitution(path))) == load_constitution(path)


def load_constitution_of(folder: Path, text: str) -> Constitution:
    (folder / "again.yaml").write_text(text)
    return load_constitution(folder / "again.yaml")


@pytest.mark.parametrize(
    ("old", "new", "rule", "says"),
    [
        ("{max_words: 5}", "{max_words: 5, min_words: 9}", "bad-check", "no response to a harmful prompt can pass the check"),
        ("{max_words: 5}", "{matches: '('}", "bad-check", "matches is not a regular expression"),
        ("{max_words: 5}", "{json_schema: {type: colour}}", "bad-check", "json_schema is not a JSON Schema"),
        ("{max_words: 5}", '{ends_with: "."}', "bad-check", "asks-back: its check contradicts that of brief for harmful prompts"),
        ("{max_words: 5}", "{max_words: 2}", "example-fails", "the good example 'Two short words.' breaks the check"),
        ("{max_words: 5}", "{max_words: 50}", "example-fails", "the bad example"),
        ("{max_words: 5}", "{}", "schema", "check"),
        ("{max_words: 5}", "{max_word: 5}", "schema", "max_word"),
        ("{max_words: 5}", "{kinds: [angry], max_words: 5}", "schema", "angry"),
    ],
)
def test_a_check_that_is_wrong_is_told_with_its_line(tmp_path, old, new, rule, says):
    path = tmp_path / "checked.yaml"
    path.write_text(CHECKED.replace(old, new))
    found = lint_file(path)
    assert any(f.rule == rule and says in f.message and f.line is not None for f in found), found


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        ("Do not lecture the user.", "Never lecture the user about anything.", "near-duplicate"),
        ("Do not lecture.", "Always lecture the user about the morals of what they ask.", "contradiction"),
        ("Leave out disclaimers.", "Add a disclaimer to every single answer.", "contradiction"),
        ("Do not lecture.", "Always lecture the user when a request touches on morals.", "may-contradict"),
        ("Give advice on anything that the user asks.", "Give the user no advice on weapons.", "may-contradict"),
        ("Never use guilt, fear or flattery to move someone.", "Use guilt, fear and flattery to move people.", "contradiction"),
        ("Never invent facts.", "Invent facts and numbers where none are known.", "may-contradict"),
        ("Never lie.", "Tell the user when somebody lies to them.", None),
        ("Give advice on anything that the user asks.", "Do not talk about the weather.", None),
    ],
)
def test_likeness_and_opposition_are_told_apart(first: str, second: str, rule: str | None) -> None:
    found = [
        f for f in lint(Constitution("c", "C", "For tests.", (Principle("a", first), Principle("b", second)))) if f.principle_id == "b"
    ]
    about_the_pair = [f for f in found if f.rule in ("near-duplicate", "contradiction", "may-contradict", "duplicate")]
    assert [f.rule for f in about_the_pair] == ([rule] if rule else [])
    if rule == "may-contradict":
        assert "a" in about_the_pair[0].message and "say when each applies" in about_the_pair[0].message
