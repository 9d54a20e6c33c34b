"""Exports of labelling tools and tables of answers: who said what, when; and what can't be used, by name."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from cai.core.jsonl import write_records
from cai.data.export_formats.label_studio import LABEL_STUDIO_CONFIG, label_tasks, write_tasks
from cai.data.rows import Row
from cai.errors import DataError
from cai.labels.load import load_human, load_pairs
from cai.recipe import HumanSource
from cai.records import HumanLabel, Message, Prompt, Provenance, ResponsePair
from tests.labels.loading import load_labels

ASK, A, B = "Is it so?", "Yes, it is.", "No."
DATA = {"prompt": f"User: {ASK}", "messages": [{"role": "user", "content": ASK}], "response_a": A, "response_b": B, "kind": "helpful"}
Answer = tuple[str, float, str]


def save(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def answers(labels: tuple[HumanLabel, ...]) -> list[Answer]:
    """Who said how much for "Yes", and when; the pair must be whole."""
    assert all(x.pair.prompt.messages == (Message("user", ASK),) and {x.pair.response_a, x.pair.response_b} == {A, B} for x in labels)
    return [(x.annotator, x.p_a if x.pair.response_a == A else 1 - x.p_a, x.time) for x in labels]


def annotation(who: Any, result: list[Any], **more: Any) -> dict[str, Any]:
    return {"completed_by": who, "result": result, "was_cancelled": False, "created_at": "2026-03-09T22:16:08Z", **more}


def test_a_label_studio_export_keeps_every_annotator(tmp_path: Path) -> None:
    pairwise = {"type": "pairwise", "from_name": "pw", "value": {"selected": "right"}}
    choice = {"type": "choices", "from_name": "better", "value": {"choices": ["tie"]}}
    odd = {"type": "choices", "value": {"choices": ["A", "B"]}}
    task = {
        "id": 7,
        "data": DATA,
        "annotations": [
            annotation(1, [pairwise]),
            annotation({"id": 2, "email": "ann@example.org"}, [choice], updated_at="2026-03-10T00:00:00Z"),
            annotation(3, [], was_cancelled=True),
            annotation(4, []),
            annotation(5, [odd]),
        ],
    }
    (tmp_path / "ls.json").write_text(json.dumps([task, {"id": 8, "data": DATA, "annotations": []}]))
    loaded = load_labels(tmp_path / "ls.json")
    assert loaded.format == "label-studio" and loaded.rows == 2
    assert answers(loaded.labels) == [("1", 0.0, "2026-03-09T22:16:08Z"), ("ann@example.org", 0.5, "2026-03-10T00:00:00Z")]
    assert [(f.item_id, f.reason) for f in loaded.failures] == [
        (f"{tmp_path / 'ls.json'}:1", "skipped"),
        (f"{tmp_path / 'ls.json'}:1", "not_labelled"),
        (f"{tmp_path / 'ls.json'}:1", "no_choice"),
        (f"{tmp_path / 'ls.json'}:2", "not_labelled"),
    ]


def test_label_studios_csv_and_json_min_are_tables(tmp_path: Path) -> None:
    with (tmp_path / "ls.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["messages", "response_a", "response_b", "id", "better", "annotator", "annotation_id", "created_at", "lead_time"])
        writer.writerow([json.dumps(DATA["messages"]), A, B, 1, "B", 9, 3, "2026-01-01T00:00:00Z", 4.2])
        writer.writerow([json.dumps(DATA["messages"]), A, B, 2, '[{"selected": "left"}]', 10, 4, "2026-01-01T00:00:00Z", 4.2])
    expected = [("9", 0.0, "2026-01-01T00:00:00Z"), ("10", 1.0, "2026-01-01T00:00:00Z")]
    loaded = load_labels(tmp_path / "ls.csv")
    assert loaded.format == "table" and answers(loaded.labels) == expected
    minimal = [
        {**DATA, "better": "B", "annotator": 9, "created_at": "2026-01-01T00:00:00Z"},
        {**DATA, "better": [{"selected": "left", "id": "x"}], "annotator": 10, "created_at": "2026-01-01T00:00:00Z"},
    ]
    (tmp_path / "min.json").write_text(json.dumps(minimal))
    assert answers(load_labels(tmp_path / "min.json").labels) == expected


FIELDS = {"instruction": ASK, "response-1": A, "response-2": B}
ARGILLA = {
    "nested": {
        "id": "r",
        "fields": FIELDS,
        "metadata": {"kind": "harmful"},
        "suggestions": {"preference": {"value": "response-2", "score": 0.9, "agent": "m"}},
        "responses": {
            "comment": [],
            "preference": [
                {"value": "response-1", "user_id": "u1", "status": "submitted"},
                {"value": "tie", "user_id": "u2"},
                {"value": "response-2", "user_id": "u3", "status": "draft"},
            ],
        },
    },
    "flat": {
        **FIELDS,
        "id": "r",
        "preference.responses": ["response-1", "tie", "response-2"],
        "preference.responses.users": ["u1", "u2", "u3"],
        "preference.responses.status": ["submitted", None, "discarded"],
        "preference.suggestion": "response-2",
    },
    "1.x, lists": {
        **FIELDS,
        "preference": [
            {"user_id": "u1", "value": [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 2}], "status": "submitted"},
            {"user_id": "u2", "value": [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 1}], "status": "submitted"},
            {"user_id": "u3", "value": [{"value": "response-2", "rank": 1}], "status": "submitted"},
        ],
        "external_id": None,
    },
    "1.x, columns": {
        **FIELDS,
        "preference": {"user_id": ["u1", "u2", "u3"], "value": ["response-1", "tie", None], "status": ["submitted"] * 3},
        "metadata": "{}",
    },
}


@pytest.mark.parametrize("shape", ARGILLA)
def test_argilla_exports_of_every_shape(tmp_path: Path, shape: str) -> None:
    loaded = load_labels(save(tmp_path / "a.jsonl", ARGILLA[shape]))
    assert loaded.format == "argilla"
    assert answers(loaded.labels) == [("u1", 1.0, ""), ("u2", 0.5, "")]
    assert [f.reason for f in loaded.failures] == ["not_submitted" if shape in ("nested", "flat") else "no_choice"]
    assert loaded.labels[0].pair.prompt.kind == ("harmful" if shape == "nested" else "other")


def test_a_table_brings_attributes_times_and_degrees(tmp_path: Path) -> None:
    row = {"prompt": ASK, "response_a": A, "response_b": B}
    path = save(
        tmp_path / "t.jsonl",
        {**row, "choice": "response_b", "rater_id": 5, "timestamp": 0, "rater_country": "KE", "attribute_age": "30-39"},
        {**row, "p_a": 0.8, "annotator": "ann", "attributes": {"language": "sw", "none": None}},
        {**row, "choice": "skipped", "annotator": "ann"},
        {**row, "annotator": "ann"},
        {**row, "p_a": 1.2},
        {**row, "choice": "A", "response_b": "yes,  IT is."},
    )
    loaded = load_labels(path)
    assert answers(loaded.labels) == [("5", 0.0, "1970-01-01T00:00:00+00:00"), ("ann", 0.8, "")]
    assert [x.attributes for x in loaded.labels] == [{"country": "KE", "age": "30-39"}, {"language": "sw"}]
    assert [(f.item_id.rpartition(":")[2], f.reason) for f in loaded.failures] == [
        ("3", "no_choice"),
        ("4", "not_labelled"),
        ("5", "not_a_probability"),
        ("6", "identical"),
    ]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = save(tmp_path / "t.jsonl", {"ask": ASK, "left_text": A, "right_text": B, "verdict": "left", "who": "ann"})
    columns = {"prompt": "ask", "response_a": "left_text", "response_b": "right_text", "choice": "verdict", "annotator": "who"}
    assert answers(load_labels(path, columns=columns).labels) == [("ann", 1.0, "")]
    with pytest.raises(DataError, match="not recognised as labelled pairs"):
        load_labels(path)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"choise": "verdict"}, r"no format has a column 'choise' that could be read from another; there are: .*choice"),
        ({"choice": "verdikt"}, r"t\.jsonl: none of its 1 rows has the column 'verdikt' that was named for one of ours"),
        ({"choice": "verdict", "annotator": "by", "time": "at"}, r"has the column 'at', 'by' that"),
    ],
)
def test_a_column_that_is_not_there_is_told(tmp_path: Path, columns: dict[str, str], told: str) -> None:
    path = save(tmp_path / "t.jsonl", {"prompt": ASK, "response_a": A, "response_b": B, "choice": "A", "verdict": "left"})
    with pytest.raises(DataError, match=told):
        load_labels(path, columns=columns)


def test_columns_of_a_tools_export_are_renamed_where_they_stand(tmp_path: Path) -> None:
    sides = {"ask": ASK, "response_a": A, "response_b": B}
    said = [{"completed_by": 7, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}]
    path = save(tmp_path / "t.jsonl", {"data": sides, "annotations": said})
    assert answers(load_labels(path, columns={"prompt": "ask"}).labels) == [("7", 1.0, "")]


def test_which_side_was_chosen_is_no_news_where_the_source_has_no_sides(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"x{i}", "rejected": f"y{i}"} for i in range(60)]
    labels = load_labels(save(tmp_path / "p.jsonl", *rows)).labels
    assert 15 < sum(x.p_a for x in labels) < 45
    assert all((x.pair.response_a if x.p_a else x.pair.response_b).startswith("x") for x in labels)


def test_an_ai_label_is_no_persons(tmp_path: Path) -> None:
    row = {"prompt": ASK, "chosen": A, "rejected": B}
    loaded = load_labels(save(tmp_path / "p.jsonl", row, {**row, "source": "ai:pointwise"}))
    assert len(loaded.labels) == 1 and [f.reason for f in loaded.failures] == ["not_human"]


def test_imported_labels_load_again_and_pool_in_a_recipe(tmp_path: Path) -> None:
    row = {"prompt": ASK, "response_a": A, "response_b": B}
    path = save(tmp_path / "t.jsonl", *({**row, "choice": c, "annotator": w} for c, w in (("a", "ann"), ("a", "bob"), ("b", "eve"))))
    labels = load_labels(path).labels
    write_records(tmp_path / "labels.jsonl", labels)
    again = load_labels(tmp_path / "labels.jsonl")
    assert again.format == "labels" and again.labels == labels
    (p,) = load_pairs(tmp_path / "labels.jsonl").preferences
    assert (p.chosen, p.p_chosen) == (A, pytest.approx(2 / 3))
    (smooth,), _ = load_human([HumanSource(path="labels.jsonl", smoothing=1.0, weight=2.0)], tmp_path, 0)
    assert (smooth.p_chosen, smooth.weight) == (pytest.approx(3 / 5), 2.0)


def test_an_even_pair_is_a_counted_tie(tmp_path: Path) -> None:
    row = {"prompt": ASK, "response_a": A, "response_b": B}
    other = {**row, "prompt": "Another?", "choice": "a", "annotator": "ann"}
    path = save(tmp_path / "t.jsonl", {**row, "choice": "a", "annotator": "ann"}, {**row, "choice": "b", "annotator": "bob"}, other)
    loaded = load_pairs(path)
    assert [p.prompt.messages[0].content for p in loaded.preferences] == ["Another?"] and [f.reason for f in loaded.failures] == ["tie"]


def test_a_hub_dataset_is_a_source_of_human_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def rows(name: str, split: str, shown: str | None = None) -> Any:
        asked.append((name, split, shown))
        yield Row(f"{shown}[{split}]:1", {"prompt": ASK, "chosen": A, "rejected": B})
        yield Row(f"{shown}[{split}]:2", {"prompt": ASK, "chosen": A})

    monkeypatch.setattr("cai.labels.load.dataset_rows", rows)
    preferences, failures = load_human([HumanSource(path="hub:me/labels", split="test", weight=3.0)], tmp_path, 0)
    assert asked == [("me/labels", "test", "hub:me/labels")]
    assert [(p.source, p.weight) for p in preferences] == [("human:hub:me/labels", 3.0)]
    assert [(f.item_id, f.reason) for f in failures] == [("hub:me/labels[test]:2", "no_column")]


def test_a_folder_laid_out_like_a_dataset_is_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    save(tmp_path / "d" / "train.jsonl", {"prompt": ASK, "chosen": A, "rejected": B})
    preferences, _ = load_human([HumanSource(path="d")], tmp_path, 0)
    assert [p.chosen for p in preferences] == [A]


def test_tasks_offer_a_tie_and_their_answers_come_back(tmp_path: Path) -> None:
    import xml.etree.ElementTree as ET

    prompt = Prompt("p", "helpful", (Message("user", ASK),), "s")
    pair = ResponsePair(prompt, A, B, "sampled", Provenance("m"))
    tasks = label_tasks([pair, pair.swapped()])
    assert len(tasks) == 1
    write_tasks(tasks, tmp_path / "tasks.json")
    config = ET.fromstring((tmp_path / "labeling_config.xml").read_text())  # noqa: S314 - our own file
    offered = [c.get("value") for c in config.iter("Choice")]
    assert (tmp_path / "labeling_config.xml").read_text() == LABEL_STUDIO_CONFIG and offered == ["A", "tie", "B"]
    done = json.loads((tmp_path / "tasks.json").read_text())
    done[0]["annotations"] = [annotation(i, [{"type": "choices", "value": {"choices": [c]}}]) for i, c in enumerate(offered)]
    save(tmp_path / "done.json", *done)
    first = done[0]["data"]["response_a"] == A
    assert [p if first else 1 - p for _, p, _ in answers(load_labels(tmp_path / "done.json").labels)] == [1.0, 0.5, 0.0]


def test_a_tables_notes_are_kept_and_only_texts_are_notes(tmp_path: Path) -> None:
    row = {"prompt": ASK, "response_a": A, "response_b": B, "annotator": "ann", "choice": "A"}
    rows = [{**row, "note": " Says so at once. "}, {**row, "annotator": "bob", "note": 3}, {**row, "annotator": "eve"}]
    loaded = load_labels(save(tmp_path / "t.jsonl", *rows))
    assert [x.note for x in loaded.labels] == ["Says so at once.", "", ""] and loaded.unused == ()
