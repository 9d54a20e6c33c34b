"""Answers in codes: what a column says as a whole, what a user states, and what published data sets document."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.core.jsonl import write_records
from cai.errors import DataError
from cai.labels.answers import parse_choices
from cai.labels.load import load_human, load_label_files
from cai.recipe import HumanSource
from tests.labels.loading import load_labels

ASK = {"prompt": "Is tea hot?"}
SIDES = {**ASK, "response_a": "first", "response_b": "second"}


def save(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(
    tmp_path: Path, values: list[Any], choices: str | None = None, sides: tuple[str, str] = ("response_a", "response_b")
) -> list[float]:
    rows = ({"prompt": f"Question {i}?", sides[0]: "first", sides[1]: "second", "choice": v} for i, v in enumerate(values))
    labels = load_labels(save(tmp_path / "t.jsonl", *rows), choices=parse_choices(choices or None)).labels
    return [x.p_a if x.pair.response_a == "first" else 1 - x.p_a for x in labels]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 2], [1, 0, 0]),
        (["1.0", "2.0"], [1, 0]),
        (["A", "b", "tie"], [1, 0, 0.5]),
        (["Left", "right", "Equally good"], [1, 0, 0.5]),
        (["response_a", "response_b"], [1, 0]),
        (["Response A", "Option B"], [1, 0]),
        (["a", "b", "no idea"], [1, 0]),  # a word that can't be read is a fault of its row
        ([1, 2, "tie"], [1, 0, 0.5]),
    ],
)
def test_words_and_the_numbers_1_and_2_are_read(tmp_path: Path, values: list[Any], expected: list[float]) -> None:
    assert read(tmp_path, values) == expected


@pytest.mark.parametrize(
    "values",
    [[0, 1], [1, 1], [0, 1, 2], [-1, 0, 1], ["1.0", "0.0"], [True, False], [1, 2, 4, 7], [-3, 1, 2], [1, 2, 2.5],
     ["X", "Y", "tie"], ["B", "C"], ["А", "Б"], ["a", "b", 0], ["response_0", "response_1"],
     ["A", "B", "C", "D", "E"], ["A", "B", "A", "B", "A", "c"], ["A", "B", "slightly A"], ["left", "right", "right slightly"],
     ["A", "B", "skip", "skip", "n/a", "n/a"]],
)  # fmt: skip
def test_a_column_that_does_not_fit_is_refused_as_a_whole(tmp_path: Path, values: list[Any]) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl: the answers in column 'choice' can't be read, so none is: found .*--choices"):
        read(tmp_path, values)


@pytest.mark.parametrize("values", [[80, 1, 35, 0], [7, 1, 4, 2, 1], [1.0, 0.0, 55.0, 40.0]])
def test_numbers_that_are_no_probabilities_cost_the_whole_column(tmp_path: Path, values: list[float]) -> None:
    rows = [{"prompt": f"Question {i}?", "response_a": "x", "response_b": "y", "p_a": v} for i, v in enumerate(values)]
    with pytest.raises(DataError, match=r"none is read.*Divide percents by 100"):
        load_labels(save(tmp_path / "t.jsonl", *rows))
    fine = [{**rows[0], "prompt": f"Fine {i}?", "p_a": 0.75} for i in range(40)]
    assert len(load_labels(save(tmp_path / "u.jsonl", *fine, *rows[:1])).labels) >= 40, "one slip costs its row"


@pytest.mark.parametrize(
    ("sides", "values", "expected"),
    [
        (("response_0", "response_1"), [0, 1], [1, 0]),
        (("response_0", "response_1"), [1, 1], [0, 0]),
        (("response_0", "response_1"), ["response_1", "response 0"], [0, 1]),
        (("response_1", "response_2"), [1, 1], [1, 1]),
    ],
)
def test_a_number_at_the_end_of_a_response_columns_name_names_it(
    tmp_path: Path, sides: tuple[str, str], values: list[Any], expected: list[float]
) -> None:
    assert read(tmp_path, values, sides=sides) == expected
    with pytest.raises(DataError, match="3"):
        read(tmp_path, [*values, 3], sides=sides)


@pytest.mark.parametrize(
    ("choices", "values", "expected"),
    [
        ("0=A,1=B", [0, 1], [1, 0]),
        ("0=tie, 1=A, 2=B", [0, 1, 2], [0.5, 1, 0]),
        ("true=A,false=B", [True, False], [1, 0]),
        ("X=A,Y=B", ["X", "y", "tie"], [1, 0, 0.5]),
        ("1=B,2=A", [1, 1], [0, 0]),
        ("1=1.0,2=0.75,3=tie", [1, 2, 3], [1, 0.75, 0.5]),
        ("1..7", [1, 2, 4, 7], [1, 5 / 6, 0.5, 0]),
        ("7..1", [1, 4, 7], [0, 0.5, 1]),
        ("-3..3", ["-3", 0, 1.5], [1, 0.5, 0.25]),
    ],
)
def test_a_user_says_what_the_answers_mean(tmp_path: Path, choices: str, values: list[Any], expected: list[float]) -> None:
    assert read(tmp_path, values, choices) == pytest.approx(expected)


@pytest.mark.parametrize(("choices", "values"), [("0=A,1=B", [0, 1, 2]), ("1..5", [1, 6]), ("0=A,1=B", [0, -1])])
def test_what_a_users_statement_leaves_out_is_refused(tmp_path: Path, choices: str, values: list[Any]) -> None:
    with pytest.raises(DataError, match="--choices doesn't say what"):
        read(tmp_path, values, choices)


@pytest.mark.parametrize("text", ["", "0", "0=A,1", "0=C", "0=A,0=B", "3..3", "a..b", "1=0"])
def test_a_statement_that_can_not_be_read_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="--choices"):
        parse_choices(text)


PUBLISHED = {
    "pku": ({**ASK, "response_0": "first", "response_1": "second"}, "better_response_id", {0: 1, 1: 0}),
    "shp": ({"history": "Is tea hot?", "human_ref_A": "first", "human_ref_B": "second"}, "labels", {1: 1, 0: 0}),
    "helpsteer3": (
        {"context": [{"role": "user", "content": "Is tea hot?"}], "response1": "first", "response2": "second"},
        "overall_preference",
        {-3: 1, -1: 2 / 3, 0: 0.5, 1: 1 / 3, 2: 1 / 6},
    ),
    "helpsteer2": ({**ASK, "response_1": "first", "response_2": "second"}, "preference_strength", {-2: 5 / 6, 1: 1 / 3}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_codes_mean_what_their_authors_say(tmp_path: Path, name: str) -> None:
    row, column, codes = PUBLISHED[name]
    for code, p in codes.items():  # each alone: the other values of the column must not matter
        loaded = load_labels(save(tmp_path / "p.jsonl", {**row, column: code, "extra": 1}))
        (label,) = loaded.labels
        assert loaded.format == name and loaded.unused == ("extra",)
        assert (label.p_a if label.pair.response_a == "first" else 1 - label.p_a) == pytest.approx(p)


def test_pandalms_annotators_are_read_one_by_one(tmp_path: Path) -> None:
    row = {"instruction": "Sum up.", "input": "A text.", "response1": "first", "response2": "second"}
    coded = save(tmp_path / "coded.jsonl", {**row, "annotator1": 0, "annotator2": 1, "annotator3": 2})
    listed = save(tmp_path / "listed.jsonl", {**SIDES, "annotators": ["tie", "A", "B"]})
    for path in (coded, listed):
        labels = load_labels(path).labels
        assert [(x.annotator, x.p_a) for x in labels] == [("annotator1", 0.5), ("annotator2", 1.0), ("annotator3", 0.0)]
    assert load_labels(coded).labels[0].pair.prompt.messages[0].content == "Sum up.\n\nA text."


def test_helpsteer3s_annotators_are_votes(tmp_path: Path) -> None:
    row = {"context": [{"role": "user", "content": "Is tea hot?"}], "response1": "first", "response2": "second", "overall_preference": -1}
    said = [{"score": score, "reasoning": "r", "feedback1": "f", "feedback2": "f"} for score in (-3, 0, 1, -3)]
    path = save(tmp_path / "h.jsonl", {**row, "individual_preference": said})
    loaded = load_labels(path)
    assert (loaded.format, loaded.unused) == ("helpsteer3", ("overall_preference",))
    assert [(x.annotator, x.p_a) for x in loaded.labels] == [("", p) for p in (1.0, 0.5, pytest.approx(1 / 3), 1.0)]
    (p,), _ = load_human([HumanSource(path="h.jsonl")], tmp_path, 0)
    assert (p.chosen, p.p_chosen, p.weight) == ("first", pytest.approx((1 + 0.5 + 1 / 3 + 1) / 4), 1.0), "the same score twice is two votes"
    (p,), _ = load_human([HumanSource(path="h.jsonl", smoothing=1.0)], tmp_path, 0)
    assert p.p_chosen == pytest.approx((17 / 6 + 1) / 6)
    (label,) = load_labels(path, columns={"choice": "overall_preference"}).labels
    assert label.p_a == pytest.approx(2 / 3), "the user may take the summary"


def test_an_annotator_of_helpsteer3_without_a_score_is_a_failure(tmp_path: Path) -> None:
    row = {"context": [{"role": "user", "content": "Is tea hot?"}], "response1": "first", "response2": "second"}
    listed = {**row, "individual_preference": [{"score": 3}, {"reasoning": "r"}, {"score": None}, 2]}
    empty = {**row, "context": "Is tea cold?", "individual_preference": [], "overall_preference": -3}
    loaded = load_labels(save(tmp_path / "h.jsonl", listed, empty))
    assert [x.p_a for x in loaded.labels] == [0.0, 1.0], "without annotators, the row's own answer"
    assert [(f.reason, f.detail) for f in loaded.failures] == [
        ("not_labelled", f"annotator {n} in individual_preference has no score") for n in (2, 3, 4)
    ]


def test_the_files_of_a_source_are_read_and_pooled_as_one(tmp_path: Path) -> None:
    for who, code in (("ann", 1), ("bob", 1), ("eve", 2)):
        save(tmp_path / f"{who}.jsonl", {**SIDES, "choice": code, "annotator": who})
    files = sorted(tmp_path.glob("*.jsonl"))
    assert [[x.p_a for x in part.labels] for part in load_label_files(files)] == [[1.0], [1.0], [0.0]]
    (p,), _ = load_human([HumanSource(path="*.jsonl")], tmp_path, 0)
    assert (p.chosen, p.p_chosen, p.weight) == ("first", pytest.approx(2 / 3), 1.0)


def test_ten_raters_in_ten_files_are_one_pair_of_nine_to_one(tmp_path: Path) -> None:
    for n in range(10):
        save(tmp_path / f"rater{n}.jsonl", {**SIDES, "choice": "B" if n == 4 else "A", **({"annotator": f"r{n}"} if n % 2 else {})})
    (p,), failures = load_human([HumanSource(path="rater*.jsonl")], tmp_path, 0)
    assert (p.chosen, p.p_chosen, failures) == ("first", pytest.approx(0.9), ())
    (p,), _ = load_human([HumanSource(path=f"rater{n}.jsonl") for n in range(10)], tmp_path, 0)
    assert (p.chosen, p.p_chosen, p.weight) == ("first", pytest.approx(0.9), 1.0)


def test_sources_count_by_their_answers_and_weight(tmp_path: Path) -> None:
    save(tmp_path / "many.jsonl", *({**SIDES, "choice": "A", "annotator": f"r{n}"} for n in range(3)))
    save(tmp_path / "even.jsonl", {**SIDES, "choice": "A", "annotator": "x"}, {**SIDES, "choice": "B", "annotator": "y"})
    (p,), failures = load_human([HumanSource(path="many.jsonl"), HumanSource(path="even.jsonl", weight=3.0)], tmp_path, 0)
    assert (p.chosen, p.p_chosen, p.weight, failures) == ("first", pytest.approx((3 + 3) / (3 + 6)), pytest.approx(9 / 5), ())


def test_a_limit_counts_the_pairs_of_all_files(tmp_path: Path) -> None:
    for n in range(6):
        save(tmp_path / f"f{n}.jsonl", {**SIDES, "prompt": f"q{n % 3}", "choice": "A", "annotator": f"r{n}"})
    found, _ = load_human([HumanSource(path="f*.jsonl", limit=2)], tmp_path, 0)
    assert len(found) == 2


def test_an_empty_answer_is_not_taken_from_another_column(tmp_path: Path) -> None:
    loaded = load_labels(save(tmp_path / "t.jsonl", {**SIDES, "choice": "A", "label": "B"}, {**SIDES, "choice": "", "label": "B"}))
    assert [x.p_a for x in loaded.labels] == [1.0] and [f.reason for f in loaded.failures] == ["not_labelled"]
    assert loaded.unused == ("label",)


def test_columns_that_no_label_holds_are_named(tmp_path: Path) -> None:
    rows = [{**SIDES, "choice": "A", "annotator": "ann", "rater_age": 7, "weight": 2, "source": "the web", "lead_time": n} for n in (1, 2)]
    loaded = load_labels(save(tmp_path / "t.jsonl", *rows))
    assert set(loaded.unused) == {"weight", "source", "lead_time"}
    write_records(tmp_path / "labels.jsonl", loaded.labels)
    assert load_labels(tmp_path / "labels.jsonl").unused == ()
    said: list[str] = []
    load_human([HumanSource(path="t.jsonl")], tmp_path, 0, said.append)
    assert said == ["t.jsonl: columns not used: lead_time, source"]


def test_a_word_that_a_users_statement_leaves_out_costs_its_row(tmp_path: Path) -> None:
    assert read(tmp_path, ["X", "X", "skip"], "X=A") == [1.0, 1.0]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_column_becomes_the_system_turn(tmp_path: Path, name: str) -> None:
    table = {**SIDES, "choice": "A", name: "Be terse."}
    trl = {"question": "Is tea hot?", "chosen": "first", "rejected": "second", name: "Be terse."}
    for row in (table, trl):
        loaded = load_labels(save(tmp_path / "t.jsonl", row))
        assert [(m.role, m.content) for m in loaded.labels[0].pair.prompt.messages] == [("system", "Be terse."), ("user", "Is tea hot?")]
        assert loaded.unused == ()
