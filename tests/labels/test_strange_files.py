"""Files of strangers: what other tools and hands write, which must be read right or refused with a reason."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from cai.data.prompts import load_prompts
from cai.errors import DataError
from cai.labels.load import LoadedLabels
from cai.recipe import PromptSource
from tests.labels.loading import load_labels

TURNS = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
OTHER = [TURNS[0], {"role": "assistant", "content": "No."}]
PAIR = {"prompt": "Q?", "response_a": "x", "response_b": "y"}


def read(tmp_path: Path, *rows: dict[str, Any], name: str = "f.jsonl") -> LoadedLabels:
    path = tmp_path / name
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_labels(path)


def only(loaded: LoadedLabels) -> tuple[list[str], str, str]:
    """The contents of the prompt of the only label, and the better and worse response."""
    (label,) = loaded.labels
    better, worse = (label.pair.response_a, label.pair.response_b)[:: 1 if label.p_a > 0.5 else -1]
    return [m.content for m in label.pair.prompt.messages], better, worse


def test_turns_in_a_cell_of_a_csv_are_read_as_turns(tmp_path: Path) -> None:
    row = {"prompt": "Hi?", "chosen": json.dumps(TURNS), "rejected": json.dumps(OTHER)}
    assert only(read(tmp_path, row, name="f.csv")) == (["Hi?"], "Yes.", "No.")
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": json.dumps(TURNS[:1])}) + "\n")
    assert [m.content for p in load_prompts(PromptSource(path="p.jsonl"), tmp_path, 0).prompts for m in p.messages] == ["Hi?"]
    with pytest.raises(DataError, match="chosen is a list of messages as Python writes it"):
        read(tmp_path, {"prompt": "Hi?", "chosen": str(TURNS), "rejected": str(OTHER)}, name="f.csv")


def test_every_list_of_answers_in_a_cell_is_read_whatever_it_opens_with(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"{n}?", "annotators": cell} for n, cell in enumerate(('["A", "B"]', "[2, 1]", "[ 1]", "[null, 2]", "[]"))]
    loaded = read(tmp_path, *rows, name="f.csv")
    said = [(x.pair.prompt.messages[0].content, x.annotator, x.p_a) for x in loaded.labels]
    expected = [("0?", 1, 1.0), ("0?", 2, 0.0), ("1?", 1, 0.0), ("1?", 2, 1.0), ("2?", 1, 1.0), ("3?", 2, 0.0)]
    assert said == [(prompt, f"annotator{who}", p) for prompt, who, p in expected]
    assert [f.reason for f in loaded.failures] == ["not_labelled"]


@pytest.mark.parametrize("cell", ["A;B;A", "A\nB", "['A', 'B']", '{"ann": "A"}', '[{"choice": "A"}]'])
def test_a_cell_of_several_answers_that_is_no_list_is_named(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match=r"not_labelled: annotators is .* expected each annotator's answer in a list"):
        read(tmp_path, {**PAIR, "annotators": cell}, name="f.csv")


def transcript(mark: str, answer: str) -> str:
    return mark.replace("…", answer)


@pytest.mark.parametrize(
    "mark",
    [
        "Human: Hi\nAssistant: …",
        "\r\rHuman: Hi\r\rAssistant: …",
        "\n\nSystem: Be good.\n\nHuman: Hi\n\nAssistant: …",
        "\n\nhuman: Hi\n\nassistant: …",
        "Mensch: Hallo\n\nAssistent: …",
        "用户：你好\n助手：…",
        "<s>[INST] Hi [/INST] …",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n…",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n…",
    ],
)
def test_a_conversation_in_one_text_is_not_trained_on_as_one_turn(tmp_path: Path, mark: str) -> None:
    with pytest.raises(DataError, match="not_a_transcript: a conversation in one text"):
        read(tmp_path, {"chosen": transcript(mark, "Yes."), "rejected": transcript(mark, "No.")})
    with pytest.raises(DataError, match="not_a_transcript: a conversation in one text"):
        read(tmp_path, {"prompt": transcript(mark, ""), "chosen": "Yes.", "rejected": "No."})


@pytest.mark.parametrize(
    "prompt", ["User: who are you?", "Human: Hi\nAssistant: Hello.\nWhat is wrong with this dialogue?", "What is [INST]?"]
)
def test_a_prompt_may_quote_a_conversation(tmp_path: Path, prompt: str) -> None:
    assert only(read(tmp_path, {"prompt": prompt, "chosen": "Yes.", "rejected": "No."})) == ([prompt], "Yes.", "No.")


def test_sharegpt_pairs_have_their_prompt_in_conversations(tmp_path: Path) -> None:
    row = {"chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "No."}}
    assert only(read(tmp_path, {"conversations": [{"from": "human", "value": "Hi?"}], **row})) == (["Hi?"], "Yes.", "No.")
    with pytest.raises(DataError, match="no_prompt: `chosen` is one turn"):
        read(tmp_path, row)


def test_scores_are_read_out_of_a_csv_and_must_agree_with_the_label(tmp_path: Path) -> None:
    row = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
    assert only(read(tmp_path, {**row, "score_chosen": 8.0, "score_rejected": 6.5}, name="f.csv")) == (["Hi?"], "Yes.", "No.")
    for name in ("score_chosen", "chosen-rating", "rating_chosen"):
        with pytest.raises(DataError, match="contradiction"):
            read(tmp_path, {**row, name: 4.0, name.replace("chosen", "rejected"): 5.0})
        with pytest.raises(DataError, match="tie: both responses have the score 4"):
            read(tmp_path, {**row, name: 4.0, name.replace("chosen", "rejected"): 4})
    with pytest.raises(DataError, match="no_score"):
        read(tmp_path, {**row, "score_chosen": 4.0, "score_rejected": True})


def test_argillas_question_is_named_in_messages(tmp_path: Path) -> None:
    fields = {"prompt": "Q?", "response_a": "x", "response_b": "y"}
    with pytest.raises(DataError, match="column 'quality' can't be read"):
        read(tmp_path, {"fields": fields, "responses": {"quality": [{"value": "good", "user_id": "u"}]}})
    with pytest.raises(DataError, match=r"preference\.responses is a text here"):
        read(tmp_path, {**fields, "preference.responses": "['response_a']"}, name="f.csv")


def test_a_file_that_is_not_recognised_says_how_to_name_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--column response_a=COLUMN"):
        read(tmp_path, {"frage": "Q?", "antwort_a": "x", "antwort_b": "y", "besser": "A"}, name="f.csv")
    with pytest.raises(DataError, match="found response_a, response_b, besser; name another with --column choice="):
        read(tmp_path, {**PAIR, "besser": "A"}, name="f.csv")


def test_spaces_around_a_name_in_a_header_and_a_nameless_column(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("\ufeff\ufeffprompt, response_a,response_b , choice,\nQ?,x,y,A,z\n", encoding="utf-8")
    loaded = load_labels(tmp_path / "f.csv")
    assert only(loaded) == (["Q?"], "x", "y") and loaded.unused == ("(a column without a name)",)


def test_half_a_surrogate_pair_costs_its_row_in_an_array_too(tmp_path: Path) -> None:
    whole, broken = json.dumps({**PAIR, "choice": "A", "note": "\U0001f600"}), json.dumps({**PAIR, "choice": "A", "note": "\ud83d"})
    (tmp_path / "f.json").write_text(f"[{broken}, {whole}]")
    loaded = load_labels(tmp_path / "f.json")
    assert [x.note for x in loaded.labels] == ["\U0001f600"] and [f.reason for f in loaded.failures] == ["unreadable"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("f.jsonl", b"BZh91AY&SY\x00\x00", "bzip2"),
        ("f.csv", b"\x28\xb5\x2f\xfd\x04\x58\x01", "Zstandard"),
        ("f.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("f.jsonl", b"<!DOCTYPE html><html></html>\n", "a web page"),
        ("f.json", b'{\n "prompt": "Q?"\n}\n', "a JSON object over several lines"),
        ("f.csv", "質問,答\nはい,A\n".encode("shift_jis"), "SHIFT_JIS"),
    ],
)
def test_files_of_another_format_are_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        load_labels(tmp_path / name)
