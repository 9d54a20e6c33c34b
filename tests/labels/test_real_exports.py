"""What Label Studio 1.23.2 and Argilla 2.8.0 wrote themselves when several people had answered, cut to a few rows with other texts.

In both, one person skipped or discarded a task, one left a draft, and one gave no answer about the pair; in Label Studio one answered
twice. The people were a script's.
"""

from pathlib import Path

import pytest

from cai.errors import DataError
from cai.labels.pooling import by_pair
from cai.records import HumanLabel
from tests.labels.loading import load_labels

EXPORTS = Path(__file__).parent / "exports"
Said = list[tuple[str, str, float]]
ONE = "00000000-0000-4000-8000-00000000000"


def said(labels: tuple[HumanLabel, ...]) -> Said:
    """Who answered what, and how far it was for the response that begins with "One"; the later of a person's answers."""
    last = [x for mine in by_pair(labels).values() for x in mine.values()]
    return sorted(
        (x.pair.prompt.messages[-1].content, x.annotator, x.p_a if x.pair.response_a.startswith("One") else 1 - x.p_a) for x in last
    )


SAID = [
    ("Question 0?", "3", 1.0),
    ("Question 0?", "4", 1.0),
    ("Question 1?", "2", 1.0),
    ("Question 1?", "4", 0.0),
    ("Question 2?", "2", 0.0),
    ("Question 2?", "4", 1.0),
    ("Question 3?", "2", 1.0),
    ("Question 3?", "3", 1.0),
    ("Question 3?", "4", 0.0),  # said A first
]


@pytest.mark.parametrize(
    ("name", "rows", "unusable"),
    [
        ("label_studio.json", 4, [("skipped", "annotator 2 skipped"), ("not_submitted", "a draft of ben@"), ("not_labelled", "")]),
        ("label_studio_min.json", 11, [("not_labelled", "no answer")]),  # it leaves skipped tasks and drafts out
        ("label_studio.csv", 11, [("not_labelled", "no answer")]),
    ],
)
def test_label_studios_three_formats_say_the_same(name: str, rows: int, unusable: list[tuple[str, str]]) -> None:
    loaded = load_labels(EXPORTS / name)
    assert said(loaded.labels) == SAID and loaded.rows == rows and len(loaded.labels) == 10
    assert [f.reason for f in loaded.failures] == [reason for reason, _ in unusable]
    assert all(words in f.detail for f, (_, words) in zip(loaded.failures, unusable, strict=True))
    assert all(x.time.startswith("2026-11-28T15:50:") for x in loaded.labels)
    assert {len(x.pair.prompt.messages) for x in loaded.labels} == {1, 3}


@pytest.mark.parametrize("name", ["label_studio_two_questions.json", "label_studio_pairwise.json", "label_studio_pairwise.csv"])
def test_what_else_a_set_up_asks_is_not_taken_for_the_answer(name: str) -> None:
    loaded = load_labels(EXPORTS / name)
    assert said(loaded.labels) == [("Question 0?", "2", 1.0), ("Question 0?", "3", 0.0), ("Question 0?", "4", 0.0)] and not loaded.failures


def test_two_questions_that_nothing_tells_apart_are_told(tmp_path: Path) -> None:
    text = (EXPORTS / "label_studio_two_questions.json").read_text().replace('"better"', '"verdict"')
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(DataError, match="no_choice: which of confidence, verdict is about the two responses"):
        load_labels(tmp_path / "e.json")


def test_argilla_says_in_columns_what_was_submitted() -> None:
    flat = load_labels(EXPORTS / "argilla_flat.json")
    assert said(flat.labels) == [
        ("Question 0?", ONE + "2", 0.0),
        ("Question 0?", ONE + "3", 1.0),
        ("Question 1?", ONE + "1", 1.0),
        ("Question 1?", ONE + "3", 1.0),
        ("Question 2?", ONE + "1", 0.0),
        ("Question 2?", ONE + "3", 0.0),
    ]
    assert [f.reason for f in flat.failures] == ["not_submitted"] * 2 and not flat.doubts


def test_argillas_nested_export_is_taken_with_a_doubt() -> None:
    nested = load_labels(EXPORTS / "argilla_nested.json")
    assert len(nested.labels) == 8 and not nested.failures  # the discarded answer and the draft are there, unmarked
    ((doubt, count),) = nested.doubts.items()
    assert "doesn't say which answers are drafts or were discarded" in doubt and count == 8


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("argilla_ranking.json", "no_choice: a ranking without its ranks, which Argilla 2 leaves out"),
        ("argilla_datasets.csv", r"unreadable: messages is a list of messages as Python writes it\. .* as JSON Lines or Parquet"),
    ],
)
def test_what_argilla_loses_on_the_way_is_told(name: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_labels(EXPORTS / name)
