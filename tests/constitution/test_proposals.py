"""A document becomes a constitution only through what a person accepts, and what comes out is clean."""

from pathlib import Path

import pytest

from cai.constitution.importers import dump_yaml
from cai.constitution.lint import lint, lint_file
from cai.constitution.load import load_constitution
from cai.constitution.narrative import Norm
from cai.constitution.proposals import Review, accept, dump_review, import_document, load_review, propose, worded
from cai.errors import ConstitutionError
from cai.records import Constitution

DOCUMENT = """\
# How the library's assistant behaves

The assistant should be honest about what it does not know. It must never invent a book, an author
or a quotation. If a reader is upset, it should be calm and kind. Readers must be over 16.

## Style

Responses should fit on one screen. Avoid jargon. Avoid giving legal advice. Sources should be named at the end of a text.
The assistant must not:

- reveal what another reader has borrowed
- flatter anyone: not the reader, not their taste

The assistant should refuse to write a reader's homework. Being honest, the assistant should say what it doesn't know.
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "Library Values.md"
    path.write_text(DOCUMENT)
    return path


def test_each_proposal_is_tied_to_its_passage(document: Path) -> None:
    review = propose(document)
    lines = DOCUMENT.splitlines()
    assert [p.where.rpartition(":")[2] for p in review.proposals] == ["3", "3-4", "4", "8", "8", "8", "8", "11", "12", "14"]
    for p in review.proposals:
        first, _, last = p.where.rpartition(":")[2].partition("-")
        passage = " ".join(lines[int(first) - 1 : int(last or first)])
        assert p.quote in passage or p.quote.removeprefix("The assistant must not ") in passage
        assert p.quote in p.principle.source and p.where in p.principle.source and p.accepted is False
    assert [p.section for p in review.proposals][2:4] == ["How the library's assistant behaves", "Style"]
    assert review.id == "library-values" and review.document == "Library Values.md"
    assert [(x.quote, x.reason) for x in review.left_out] == [("Readers must be over 16.", "it is about “Readers”")]


def test_a_repetition_stands_beside_what_it_repeats(document: Path) -> None:
    first = propose(document).proposals[0]
    assert len(first.also) == 1 and first.also[0].startswith("Library Values.md:14: Being honest")


def test_items_of_a_list_are_told_apart_by_what_is_their_own(tmp_path: Path) -> None:
    path = tmp_path / "d.md"
    lead = "The assistant must not adopt, optimise for or directly pursue any further goals as ends in themselves, such as:"
    path.write_text(f"{lead}\n\n- time on the site\n- revenue of its maker\n- time spent on the site\n")
    assert [(p.where, len(p.also)) for p in propose(path).proposals] == [("d.md:3", 1), ("d.md:4", 0)]


def test_what_rules_cant_word_cleanly_is_quoted_whole_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "d.md"
    path.write_text(
        "It must not adopt, favour or pursue further goals as ends in themselves, including but not limited to revenue or time on a site.\n"
        "The assistant should take care with User: lines. The assistant should [?](#stay_calm)[^1].\n"
    )
    review = propose(path)
    assert review.proposals[0].principle.ask_negative.endswith("Does the response break it?"), "both questions would have had a 'not'"
    assert review.proposals[1].principle.ask_positive == "In the response, does the assistant stay calm?"
    assert [x.where for x in review.left_out] == ["d.md:2"] and "passes lint" in review.left_out[0].reason
    assert lint(accept(review, "all", path)) == []


def test_the_opposite_is_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("The assistant should reveal its sources to readers. The assistant should not reveal its sources to readers.")
    review = propose(path)
    assert len(review.proposals) == 2, "a person has to see both"
    assert "contradiction" in {f.rule for f in lint(accept(review, "all", path))}


def test_what_is_accepted_passes_lint(document: Path, tmp_path: Path) -> None:
    constitution = accept(propose(document), "all", document)
    assert len(constitution.principles) == 10 and lint(constitution) == []
    path = tmp_path / "made.yaml"
    path.write_text(dump_yaml(constitution))
    assert lint_file(path) == [] and load_constitution(path) == constitution


def test_wordings_by_hand(document: Path) -> None:
    by_id = {p.principle.id: p.principle for p in propose(document).proposals}
    calm, legal, screen = by_id["calm-kind"], by_id["avoid-giving-legal-advice"], by_id["fit-screen"]
    assert calm.statement == "If a reader is upset, the assistant should be calm and kind."
    assert calm.ask_positive == "In the response, if a reader is upset, is the assistant calm and kind?"
    assert calm.ask_negative == "In the response, if a reader is upset, does the assistant fail to be calm and kind?"
    assert calm.revision == "If a reader is upset, rewrite your last response so as to be calm and kind."
    assert legal.ask_negative == "In the response, does the assistant go wrong by giving legal advice?"
    assert legal.compare == "Which response does more to avoid giving legal advice?"
    assert screen.ask_positive == "Does the response fit on one screen?"
    whole = by_id["sources-named-end-text"]
    assert whole.ask_negative == "One rule is: “Sources should be named at the end of a text.” Does the response break it?"


@pytest.mark.parametrize(
    "norm",
    [
        Norm(True, "reveal what another reader has borrowed from the library"),
        Norm(False, "reveal what another reader has borrowed from the library"),
        Norm(True, "be rude to any reader who asks a question twice"),
        Norm(False, "be patient with every reader who asks a question twice", "When the library is closed"),
        Norm(False, "refuse to write homework for a reader of any age"),
        Norm(False, "avoid long words and Latin abbreviations wherever possible"),
        Norm(False, "refrain from guessing a reader's age or income"),
        Norm(True, "contain spoilers of novels that are still on the new shelf", "", True),
        Norm(False, ""),
    ],
)
def test_no_way_of_wording_is_against_the_linters_rules(norm: Norm) -> None:
    verb = "must not" if norm.negative else "must"
    head = f"{norm.condition}, the" if norm.condition else "The"
    statement = f"{head} assistant {verb} {norm.action or 'answer; it should be short'}."
    principle = worded("x", statement, norm, "d.md:1", statement)
    assert lint(Constitution("c", "C", "D", (principle,))) == []


def test_a_review_file_reads_back_and_keeps_a_persons_changes(document: Path, tmp_path: Path) -> None:
    review = propose(document)
    path = tmp_path / "review.yaml"
    path.write_text(dump_review(review))
    assert load_review(path) == review
    text = path.read_text()
    assert text.startswith("# Proposed from Library Values.md: nothing here is in force.") and text.count("accepted: false") == 10
    path.write_text(
        text.replace("accepted: false", "accepted: true", 2).replace("statement: The assistant should be honest", "statement: Be honest")
    )
    made = import_document(path, None)
    assert isinstance(made, Constitution)
    assert [p.statement for p in made.principles] == [
        "Be honest about what it does not know.",
        "The assistant must never invent a book, an author or a quotation.",
    ]


def test_nothing_is_accepted_silently(document: Path, tmp_path: Path) -> None:
    assert isinstance(import_document(document, None), Review)
    path = tmp_path / "review.yaml"
    path.write_text(dump_review(propose(document)))
    with pytest.raises(ConstitutionError, match="none of 10 proposals is accepted"):
        import_document(path, None)
    for wrong, told in (("1,99", "no proposal 99"), ("1,two", "no proposal two"), (",", "none of 10")):
        with pytest.raises(ConstitutionError, match=told):
            import_document(path, wrong)
    made = import_document(path, "3, 1")
    assert isinstance(made, Constitution) and [p.id for p in made.principles] == ["honest-know", "calm-kind"]


def test_files_that_are_no_document_or_review(tmp_path: Path) -> None:
    empty, binary, constitution = tmp_path / "a.md", tmp_path / "b.txt", tmp_path / "c.yaml"
    empty.write_text("The library opened in 1909. Readers must be over 16.")
    binary.write_bytes(b"\xff\xfe\x00")
    constitution.write_text("id: c\nname: C\n")
    for path, told in (
        (empty, "should or must not do"),
        (binary, "not UTF-8"),
        (constitution, "not a review file"),
        (tmp_path / "no.md", "read"),
    ):
        with pytest.raises(ConstitutionError, match=told):
            import_document(path, None)


def test_an_edit_that_breaks_the_schema_is_told(document: Path, tmp_path: Path) -> None:
    path = tmp_path / "review.yaml"
    path.write_text(
        dump_review(propose(document)).replace("id: calm-kind", "id: Calm Kind").replace("id: no-flatter-reader-taste", "id: honest-know")
    )
    with pytest.raises(ConstitutionError, match="kebab"):
        import_document(path, "all")
    with pytest.raises(ConstitutionError, match="stands twice"):
        path.write_text(dump_review(propose(document)).replace("id: fit-screen", "id: honest-know"))
        import_document(path, "all")
