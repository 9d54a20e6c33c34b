import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import yaml

from cai.core.jsonl import read_records, write_text
from cai.core.manifest import JudgeCard
from cai.data.card import dataset_card
from cai.data.export import export
from cai.data.export_format import RunData
from cai.data.export_formats import EXPORT_FORMATS
from cai.data.export_formats.label_studio import LABEL_STUDIO_CONFIG
from cai.data.filters import prompt_key
from cai.data.hub import push_to_hub
from cai.errors import DataError
from cai.labels.annotating import import_labels
from cai.labels.load import load_pairs
from cai.records import (
    Constitution,
    Critique,
    HumanLabel,
    Message,
    Preference,
    Principle,
    Prompt,
    Provenance,
    Revision,
    RevisionTrace,
    Round,
    SFTExample,
)

BY = Provenance("model")
PRINCIPLE = Principle("kind", "Be kind | always.", "What is unkind here?", "Make it kind.", "?", "?", "?")
CONSTITUTION = Constitution("c", "Kindness", "", (PRINCIPLE,))


def prompt(text: str, *before: Message) -> Prompt:
    return Prompt(f"id-{text}", "harmful", (*before, Message("user", text)), "s", "cat")


TALK = (Message("user", "Say: Human: hi"), Message("assistant", "No: thanks"))
PREFERENCES = [
    Preference(prompt("One: two?"), "Good: yes.\n\nReally.", "Bad: no.", 0.8, 0.5, "ai:pairwise", ("kind",), BY),
    Preference(prompt("Go on", *TALK), "A long good answer", "b", 0.95, 1.0, "human:f.jsonl", (), BY),
    Preference(prompt("Ünï"), "worse", "better", 0.1, 1.0, "revision:pointwise", ("kind",), BY),
]
HELD_OUT = [Preference(prompt("held"), "x", "y", 0.9, 1.0, "contrast", ("kind",), BY)]


def trace(text: str, p_revised: float | None, dropped: str | None = None, rounds: int = 1, principle: str = "kind") -> RevisionTrace:
    made = tuple(Round(Critique(principle, f"critique {i}"), Revision(principle, f"revision {i}")) for i in range(rounds))
    return RevisionTrace(prompt(text), "first", made, dropped, p_revised, BY)


TRACES = [trace("t1", 0.9), trace("t2", 0.2, dropped="worse"), trace("t3", None, rounds=2), trace("held", 0.7)]
DATA = RunData(PREFERENCES, HELD_OUT, [SFTExample(prompt("s"), "done", ("kind",), "revision", BY)], TRACES, CONSTITUTION)


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def directed(p: Preference) -> Preference:
    return p if p.p_chosen > 0.5 else p.swapped()


@pytest.mark.parametrize(
    ("format", "table"), [("trl", "preferences/train"), ("hh", "train"), ("ultrafeedback", "train_prefs")], ids=["trl", "hh", "uf"]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_exported_preferences_come_back_the_same(tmp_path: Path, format: str, table: str, suffix: str) -> None:
    exported = export(DATA, format, tmp_path)
    assert exported.tables[table] == 3 and exported.failures == ()
    loaded = load_pairs(tmp_path / f"{table}{suffix}")
    assert loaded.format == format and loaded.failures == ()
    wanted = [directed(p) for p in PREFERENCES]
    assert [(p.prompt.messages, p.chosen, p.rejected) for p in loaded.preferences] == [
        (p.prompt.messages, p.chosen, p.rejected) for p in wanted
    ]
    if format == "trl":
        kept = [(p.p_chosen, p.weight, p.source, p.prompt.kind, p.prompt.category, p.principle_ids) for p in loaded.preferences]
        assert kept == [(p.p_chosen, p.weight, p.source, p.prompt.kind, p.prompt.category, p.principle_ids) for p in wanted]


CUT = RunData(
    [replace(PREFERENCES[0], rejected_truncated=True), replace(PREFERENCES[2], chosen_truncated=True)],
    [replace(HELD_OUT[0], rejected_truncated=True)],
    [replace(DATA.sft[0], truncated=True)],
    [replace(trace("t1", 0.9), response_truncated=True), replace(trace("t3", None), response_truncated=True)],
    CONSTITUTION,
)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("format", "table"), [("trl", "preferences/train"), ("hh", "train"), ("ultrafeedback", "train_prefs")])
def test_what_was_cut_off_is_exported_and_read_back(tmp_path: Path, format: str, table: str, suffix: str) -> None:
    exported = export(CUT, format, tmp_path)
    loaded = load_pairs(tmp_path / f"{table}{suffix}")
    assert [(p.chosen_truncated, p.rejected_truncated) for p in loaded.preferences] == [(False, True), (False, True)]
    assert not set(loaded.unused) & {"chosen_truncated", "rejected_truncated"}
    if format == "trl":
        assert [jsonl(tmp_path / f"{name}.jsonl")[0]["truncated"] for name in ("sft/train", "sft-messages/train")] == [True, True]
    assert "3 of 6 responses of preferences and 1 of 1 SFT completions were cut off" in dataset_card(CUT, exported, "n")


def test_a_trace_says_which_of_its_texts_were_cut_off(tmp_path: Path) -> None:
    export(CUT, "cai-conversation", tmp_path)
    rows = [(r["truncated"], r["chosen_truncated"], r["rejected_truncated"]) for r in jsonl(tmp_path / "train_sft.jsonl")]
    assert rows == [(False, False, True), (False, None, None)]


def test_a_task_says_which_response_was_cut_off_and_its_label_too(tmp_path: Path) -> None:
    export(CUT, "label-studio", tmp_path)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    cut = {t["data"][f"response_{side}"] for t in tasks for side in "ab" if t["data"][f"truncated_{side}"]}
    assert cut == {"Bad: no.", "worse", "y"}
    for task in tasks:
        task["annotations"] = [{"completed_by": "ann", "result": [{"type": "pairwise", "value": {"selected": "left"}}]}]
    (tmp_path / "labelled.json").write_text(json.dumps(tasks))
    out = tmp_path / "labels.jsonl"
    import_labels([tmp_path / "labelled.json"], out, "auto", None, {})
    import_labels([out], tmp_path / "again.jsonl", "auto", None, {})
    for label in read_records(tmp_path / "again.jsonl", HumanLabel):
        pair = label.pair
        assert (pair.truncated_a, pair.truncated_b) == (pair.response_a in cut, pair.response_b in cut)


@pytest.mark.parametrize("format", [f.name for f in EXPORT_FORMATS.all() if f.tables])
def test_both_file_types_hold_the_same_rows_and_exactly_the_columns_of_the_format(tmp_path: Path, format: str) -> None:
    import pyarrow.parquet as pq

    for name, rows in export(DATA, format, tmp_path).tables.items():
        lines = jsonl(tmp_path / f"{name}.jsonl")
        assert len(lines) == rows
        assert pq.read_table(tmp_path / f"{name}.parquet").to_pylist() == lines
        assert all(list(line) == list(EXPORT_FORMATS.get(format).tables[name]) for line in lines)


def test_cai_conversation_calls_chosen_what_the_judge_chose(tmp_path: Path) -> None:
    exported = export(DATA, "cai-conversation", tmp_path)
    assert exported.tables == {"train_sft": 2, "train_prefs": 2, "test_sft": 1, "test_prefs": 1}
    preferences = jsonl(tmp_path / "train_prefs.jsonl")
    assert [(r["index"], r["chosen"][-1]["content"], r["rejected"][-1]["content"]) for r in preferences] == [
        (0, "revision 0", "first"),
        (1, "first", "revision 0"),
    ]
    kept, unjudged = jsonl(tmp_path / "train_sft.jsonl")
    assert kept["critic_prompt"] == {"content": "What is unkind here?", "role": "user"}
    assert kept["revision_prompt"]["content"] == "Make it kind."
    assert [m["content"] for m in kept["messages"]] == ["t1", "revision 0"]
    assert unjudged["chosen"] is None and unjudged["init_response"]["content"] == "revision 0"
    assert unjudged["revision_response"]["content"] == "revision 1"


def test_what_a_format_cannot_hold_is_counted(tmp_path: Path) -> None:
    odd = [
        replace(PREFERENCES[0], prompt=prompt("x", Message("system", "be brief"))),
        replace(PREFERENCES[0], chosen="He wrote:\n\nHuman: hi"),
        replace(PREFERENCES[0], p_chosen=0.5),
    ]
    exported = export(RunData([*PREFERENCES, *odd]), "hh", tmp_path)
    assert exported.tables == {"train": 3}
    assert sorted(f.reason for f in exported.failures) == ["not_representable", "not_representable", "tie"]
    traces = [trace("a", 0.9), trace("b", 0.9, rounds=0), trace("c", 0.9, principle="gone")]
    exported = export(RunData(traces=traces, constitution=CONSTITUTION), "cai-conversation", tmp_path)
    assert [f.reason for f in exported.failures] == ["not_revised", "unknown_principle"]


def test_an_empty_run_and_an_unknown_format_say_so(tmp_path: Path) -> None:
    for format in EXPORT_FORMATS.names():
        with pytest.raises(DataError, match=f"nothing to export as {format}"):
            export(RunData(), format, tmp_path)
    with pytest.raises(DataError, match="unknown export format"):
        export(DATA, "csv", tmp_path)


def test_a_second_export_leaves_no_stale_table(tmp_path: Path) -> None:
    export(DATA, "hh", tmp_path)
    assert (tmp_path / "test.parquet").exists()
    export(replace(DATA, held_out=()), "hh", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.jsonl", "train.parquet"]


def test_label_studio_tasks_hide_the_label_and_come_back_with_peoples_choices(tmp_path: Path) -> None:
    many = [Preference(prompt(f"q{i}"), f"good {i}", f"bad {i}", 0.9, 1.0, "ai:pairwise", (), BY) for i in range(60)]
    export(RunData([*many, many[0].swapped()]), "label-studio", tmp_path)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) == 60
    left = sum(t["data"]["response_a"].startswith("good") for t in tasks)
    assert 15 < left < 45
    assert not {"p_chosen", "chosen", "source"} & {key for t in tasks for key in (*t, *t["data"])}
    assert set(re.findall(r"\$(\w+)", LABEL_STUDIO_CONFIG)) <= tasks[0]["data"].keys()
    for task in tasks:
        side = "left" if task["data"]["response_a"].startswith("bad") else "right"
        task["annotations"] = [{"was_cancelled": False, "result": [{"type": "pairwise", "value": {"selected": side}}]}]
    (tmp_path / "labelled.json").write_text(json.dumps(tasks))
    loaded = load_pairs(tmp_path / "labelled.json")
    assert loaded.format == "label-studio" and len(loaded.preferences) == 60
    assert all(p.chosen.startswith("bad") and p.source == "human:labelled.json" for p in loaded.preferences)
    assert {prompt_key(p.prompt) for p in loaded.preferences} == {prompt_key(p.prompt) for p in many}


@pytest.mark.parametrize("format", [f.name for f in EXPORT_FORMATS.all() if f.tables])
def test_datasets_and_trl_read_the_export_through_its_card(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    exported = export(DATA, format, tmp_path / "export")
    (tmp_path / "export" / "README.md").write_text(dataset_card(DATA, exported, "n"), encoding="utf-8")
    for table, rows in exported.tables.items():
        config, _, split = table.rpartition("/")
        loaded = datasets.load_dataset(str(tmp_path / "export"), config or "default", split=split, cache_dir=str(tmp_path / "cache"))
        assert loaded.num_rows == rows
        assert loaded.column_names == list(EXPORT_FORMATS.get(format).tables[table])
        if format == "trl":
            from trl.data_utils import is_conversational

            columns = {"prompt", "chosen", "rejected", "completion", "messages"}
            assert all(is_conversational({c: row[c]}) for row in loaded for c in columns & row.keys())


def test_the_card_tells_how_the_labels_look_and_what_not_to_trust(tmp_path: Path) -> None:
    exported = export(DATA, "trl", tmp_path)
    judge = JudgeCard("pairwise", True, "pairs.jsonl", 0.44, 0.4, 0.48, 700, False, "always the longer answer")
    card = dataset_card(DATA, exported, "my-set", model="m-135", judge=judge)
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "other" and front["size_categories"] == ["n<1K"]
    assert [c["config_name"] for c in front["configs"]] == ["preferences", "sft", "sft-messages"]
    assert {"split": "test", "path": "preferences/test.parquet"} in front["configs"][0]["data_files"]
    for wanted in (
        "| `ai:pairwise` | 1 | 0 | 19 | 8 | 100% |",
        "| `contrast` | 0 | 1 | 1 | 1 | 50% |",
        "| 0.8 to 0.9 | 1 | 25% |",
        "| 0.9 to 1.0 | 3 | 75% |",
        "| `kind` | 3 | Be kind \\| always. |",
        "44.0% of 700 pairs",
        "**does not beat**",
        "don't train on the AI labels alone",
        f"hash `{CONSTITUTION.hash}`",
        "`m-135`",
    ):
        assert wanted in card
    assert "agreement with human labels was not measured" in dataset_card(DATA, exported, "my-set")
    people = replace(DATA, train=[PREFERENCES[1]], held_out=())
    assert "The judge" not in dataset_card(people, export(people, "trl", tmp_path), "my-set")


@pytest.mark.attack
def test_foreign_text_is_no_markup_in_a_card(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script> | # x `</code>` [a](javascript:x)"
    principle = replace(PRINCIPLE, id="kind", statement=bad)
    data = replace(DATA, constitution=Constitution("c", bad, "", (principle,)))
    judge = JudgeCard(bad, True, pairs=bad, n=3, best_baseline=bad, note=bad)
    card = dataset_card(data, export(data, "trl", tmp_path), "my-set", model=bad, judge=judge)
    body = card.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)<", re.sub(r"`[^`\n]*`", "", body)) and "<script>" not in body
    assert "[a](javascript" not in body and all(line.count("|") - line.count("\\|") == 4 for line in body.splitlines() if "`kind`" in line)


class FakeHub:
    def __init__(self, error: Exception | None = None, public: bool | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error
        self.public = public

    def repo_exists(self, repo_id: str, **options: Any) -> bool:
        return self.public is not None

    def repo_info(self, repo_id: str, **options: Any) -> Any:
        return SimpleNamespace(private=not self.public)

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append((repo_id, options))

    def create_commit(self, **options: Any) -> None:
        if self.error:
            raise self.error
        self.calls.append(("upload", options))


def test_pushing_makes_a_private_dataset_and_uploads_only_what_was_exported(tmp_path: Path) -> None:
    exported = export(DATA, "hh", tmp_path)
    for name in ("README.md", "labels.jsonl", "manifest.json", "prompts/harmful.jsonl", "sub/README.md"):
        write_text(tmp_path / name, "x")
    files, hub, shown = ["README.md", *EXPORT_FORMATS.get("hh").files[:2]], FakeHub(), list[str]()

    def agree(preview: str) -> bool:
        shown.append(preview)
        assert not hub.calls
        return True

    assert push_to_hub(tmp_path, files, "me/set", agree=agree, api=hub) == "https://huggingface.co/datasets/me/set"
    assert hub.calls[0] == ("me/set", {"repo_type": "dataset", "private": True, "exist_ok": True})
    sent = {operation.path_in_repo: operation.path_or_fileobj for operation in hub.calls[1][1]["operations"]}
    assert sent == {name: str(tmp_path / name) for name in ("README.md", "train.jsonl", "train.parquet")}
    assert exported.tables["train"] and hub.calls[1][1]["repo_type"] == "dataset"
    assert "3 files" in shown[0] and "datasets/me/set (private" in shown[0] and all(f"  {name}  " in shown[0] for name in sent)


@pytest.mark.parametrize(
    ("public", "private", "said"), [(True, True, "although --public"), (None, False, "PUBLIC"), (False, True, "private")]
)
def test_a_push_says_who_can_read_it_and_a_no_sends_nothing(tmp_path: Path, public: bool | None, private: bool, said: str) -> None:
    (tmp_path / "README.md").write_text("x")
    hub, shown = FakeHub(public=public), list[str]()
    assert push_to_hub(tmp_path, ["README.md"], "me/set", private, lambda preview: bool(shown.append(preview)), hub) is None
    assert not hub.calls and said in shown[0] and ("PUBLIC" in shown[0]) == (said != "private")


REQUEST = httpx2.Request("GET", "https://huggingface.co")


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (httpx2.ConnectError("no route"), "can't be reached"),
        (httpx2.HTTPStatusError("no", request=REQUEST, response=httpx2.Response(401, request=REQUEST)), "hf auth login"),
        (httpx2.HTTPStatusError("no", request=REQUEST, response=httpx2.Response(503, request=REQUEST)), "again later"),
        (OSError("Token is required"), "hf auth login"),
    ],
)
def test_a_failed_push_says_what_to_do(tmp_path: Path, error: Exception, fix: str) -> None:
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(DataError, match=fix):
        push_to_hub(tmp_path, ["README.md"], "me/set", api=FakeHub(error))


def test_a_push_without_card_or_owner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="OWNER/NAME"):
        push_to_hub(tmp_path, ["README.md"], "set", api=FakeHub())
    with pytest.raises(DataError, match=r"README\.md"):
        push_to_hub(tmp_path, [], "me/set", api=FakeHub())
