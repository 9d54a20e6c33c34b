"""A model's proposals out of a document: tied to their passages or dropped, and never filled in."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cai.constitution.documents import read_document
from cai.constitution.lint import lint
from cai.constitution.proposals import Review, accept, drafted, dump_review, load_review
from cai.errors import ConstitutionError, ReplyError
from cai.models.base import CompleteRequest, Completion, Reply, Request, TextModel
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.models.templates import load_named_templates
from cai.workbench.proposing import TEMPLATES, propose, read_rules, read_wording
from tests.workspaces import ROOT

DOCUMENT = """\
# Privacy

The assistant must **not** reveal
loans. Staff may see them.

# Sources

It should name a source for each fact.

# Opening hours

The library opens at nine.
"""
RULES = {
    "Privacy": "Quote: The assistant must not reveal loans.\nPrinciple: Never reveal loans.",
    "Sources": 'Quote: "It should name a source for each fact."\nPrinciple: "Name a source for each fact."',
    "Opening hours": "None.",
}
WORDING = (
    " Point out each loan that your last response reveals.\nRevision: Rewrite your last response without revealing a loan.\n"
    "Follows: Does the response keep loans private and reveal none?\nBreaks: Does the response reveal a loan?\n"
    "Compare: Which response reveals fewer loans?"
)


def proposed(tmp_path: Path, rules: dict[str, str], word: Callable[[str], str], cut: bool = False) -> Review:
    """Propose with a scripted model: a reply for each section, and one for each statement."""

    def answer(request: Request) -> Reply:
        assert isinstance(request, CompleteRequest) and request.sampling.temperature == 0
        last = request.messages[-1].content
        if last.startswith("Section: "):
            return Completion(rules[last.splitlines()[0].removeprefix("Section: ")], cut, 1, 1)
        return Completion(word(last.removeprefix("Principle: ")), cut, 1, 1)

    path = tmp_path / "values.md"
    path.write_text(DOCUMENT)
    model = TextModel(ScriptedEngine(answer, "writer"), CallStore(None), "import")
    return asyncio.run(propose(read_document(path), model, load_named_templates(TEMPLATES, ROOT / "prompts" / "templates"), 0))


def no_words(statement: str) -> str:
    raise ReplyError("empty")


def test_proposals_carry_their_passage_and_the_models_words(tmp_path: Path) -> None:
    review = proposed(tmp_path, RULES, lambda s: WORDING if "loans" in s else "I can't.")
    first, second = review.proposals
    assert (first.where, first.quote, first.section) == ("values.md:3-4", "The assistant must **not** reveal loans.", "Privacy")
    assert first.principle.statement == "Never reveal loans." and first.principle.id == "reveal-loans" and not first.accepted
    assert first.principle.critique == "Point out each loan that your last response reveals."
    assert first.principle.compare == "Which response reveals fewer loans?"
    assert first.principle.source == (
        "values.md:3-4: “The assistant must **not** reveal loans.” "
        "(written by writer: critique, revision, ask_positive, ask_negative, compare)"
    )
    assert second.where == "values.md:8" and second.principle.critique == drafted("x", "Name a source for each fact.").critique
    assert "(drafted from the statement: critique, revision, ask_positive, ask_negative, compare)" in second.principle.source
    assert review.left_out == () and review.id == "values" and lint(accept(review, "all", tmp_path)) == []
    path = tmp_path / "review.yaml"
    path.write_text(dump_review(review))
    assert load_review(path) == review


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Quote: The assistant must never reveal a loan.\nPrinciple: Never reveal loans.", "not in the section"),
        ("Quote: It should name a source for each fact.\nPrinciple: Name sources.", "not in the section"),  # but in another one
        ("Quote: The assistant must not reveal loans.\nPrinciple: Be brief.", "the statement is about something else: Be brief."),
        ("Quote: The assistant must not reveal loans.\nPrinciple: Assistant: hide loans.", "the statement doesn't hold up"),
        ("The assistant keeps loans private.", "unparsed: no line 'Quote:'"),
        ("Quote: The assistant must not reveal loans.", "unparsed: no line 'Quote:'"),
        ("", "unparsed: no line 'Quote:'"),
    ],
)
def test_what_does_not_hold_up_is_dropped_with_the_reason(tmp_path: Path, reply: str, reason: str) -> None:
    review = proposed(tmp_path, RULES | {"Privacy": reply}, no_words)
    assert [p.where for p in review.proposals] == ["values.md:8"]
    assert [d.where.split("-")[0] for d in review.left_out] == ["values.md:3"] and review.left_out[0].reason.startswith(reason)


def test_a_reply_that_was_cut_off_loses_its_last_line(tmp_path: Path) -> None:
    rules = RULES | {"Sources": RULES["Sources"] + "\nQuote: It should name"}
    rules["Privacy"] += "\nQuote: Staff may see them.\nPrinciple: Staff may see lo"
    review = proposed(tmp_path, rules | {"Opening hours": "None.\n"}, lambda s: WORDING if "loans" in s else "I can't.", cut=True)
    assert [p.principle.statement for p in review.proposals] == ["Never reveal loans.", "Name a source for each fact."]
    assert "drafted from the statement: compare)" in review.proposals[0].principle.source


def test_a_repetition_stands_beside_what_it_repeats(tmp_path: Path) -> None:
    again = "Quote: The library opens at nine.\nPrinciple: Never reveal loans at nine."
    review = proposed(tmp_path, RULES | {"Opening hours": again}, no_words)
    assert [p.also for p in review.proposals] == [("values.md:12: The library opens at nine.",), ()]


def test_nothing_that_holds_up_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ConstitutionError, match=r"writer proposed nothing that holds up: it found no rule in any section.*--model"):
        proposed(tmp_path, dict.fromkeys(RULES, "None."), no_words)
    with pytest.raises(ConstitutionError, match=r"nothing that holds up \(not in the section × 3\)"):
        proposed(tmp_path, dict.fromkeys(RULES, "Quote: It must fly away.\nPrinciple: Fly away."), no_words)


def test_replies_are_read_by_their_labels_alone() -> None:
    assert read_rules("Here:\nQuote: a b c\n\nPrinciple: D.\nQuote: e\nMore\nPrinciple: F.") == [("a b c", "D.")]
    assert read_rules(" none ") == []
    assert read_wording("Critique: A.\nFollows: “Is it?”\nother: x\nCompare:") == {"critique": "A.", "ask_positive": "Is it?"}
