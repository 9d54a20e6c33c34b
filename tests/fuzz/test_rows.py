"""Rows of prompts and of people's labels, in every format: what is read can be written and read again, all else is a named failure."""

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from cai.data.prompts import load_prompts
from cai.errors import DataError
from cai.labels.formats import pair_formats
from cai.labels.load import load_pairs
from cai.recipe import PromptSource
from cai.records import HumanLabel, Preference, Prompt
from tests.fuzz.fuzzing import JSON, depths, fuzz, mutated, nested
from tests.labels.loading import load_labels

pytestmark = pytest.mark.attack

TURNS = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "It is good."}]
WORSE = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "No."}]
SIDES = {"prompt": "Q?", "response_a": "It is good.", "response_b": "No."}
WHO = {"annotator": "ann", "time": "2026-01-01", "attributes": {"language": "en"}, "rater_age": 7}
PAIR = {"prompt": {"id": "i", "kind": "other", "messages": TURNS[:1], "source": "s"}, "provenance": {"model": ""}}
SAID = {"user_id": "u", "value": "response_a", "status": "submitted"}
RANKED = [{"value": "response_a", "rank": 1}, {"value": "response_b", "rank": 2}]
ROWS: dict[str, dict[str, Any]] = {
    "trl": {"prompt": "Q?", "chosen": "It is good.", "rejected": "No.", "kind": "helpful", "weight": 1, "principle_ids": ["a"], **WHO},
    "trl turns": {"chosen": TURNS, "rejected": WORSE, "p_chosen": 0.9},
    "hh": {"chosen": "\n\nHuman: Q?\n\nAssistant: good", "rejected": "\n\nHuman: Q?\n\nAssistant: bad"},
    "hhh": {"text_correct": "\n\nHuman: Q?\n\nAssistant: good", "text_incorrect": "\n\nHuman: Q?\n\nAssistant: bad"},
    "ultrafeedback": {"prompt": "Q?", "chosen": TURNS, "rejected": WORSE, "score_chosen": 9.0, "score_rejected": 1},
    "rewardbench": {"prompt": "Q?", "chosen": "y", "rejected": "n", "chosen_model": "", "rejected_model": "", "subset": "donotanswer"},
    "cai": {**PAIR, "chosen": "y", "rejected": "n", "p_chosen": 1.0, "weight": 1, "source": "human:f", "principle_ids": []},
    "labels": {"pair": {**PAIR, "response_a": "y", "response_b": "n", "source": "s"}, "p_a": 1.0, "source": "human:f", **WHO},
    "table": {**SIDES, "choice": "A", **WHO},
    "table p": {**SIDES, "messages": TURNS[:1], "p_a": 0.25, "timestamp": 1767225600},
    "label-studio": {
        "data": SIDES,
        "annotations": [{"completed_by": {"email": "e"}, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
    },
    "argilla": {"fields": SIDES, "responses": {"preference": [SAID], "rank": [SAID | {"value": RANKED}]}, "metadata": {"kind": "helpful"}},
    "argilla flat": {**SIDES, "preference.responses": ["response_a"], "preference.responses.users": ["u"]},
    "argilla v1": {**SIDES, "ranking": [SAID | {"value": {"rank": [1, 2], "value": ["response_a", "response_b"]}}]},
}
PROMPTS: list[dict[str, Any]] = [
    {"prompt": "Q?", "kind": "harmful", "id": "i", "category": "c"},
    {"id": "i", "kind": "other", "messages": TURNS[:1], "source": "s"},
    {"conversations": [{"from": "human", "value": "Q?"}], "messages": TURNS},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q?"}]}]},
    {"prompt": "Q?", "type": "contrast_homonyms", "focus": "kill", "label": "unsafe"},
    {"prompt": TURNS, "chosen": "\n\nHuman: Q?\n\nAssistant: good", "rejected": "x"},
]


def same_again(records: Any, record_type: type) -> None:
    """What goes to disk comes back as it was."""
    for record in records:
        assert msgspec.json.decode(msgspec.json.encode(record), type=record_type) == record


def saved(folder: Path, name: str, rows: list[Any]) -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


@depths(60)
def test_labelled_rows_give_labels_or_named_failures(tmp_path: Path, examples: int) -> None:
    def check(row: Any) -> None:
        path = saved(tmp_path, "f.jsonl", [row, row])
        for format in ("auto", *pair_formats()):
            for load, record_type in ((load_labels, HumanLabel), (load_pairs, Preference)):
                try:
                    loaded = load(path, format)  # type: ignore[operator]
                except DataError as e:
                    assert str(e).startswith(str(path)) and len(str(e)) < 20_000
                    continue
                same_again(getattr(loaded, "labels", None) or loaded.preferences, record_type)
                assert all(f.item_id.startswith(str(path)) and len(f.detail) < 2000 for f in loaded.failures)

    fuzz(check, st.one_of(*map(mutated, ROWS.values())), examples)


def test_the_rows_that_are_mutated_are_good_ones(tmp_path: Path) -> None:
    for name, row in ROWS.items():
        loaded = load_pairs(saved(tmp_path, "f.jsonl", [row]))
        assert loaded.format == name.split()[0] and len(loaded.preferences) == 1, name


@depths(80)
def test_prompt_rows_give_prompts_or_named_failures(tmp_path: Path, examples: int) -> None:
    def check(row: Any) -> None:
        path = saved(tmp_path, "or-bench.jsonl", [row, "x", row])
        for format in ("auto", "cai", "hh", "jsonl"):
            try:
                loaded = load_prompts(PromptSource(path=path.name, format=format), tmp_path, 0)
            except DataError as e:
                assert path.name in str(e) and len(str(e)) < 20_000
                continue
            same_again(loaded.prompts, Prompt)

    fuzz(check, st.one_of(JSON, *map(mutated, PROMPTS)), examples)


@depths(25)
@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.csv", "f.tsv", "f.txt", "f.parquet", "f.jsonl.gz", "f.csv.gz", "f"])
def test_any_bytes_are_rows_or_a_data_error(tmp_path: Path, name: str, examples: int) -> None:
    good = {"f.parquet": b"PAR1", "f": b"{", "f.json": b"["}.get(name, b"prompt,kind\nQ?,other\n")

    def check(raw: bytes) -> None:
        for content in (raw, good + raw, gzip.compress(raw, 1) if name.endswith(".gz") else raw[::-1]):
            (tmp_path / name).write_bytes(content)
            for load in (
                lambda: load_prompts(PromptSource(path=name), tmp_path, 0),
                lambda: load_pairs(tmp_path / name),
            ):
                try:
                    load()
                except DataError as e:
                    assert name in str(e)

    fuzz(check, st.binary(max_size=60) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass")), examples)


@pytest.mark.parametrize("depth", [100, 400, 900, 100_000])
@pytest.mark.parametrize("where", ["choice", "prompt", "response_a", "principle_ids", "attributes"])
def test_deep_nesting_is_a_failure_of_its_row(tmp_path: Path, depth: int, where: str) -> None:
    deep = "[" * depth + "]" * depth
    row = json.dumps({**ROWS["table"], where: "DEEP"}).replace('"DEEP"', deep)
    (tmp_path / "f.jsonl").write_text(f"{row}\n{json.dumps(ROWS['table'])}\n")
    loaded = load_labels(tmp_path / "f.jsonl", "table")
    assert len(loaded.labels) >= 1 and len(loaded.labels) + len(loaded.failures) == 2
    assert all(len(f.detail) < 1000 for f in loaded.failures)
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": {deep}}}\n{{"prompt": "Q?"}}\n')
    prompts = load_prompts(PromptSource(path="p.jsonl"), tmp_path, 0)
    assert len(prompts.prompts) == 1 and len(prompts.failures) == 1


@pytest.mark.parametrize(
    ("format", "change"),
    [
        ("table", {"weight": 10**300}),
        ("table", {"weight": 1e308, "p_a": 10**40}),
        ("table", {"choice": nested(50)}),
        ("label-studio", {"annotations": 5}),
        ("label-studio", {"annotations": [{"result": 7}]}),
        ("argilla", {"responses": {"preference": 3}}),
        ("argilla", {"responses": {"preference": [{"value": {"rank": [1, 2], "value": 4}, "user_id": "u"}]}}),
    ],
)
def test_numbers_where_lists_belong_and_numbers_too_large(tmp_path: Path, format: str, change: dict[str, Any]) -> None:
    good = ROWS[format]
    loaded = load_labels(saved(tmp_path, "f.jsonl", [good | change, good]), format)  # type: ignore[arg-type]
    same_again(loaded.labels, HumanLabel)
    assert len(loaded.labels) >= 1 and loaded.rows == 2


def test_principle_ids_that_are_none_are_left_out(tmp_path: Path) -> None:
    unnamed = {k: v for k, v in ROWS["trl"].items() if k not in WHO}  # a person's labels are pooled, and have no principles
    for given, kept in ((5, ()), ("ab", ()), (["a", 3, None], ("a",))):
        (found,) = load_pairs(saved(tmp_path, "f.jsonl", [unnamed | {"principle_ids": given}])).preferences
        assert found.principle_ids == kept


def test_a_packed_array_is_not_unpacked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.data.rows.MAX_ARRAY_BYTES", 1 << 16)
    (tmp_path / "f.json.gz").write_bytes(gzip.compress(b"[\n" + b"1,\n" * 100_000))
    with pytest.raises(DataError, match=r"f\.json\.gz: a JSON array is read into memory and may have at most"):
        load_pairs(tmp_path / "f.json.gz")
