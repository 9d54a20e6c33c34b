"""Attributes of the people who label, from a table beside an export that has none."""

from pathlib import Path

import pytest

from cai.errors import DataError
from cai.labels.people import described, load_people
from cai.records import HumanLabel, Message, Prompt, Provenance, ResponsePair


def label(annotator: str, **attributes: str) -> HumanLabel:
    pair = ResponsePair(Prompt("p", "other", (Message("user", "Why?"),), "s"), "So.", "Thus.", "human", Provenance(model=""))
    return HumanLabel(pair, annotator, 1.0, "human:f", "", attributes)


def test_a_table_describes_annotators(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("annotator,language,age\n2,sw,30-39\n3,,50-59\n9,de,20-29\n")
    people = load_people(path)
    assert people == {"2": {"language": "sw", "age": "30-39"}, "3": {"age": "50-59"}, "9": {"language": "de", "age": "20-29"}}
    labels, unknown = described([label("2", age="20-29", city="Mombasa"), label("4"), label("")], people, path)
    assert [x.attributes for x in labels] == [{"age": "30-39", "city": "Mombasa", "language": "sw"}, {}, {}] and unknown == ("4",)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("name,language\nann,sw\n", r"people\.csv:2: says not who it is about; expected a column annotator or"),
        ("annotator,language\nann,sw\nann,de\n", r"people\.csv:3: ann was described before"),
        ("annotator,language\nann\n", r"people\.csv:2: expected 2 cells"),
        ("annotator,language\n", r"people\.csv: describes nobody"),
    ],
)
def test_a_table_that_says_too_little_is_told(tmp_path: Path, table: str, told: str) -> None:
    (tmp_path / "people.csv").write_text(table)
    with pytest.raises(DataError, match=told):
        load_people(tmp_path / "people.csv")


def test_a_table_under_other_names_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of those who labelled\. It has ann@example\.org; the labels are of 2, 3"):
        described([label("2"), label("3")], {"ann@example.org": {"language": "sw"}}, tmp_path / "people.csv")
