"""Principles out of human-labelled pairs: what is learned, what is measured, and when nothing is."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cai.constitution.importers import dump_yaml
from cai.constitution.load import load_constitution
from cai.data.splits import conversation_id
from cai.errors import DataError, ModelError
from cai.models.requests import ChoicesRequest, Reply, Request
from cai.records import Message, Prompt, Provenance, ResponsePair
from cai.workbench.learning import MEASURED, Learned, halves, learn, merged
from cai.workbench.validation import LabelFile
from tests.sessions import ScriptedSession
from tests.workbench.scripted_models import POLITE, TERSE, labelled, people
from tests.workspaces import make_workspace


def learned(pairs: LabelFile, script: Callable[[Request], Reply], most: int = 5) -> Learned:
    return ScriptedSession(script).ask(lambda s: learn(pairs, s, most))


def test_the_rule_that_explains_other_choices_too_is_learned(tmp_path: Path) -> None:
    found = learned(labelled(tmp_path), people(lambda i: POLITE if i % 3 else TERSE))
    assert (found.pairs, found.shown, found.held_out, found.skipped) == (60, 30, 30, 0)
    polite, terse = found.candidates
    assert (polite.statement, polite.agreement, polite.n, polite.chosen) == (POLITE, 1.0, 30, True) and polite.beats_baselines
    assert polite.gave + terse.gave == 30 and polite.low is not None and 0.8 < polite.low < 1
    assert not terse.beats_baselines and not terse.chosen and found.beating == 1
    best = max(b.agreement for b in found.baselines)
    assert polite.gain == pytest.approx(1 - best) and {b.name for b in found.baselines} == {"longer", "shorter"}
    assert found.constitution is not None and [p.statement for p in found.constitution.principles] == [POLITE]


def test_the_draft_says_where_each_principle_comes_from_and_loads(tmp_path: Path) -> None:
    found = learned(labelled(tmp_path), people(lambda i: POLITE))
    assert found.constitution is not None
    text = dump_yaml(found.constitution, "en", found.comments)
    (comment,) = re.findall(r"(?m)^  # (learned by .*)\n  - id: ask-politely", text)
    assert "agrees with people in 100%" in comment and "30 of 30 pairs gave it" in comment and "not yet read by a person" in comment
    path = tmp_path / "learned.yaml"
    path.write_text(text)
    assert load_constitution(path) == found.constitution and "learned" in load_constitution(path).principles[0].source


def test_a_draft_in_another_language_leaves_its_questions_to_the_language(tmp_path: Path) -> None:
    session = ScriptedSession(people(lambda i: "Frag höflich nach dem, was fehlt." if i else "!"))
    found = session.ask(lambda s: learn(labelled(tmp_path), s, 5, "de"))
    principle = found.candidates[0]
    assert principle.statement.startswith("Frag höflich")
    asked = [r.messages[-1].content for r in session.asked if isinstance(r, ChoicesRequest)]
    assert asked and all("dem Grundsatz" in text or "den Grundsatz" in text for text in asked)
    found = ScriptedSession(people(lambda i: POLITE)).ask(lambda s: learn(labelled(tmp_path), s, 5, "es"))
    assert found.constitution is None, "the script reads English questions"


def test_where_no_rule_beats_the_trivial_ones_there_is_no_draft(tmp_path: Path) -> None:
    found = learned(labelled(tmp_path), people(lambda i: TERSE))
    assert found.constitution is None and found.beating == 0 and found.candidates[0].agreement is not None and not found.comments


def test_only_the_commonest_rules_are_measured_and_at_most_n_are_chosen(tmp_path: Path) -> None:
    things = [
        f"{a}{b}" for a in ("green", "violet", "amber", "scarlet", "ivory", "copper") for b in "fox lamp stone cloud boat harp".split()
    ]
    things += [f"{a}{b}" for a in ("birch", "willow", "maple", "cedar") for b in "bird fish gate road moon tent".split()]
    found = learned(labelled(tmp_path, 120), people(lambda i: POLITE if i % 2 else f"Praise the {things[i // 2]}."), most=1)
    assert len(found.candidates) > MEASURED == sum(c.p is not None for c in found.candidates)
    assert [c.statement for c in found.candidates if c.chosen] == [POLITE]
    assert all(c.agreement is None and c.n == 0 for c in found.candidates[MEASURED:])


def test_replies_without_a_rule_are_counted_and_all_of_them_are_an_error(tmp_path: Path) -> None:
    found = learned(labelled(tmp_path), people(lambda i: POLITE if i % 2 else "Be kind.\nBecause it is kind."))
    assert {f.reason for f in found.failures} == {"several lines"} and found.candidates[0].gave + len(found.failures) == 30
    with pytest.raises(ModelError, match=r"gave no usable rule for 30 pairs: unparsed × 30.*--model"):
        learned(labelled(tmp_path), people(lambda i: ""))


def test_pairs_of_one_conversation_leave_nothing_to_measure_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all 12 usable pairs are of one conversation"):
        learned(labelled(tmp_path, 12, conversations=1), people(lambda i: POLITE))


def test_the_halves_share_no_conversation_and_are_about_equal() -> None:
    pairs = [
        ResponsePair(
            Prompt(f"p{i}", "other", (Message("user", f"Question {i // 3}?"),), "t"), "a", f"b{i}", "human", Provenance("m", (), "", 0)
        )
        for i in range(60)
    ]
    one, other = halves(pairs, 0)
    assert len(one) + len(other) == 60 and abs(len(one) - len(other)) <= 3
    assert not {conversation_id(p.prompt) for p in one} & {conversation_id(p.prompt) for p in other}
    assert halves(pairs, 0) == (one, other) != halves(pairs, 1)


def test_equal_and_nearly_equal_rules_are_one() -> None:
    rules = [
        "Never invent facts, quotations or sources.",
        "Be warm.",
        "Do not invent facts, quotations or sources.",
        "be  warm.",
        "Be warm.",
    ]
    assert merged(rules) == [("Be warm.", 3), ("Never invent facts, quotations or sources.", 2)]
    assert len(merged(["Always lecture the person.", "Never lecture the person."])) == 2, "opposites are not the same"


def test_what_was_asked_is_kept(tmp_path: Path) -> None:
    workspace, pairs = make_workspace(tmp_path / "w"), labelled(tmp_path, 20)
    first, second = (ScriptedSession(people(lambda i: POLITE), workspace).ask(lambda s: learn(pairs, s, 5)) for _ in range(2))
    assert first.candidates == second.candidates and first.calls.made > 0 == second.calls.made
