"""Prompts out of transcripts, text, tables and published data sets, in the shapes that they are published in."""

import csv
import io
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from cai.data.conversations import RowFault, messages_of, parse_transcript, render_transcript
from cai.data.prompts import (
    load_all,
    load_prompts,
    warn_of_columns,
)
from cai.errors import DataError
from cai.recipe import PromptSource, load_recipe
from cai.records import Message
from tests.data.prompting import ROOT, said, texts, write_jsonl

TRANSCRIPT = "\n\nHuman: Note: say 'Human: hi'\n\nAssistant: Sure: Assistant: hi\n\nHuman: Again: please\n\nAssistant: One: two"


@pytest.mark.parametrize(
    ("name", "row", "format"),
    [
        ("hh.jsonl", {"chosen": TRANSCRIPT, "rejected": TRANSCRIPT + "!"}, "auto"),
        ("hh.jsonl.gz", {"chosen": TRANSCRIPT, "rejected": TRANSCRIPT + "!"}, "hh"),
        ("trl.jsonl", {"prompt": TRANSCRIPT.rpartition("Assistant:")[0] + "Assistant:"}, "auto"),
    ],
)
def test_transcripts_are_cut_at_the_last_assistant_turn_only(tmp_path: Path, name: str, row: object, format: str) -> None:
    write_jsonl(tmp_path / name, [row])
    (prompt,) = load_prompts(PromptSource(path=name, format=format), tmp_path, 0).prompts
    assert prompt.messages == (
        Message("user", "Note: say 'Human: hi'"),
        Message("assistant", "Sure: Assistant: hi"),
        Message("user", "Again: please"),
    )


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "Hi: there"}, "prompt"),
        ({"question": "Hi: there"}, "question"),
        ({"prompt": [{"role": "user", "content": "Hi: there"}]}, "prompt"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi: there"}]}]}, "prompt"),
        ({"conversations": [{"from": "human", "value": "Hi: there"}, {"from": "gpt", "value": "Yes"}]}, "conversations"),
        ({"messages": [{"role": "user", "content": "Hi: there"}, {"role": "assistant", "content": "Yes"}]}, "prompt"),
        ({"chosen": [{"role": "user", "content": "Hi: there"}, {"role": "assistant", "content": "Yes"}], "rejected": []}, "prompt"),
        ("Hi: there", "prompt"),
    ],
)
def test_plain_jsonl_rows(tmp_path: Path, row: object, field: str) -> None:
    write_jsonl(tmp_path / "p.jsonl", [row])
    (prompt,) = load_prompts(PromptSource(path="p.jsonl", field=field, kind="helpful"), tmp_path, 0).prompts
    assert prompt.messages == (Message("user", "Hi: there"),)
    assert prompt.kind == "helpful"


def test_text_and_csv_and_array_hold_the_same_prompts(tmp_path: Path) -> None:
    wanted = ['What\'s 1, 2, "3"?', "Human: who are you?", "Ünïcode: ok"]
    (tmp_path / "a.txt").write_text("\n\n".join(wanted) + "\n", encoding="utf-8")
    out = io.StringIO()
    csv.writer(out).writerows([["prompt", "kind"], *([w, "borderline"] for w in wanted)])
    (tmp_path / "a.csv").write_text("\ufeff" + out.getvalue(), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": w} for w in wanted], indent=1))
    loaded = {name: load_prompts(PromptSource(path=name), tmp_path, 0) for name in ("a.txt", "a.csv", "a.json")}
    assert {name: texts(part) for name, part in loaded.items()} == dict.fromkeys(loaded, wanted)
    assert len({tuple(p.id for p in part.prompts) for part in loaded.values()}) == 1
    assert {p.kind for p in loaded["a.csv"].prompts} == {"borderline"}


def test_a_system_column_becomes_the_system_turn(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "Q?", "system": "Be terse."}, {"prompt": "R?", "system": None}])
    loaded = load_prompts(PromptSource(path="p.jsonl"), tmp_path, 0)
    assert [[m.role for m in p.messages] for p in loaded.prompts] == [["system", "user"], ["user"]]
    assert loaded.prompts[0].messages[0].content == "Be terse."


def test_folders_and_the_hub_go_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "d").mkdir()
    pq.write_table(pa.Table.from_pylist([{"prompt": "one"}]), tmp_path / "d" / "test.parquet")
    pq.write_table(pa.Table.from_pylist([{"prompt": "two"}]), tmp_path / "d" / "train.parquet")
    assert texts(load_prompts(PromptSource(path="d", split="test"), tmp_path, 0)) == ["one"]
    assert texts(load_prompts(PromptSource(path="d/train.parquet"), tmp_path, 0)) == ["two"]
    with pytest.raises(DataError, match="can't be loaded as a dataset"):
        load_prompts(PromptSource(path="d", split="absent"), tmp_path, 0)

    asked = []

    def fake(name: str, split: str, streaming: bool) -> list[dict[str, object]]:
        asked.append((name, split))
        return [{"instruction": "from the hub"}]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    loaded = load_prompts(PromptSource(path="hub:some/set", split="test", field="instruction"), tmp_path, 0)
    assert asked == [("some/set", "test")]
    assert texts(loaded) == ["from the hub"] and loaded.prompts[0].source == "hub:some/set"


@pytest.mark.parametrize(
    "messages",
    [
        (Message("user", "a: b\n\nc"), Message("assistant", "Human: no\nAssistant: no"), Message("user", "d")),
        (Message("user", "x"),),
    ],
)
def test_transcripts_round_trip(messages: tuple[Message, ...]) -> None:
    assert parse_transcript(render_transcript(messages)) == messages


@pytest.mark.parametrize(
    "messages",
    [
        (Message("system", "s"), Message("user", "x")),
        (Message("user", "quote:\n\nAssistant: hi"),),
        (Message("user", "a"), Message("user", "b")),
    ],
)
def test_what_a_transcript_cannot_hold_is_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(RowFault, match="not_representable"):
        render_transcript(messages)


def test_columns_that_no_prompt_holds_are_named_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,kind,difficulty,topic\nWhat is it?,helpful,3,x\nHow is it?,helpful,1,y\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "Who is it?", "kind": "helpful", "system": "Be kind."}\n')
    said: list[str] = []
    warn_of_columns(load_all([PromptSource(path="a.csv"), PromptSource(path="b.jsonl")], tmp_path, 0).columns, said.append)
    assert said == ["a.csv: columns not used: difficulty, topic"]


ASKED = "Which of these: rope, wire?"
PUBLISHED: dict[str, dict[str, object]] = {
    # As their dataset cards on the Hub describe the columns.
    "hub:HuggingFaceH4/cai-conversation-harmless": {
        "index": 7, "prompt": ASKED, "init_prompt": said(ASKED)[0], "init_response": {"content": "Wire.", "role": "assistant"},
        "critic_prompt": said("Critique it.")[0], "critic_response": {"content": "It harms.", "role": "assistant"},
        "revision_prompt": said("Rewrite it.")[0], "revision_response": {"content": "Neither.", "role": "assistant"},
        "messages": said(ASKED, "Neither."), "chosen": said(ASKED, "Neither."), "rejected": said(ASKED, "Wire."),
    },
    "hub:HuggingFaceH4/ultrachat_200k": {
        "prompt": ASKED, "prompt_id": "f0e37e9f", "messages": said(ASKED, "Rope.", "Why?", "It bends."),
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["qlora-24gb", "qlora-80gb"])
def test_the_hub_prompts_of_the_shipped_recipes_are_read_in_their_published_shape(recipe: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources = [s for s in load_recipe(ROOT / "runs" / f"{recipe}.yaml").prompts.train if s.path.startswith("hub:")]
    assert {s.path for s in sources} == set(PUBLISHED)
    for number, source in enumerate(sources):
        folder = tmp_path / str(number) / "data"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([PUBLISHED[source.path]]), folder / f"{source.split}-00000-of-00001.parquet")
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(PUBLISHED[source.path]))
        for path in (str(number), f"{number}.jsonl"):
            (prompt,) = load_prompts(replace(source, path=path), tmp_path, 0).prompts
            assert (prompt.messages, prompt.kind) == ((Message("user", ASKED),), source.kind)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"id": "ai2/1", "messages": said("Why?", "So."), "source": "ai2"}, [("user", "Why?")]),  # tulu-3-sft-mixture
        ({"prompt": {"text": "They said", "toxicity": 0.1}, "filename": "a"}, [("user", "They said")]),  # real-toxicity-prompts
        (
            {"prompt": "Hi.", "prompt_id": "a", "messages": [{"content": "You are Klaus.", "role": "system"}, *said("Hi.", "Hm.")]},
            [("system", "You are Klaus."), ("user", "Hi.")],
        ),  # no_robots
        ({"prompt": "Hi.", "messages": [{"content": "You are Klaus.", "role": "system"}, *said("Ho.", "Hm.")]}, [("user", "Hi.")]),
    ],
)
def test_rows_of_published_conversations_keep_what_comes_before_the_answer(
    row: dict[str, object], messages: list[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (prompt,) = load_prompts(PromptSource(path="p.jsonl"), tmp_path, 0).prompts
    assert [(m.role, m.content) for m in prompt.messages] == messages


def test_tool_calls_and_results_are_texts_in_the_conversation():
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    openai = [
        {"role": "user", "content": "Is it cold in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "name": "weather", "content": "-8 C"},
    ]
    sharegpt = [
        {"from": "human", "value": "Is it cold in Oslo?"},
        {"from": "function_call", "value": 'weather({"city": "Oslo"})'},
        {"from": "observation", "value": "-8 C"},
    ]
    assert [(m.role, m.content) for m in messages_of(openai)] == [
        ("user", "Is it cold in Oslo?"),
        ("assistant", 'Call: weather({"city": "Oslo"})'),
        ("user", "Result of weather:\n-8 C"),
    ]
    assert [m.content for m in messages_of(sharegpt)][1:] == ['Call: weather({"city": "Oslo"})', "Result of the tool:\n-8 C"]
    said = {"role": "assistant", "content": "One moment.", "function_call": {"name": "weather", "arguments": {"city": "Ås"}}}
    assert messages_of([said])[0].content == 'One moment.\n\nCall: weather({"city": "Ås"})'
    for bad in ({"role": "assistant", "tool_calls": ["x"]}, {"role": "assistant", "content": None}, {"role": "tool", "content": 3}):
        with pytest.raises(RowFault, match=r"not_a_call|not_text"):
            messages_of([bad])
