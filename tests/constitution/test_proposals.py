"""A review file keeps what a person writes in it, and only what somebody accepts becomes a constitution."""

from dataclasses import replace
from pathlib import Path

import pytest

from cai.constitution.importers import dump_yaml
from cai.constitution.lint import lint, lint_file
from cai.constitution.load import load_constitution
from cai.constitution.proposals import (
    DroppedProposal,
    Proposal,
    Review,
    accept,
    drafted,
    dump_review,
    holds_up,
    load_review,
    worded,
)
from cai.errors import ConstitutionError
from cai.records import Constitution
from tests.judge.judging import principle

STATEMENTS = (
    "Never invent a book, an author or a quotation.",
    "Stay calm and kind with readers who are upset.",
    "Fit every answer on one screen.",
    "Don't reveal what another reader has borrowed.",
)
REVIEW = Review(
    "values.md",
    "values",
    "Proposed from values.md",
    "Accepted from what m proposed out of values.md.",
    tuple(
        Proposal(i, f"values.md:{i}", f"it must: {s}", replace(drafted(f"p-{i}", s), source=f"values.md:{i}"), section="Style")
        for i, s in enumerate(STATEMENTS, 1)
    ),
    (DroppedProposal("values.md:9", "it must fly", "not in the section"),),
)


@pytest.fixture
def review_file(tmp_path: Path) -> Path:
    path = tmp_path / "review.yaml"
    path.write_text(dump_review(REVIEW))
    return path


@pytest.mark.parametrize("statement", STATEMENTS)
def test_what_is_drafted_from_a_statement_is_clean(statement: str) -> None:
    assert lint(Constitution("c", "C", "D", (drafted("x", statement),))) == []


def test_a_review_file_reads_back_and_keeps_a_persons_changes(review_file: Path) -> None:
    assert load_review(review_file) == REVIEW
    text = review_file.read_text()
    assert text.startswith("# Proposed from values.md: nothing here is in force.") and text.count("accepted: false") == 4
    review_file.write_text(
        text.replace("accepted: false", "accepted: true", 2).replace("statement: Never invent a book", "statement: Never make up a book")
    )
    made = accept(load_review(review_file), None, review_file)
    assert [p.statement for p in made.principles] == ["Never make up a book, an author or a quotation.", STATEMENTS[1]]


def test_nothing_is_accepted_silently(review_file: Path) -> None:
    for wrong, told in ((None, "none of 4 proposals"), ("1,99", "no proposal 99"), ("1,two", "no proposal two"), (",", "none of 4")):
        with pytest.raises(ConstitutionError, match=told):
            accept(load_review(review_file), wrong, review_file)
    assert [p.id for p in accept(REVIEW, "3, 1", review_file).principles] == ["p-1", "p-3"]


def test_what_is_accepted_loads_and_is_clean(tmp_path: Path) -> None:
    made, path = accept(REVIEW, "all", tmp_path / "review.yaml"), tmp_path / "made.yaml"
    path.write_text(dump_yaml(made))
    assert load_constitution(path) == made and lint_file(path) == []


def test_an_edit_that_breaks_the_schema_is_told(review_file: Path) -> None:
    review_file.write_text(dump_review(REVIEW).replace("id: p-2", "id: P 2"))
    with pytest.raises(ConstitutionError, match="kebab"):
        accept(load_review(review_file), "all", review_file)
    review_file.write_text(dump_review(REVIEW).replace("id: p-2", "id: p-1"))
    with pytest.raises(ConstitutionError, match="stands twice"):
        accept(load_review(review_file), "all", review_file)


def test_a_constitution_is_no_review_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("id: c\nname: C\n")
    with pytest.raises(ConstitutionError, match="not a review file"):
        load_review(tmp_path / "c.yaml")


def test_texts_are_taken_one_by_one() -> None:
    before = drafted("x", "Never reveal loans.")
    texts = {
        "critique": "Point out each loan that your last response reveals.",
        "revision": "Critique: rewrite it without a loan.",  # a wrapper left in
        "ask_positive": "What does it reveal?",  # not Yes or No
        "ask_negative": "Is the response nice about weather?",  # about something else
    }
    after, kept = worded(before, texts)
    assert kept == ("critique",) and after == replace(before, critique=texts["critique"])
    assert worded(before, {}) == (before, ())


def test_holding_up() -> None:
    p = replace(
        principle("kind"), ask_positive="Is the response kind?", ask_negative="Is the response UNkind?", compare="Which response is kinder?"
    )
    p = replace(p, critique="Say where your last response isn't kind.", revision="Rewrite it to be kind.")
    assert holds_up(p, "ask_positive")
    assert not holds_up(replace(p, ask_negative=p.ask_positive), "ask_negative")
    assert not holds_up(replace(p, critique="Say what is blue."), "critique")


def test_a_question_is_negated_as_the_statement_is() -> None:
    plain, never = drafted("plain", "Use words that a reader understands."), drafted("never", "Never invent a book.")
    for p, field, question, fits in (
        (plain, "ask_positive", "Does the response use words that a reader understands?", True),
        (plain, "ask_positive", "Does the response use words that a reader would not understand?", False),
        (plain, "ask_negative", "Does the response use words that a reader would not understand?", True),
        (plain, "ask_negative", "Does the response use words that a reader understands?", False),
        (plain, "ask_negative", "Does the response hide behind the jargon of a trade that a reader can't follow?", True),
        (never, "ask_positive", "Is the response free of invented books?", True),
        (never, "ask_positive", "Does the response invent a book?", False),
        (never, "ask_negative", "Does the response invent a book?", True),
    ):
        assert holds_up(replace(p, **{field: question}), field) is fits, question  # type: ignore[arg-type]
