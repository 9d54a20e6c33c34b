"""A model's proposals out of a document: tied to their passages or dropped, and never filled in."""

import asyncio
from pathlib import Path

import pytest

from cai.constitution.documents import read_document
from cai.constitution.lint import lint
from cai.constitution.proposals import DroppedProposal, Review, accept, drafted, dump_review, load_review
from cai.errors import ConstitutionError, ReplyError
from cai.models.base import TextModel
from cai.models.requests import CompleteRequest, Completion, Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.models.templates import load_named_templates
from cai.workbench.proposing import TEMPLATES, propose, read_quotes, read_wording, without_examples
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
QUOTES = {
    "Privacy": " none\nQuote: The assistant must not reveal\nloans.",
    "Sources": ' "It should name a source for each fact."',
    "Opening hours": " none",
}
WORDING = (
    " Never reveal loans.\nCritique: Point out each loan that your last response reveals.\n"
    "Revision: Rewrite your last response without revealing a loan.\n"
    "Follows: Does the response keep loans private and reveal none?\nBreaks: Does the response reveal a loan?\n"
    "Compare: Which response reveals fewer loans?"
)
WORDINGS = {
    "The assistant must **not** reveal loans.": WORDING,
    "It should name a source for each fact.": ' "Name a source for each fact."',
}


def proposed(tmp_path: Path, quotes: dict[str, str], wordings: dict[str, str], cut: bool = False) -> Review:
    """Propose with a scripted model: a reply for each section, and one for each passage; none where there is none."""

    def answer(request: Request) -> Reply:
        assert isinstance(request, CompleteRequest) and request.sampling.temperature == 0
        last = request.messages[-1].content
        if last.startswith("Section: "):
            assert request.prefill == "Quote:"
            return Completion(quotes[last.splitlines()[0].removeprefix("Section: ")], cut, 1, 1)
        assert request.prefill == "Principle:"
        if (text := wordings.get(last.removeprefix("Passage: "))) is None:
            raise ReplyError("empty")
        return Completion(text, cut, 1, 1)

    path = tmp_path / "values.md"
    path.write_text(DOCUMENT)
    model = TextModel(ScriptedEngine(answer, "writer"), CallStore(None), "import")
    return asyncio.run(propose(read_document(path), model, load_named_templates(TEMPLATES, ROOT / "prompts" / "templates"), 0))


def test_proposals_carry_their_passage_and_the_models_words(tmp_path: Path) -> None:
    review = proposed(tmp_path, QUOTES, WORDINGS)
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
    ("quote", "reason"),
    [
        (" The assistant must never reveal a loan.", "not in the section"),
        (" It should name a source for each fact.", "not in the section"),  # but in another one
    ],
)
def test_a_quotation_that_is_not_in_its_section_is_dropped(tmp_path: Path, quote: str, reason: str) -> None:
    review = proposed(tmp_path, QUOTES | {"Privacy": quote}, WORDINGS)
    assert [p.where for p in review.proposals] == ["values.md:8"]
    assert review.left_out == (DroppedProposal("values.md:3", quote.strip(), reason),)


@pytest.mark.parametrize(
    ("wording", "reason"),
    [
        (" Be brief.", "the statement is about something else: Be brief."),
        (" Assistant: hide loans.", "the statement doesn't hold up: "),
        (" Never reveal loans.\nPrinciple: Hide loans.", "unparsed: not one line 'Principle:'"),
        ("\nCritique: Name each loan.", "unparsed: not one line 'Principle:'"),
        (None, "empty"),
    ],
)
def test_a_statement_that_does_not_hold_up_is_dropped(tmp_path: Path, wording: str | None, reason: str) -> None:
    wordings = {**WORDINGS, "The assistant must **not** reveal loans.": wording}
    review = proposed(tmp_path, QUOTES, {k: v for k, v in wordings.items() if v is not None})
    assert [p.where for p in review.proposals] == ["values.md:8"]
    assert [d.where for d in review.left_out] == ["values.md:3-4"] and review.left_out[0].reason.startswith(reason)


def test_a_reply_that_was_cut_off_loses_its_last_line(tmp_path: Path) -> None:
    quotes = QUOTES | {"Privacy": QUOTES["Privacy"] + "\nQuote: Staff may see", "Sources": "\n", "Opening hours": " none\n"}
    review = proposed(tmp_path, quotes, WORDINGS, cut=True)
    assert [p.principle.statement for p in review.proposals] == ["Never reveal loans."] and review.left_out == ()
    assert "drafted from the statement: compare)" in review.proposals[0].principle.source


def test_a_repetition_stands_beside_what_it_repeats(tmp_path: Path) -> None:
    opening = "The library opens at nine."
    again = {opening: " Never reveal loans at the library.", **WORDINGS}
    review = proposed(tmp_path, QUOTES | {"Opening hours": f" {opening}"}, again)
    assert [p.also for p in review.proposals] == [(f"values.md:12: {opening}",), ()]


def test_nothing_that_holds_up_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ConstitutionError, match=r"writer proposed nothing that holds up: it found no rule in any section.*--model"):
        proposed(tmp_path, dict.fromkeys(QUOTES, " none"), WORDINGS)
    with pytest.raises(ConstitutionError, match=r"nothing that holds up \(not in the section × 3\)"):
        proposed(tmp_path, dict.fromkeys(QUOTES, " It must fly away."), WORDINGS)


def test_replies_are_read_by_their_labels_alone() -> None:
    assert read_quotes("Here:\nQuote: a b\n c\n\nQuote: None.\nQuote:") == ["a b\n c"]
    with pytest.raises(ReplyError, match="no line 'Quote:'"):
        read_quotes("The assistant is kind.")
    assert read_wording("Critique: A.\nFollows: “Is it?”\nother: x\nCompare:") == {"critique": "A.", "ask_positive": "Is it?"}


def test_a_text_about_the_templates_examples_is_dropped() -> None:
    template = load_named_templates(TEMPLATES, ROOT / "prompts" / "templates")[1]
    kept = {"revision": "Rewrite your last response so that each number has its origin."}
    said = {
        "critique": "Name each number in your last response that a newcomer would not know.",
        "compare": "Which response is easier to understand for a newcomer?",
    }
    assert without_examples({**kept, **said}, "Say where each number comes from.", template) == kept
    about = {"critique": said["critique"]}
    assert without_examples(about, "Explain each number to a newcomer.", template) == about
