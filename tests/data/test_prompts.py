import gc
import gzip
import json
from pathlib import Path

import pytest

from cai.data.prompts import (
    SkippedRows,
    load_all,
    load_prompts,
    split_monitored,
    stream_prompts,
    without_evaluated,
    without_near_repeats,
)
from cai.errors import DataError
from cai.recipe import PromptSource
from cai.records import Failure, Message, Prompt
from tests.data.prompting import ROOT, texts, write_jsonl


def cai_row(identity: str, text: str, kind: str = "harmful") -> dict[str, object]:
    return {"id": identity, "kind": kind, "category": "c", "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(("name", "count"), [("harmful", 150), ("helpful", 100), ("borderline", 80)])
def test_shipped_prompts_load_whole(name: str, count: int) -> None:
    loaded = load_prompts(PromptSource(path=f"prompts/{name}.jsonl", format="cai"), ROOT, seed=0)
    assert len(loaded.prompts) >= count
    assert loaded.failures == ()
    assert loaded.counts["duplicates"] == 0
    assert {p.kind for p in loaded.prompts} == {name}


def test_shipped_training_and_evaluation_prompts_share_nothing() -> None:
    train = load_all([PromptSource(path=f"prompts/{n}.jsonl") for n in ("harmful", "helpful", "borderline")], ROOT, 0)
    evaluate = load_all([PromptSource(path="prompts/eval_*.jsonl")], ROOT, 0)
    left_out: list[Failure] = []
    kept = without_near_repeats(without_evaluated(train.prompts, evaluate.prompts, left_out), evaluate.prompts, 0.8, left_out)
    assert tuple(kept) == train.prompts and left_out == []


def test_a_cai_row_keeps_its_id_kind_and_category(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [cai_row("h-1", "How do I …?")])
    (prompt,) = load_prompts(PromptSource(path="p.jsonl"), tmp_path, 0).prompts
    assert (prompt.id, prompt.kind, prompt.category, prompt.source) == ("h-1", "harmful", "c", "p.jsonl")


def test_globs_join_files_in_name_order_and_count_repeats(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Two\nthree\n")
    (tmp_path / "a.txt").write_text("one\n two  \n")
    loaded = load_prompts(PromptSource(path="*.txt"), tmp_path, 0)
    assert texts(loaded) == ["one", "two", "three"]
    assert loaded.counts == {"rows": 4, "duplicates": 1, "empty": 0, "failed": 0, "over_limit": 0}


def test_bad_rows_are_named_by_line_and_counted(tmp_path: Path) -> None:
    good = json.dumps(cai_row("a", "fine"))
    bad = [
        ("{oops", "unreadable"),
        (json.dumps(cai_row("b", " ")), "empty"),
        (json.dumps(cai_row("c", "x", kind="harmfull")), "unknown_kind"),
        (json.dumps(cai_row("a", "another text")), "repeated_id"),
        (json.dumps({"id": "d", "messages": [{"role": "narrator", "content": "x"}]}), "unknown_role"),
        (json.dumps({"id": "e", "messages": [{"role": "user", "content": 3}]}), "not_text"),
        (json.dumps({"id": "f", "messages": [{"role": "assistant", "content": "x"}]}), "no_user_turn"),
        (json.dumps({"text": "x"}), "no_prompt_column"),
        ("[1]", "not_a_row"),
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join([good, *(line for line, _ in bad)]) + "\n")
    loaded = load_prompts(PromptSource(path="p.jsonl"), tmp_path, 0)
    assert [(f.item_id, f.reason) for f in loaded.failures] == [(f"{path}:{n}", reason) for n, (_, reason) in enumerate(bad, 2)]
    assert texts(loaded) == ["fine"]
    assert loaded.counts == {"rows": 10, "duplicates": 0, "empty": 1, "failed": 9, "over_limit": 0}


def test_a_limit_keeps_file_order_and_a_higher_one_only_adds(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(60)))

    def kept(limit: int, seed: int) -> list[str]:
        return texts(load_prompts(PromptSource(path="p.txt", limit=limit), tmp_path, seed))

    ten, twenty = kept(10, 1), kept(20, 1)
    assert len(ten) == 10 and len(twenty) == 20
    assert set(ten) < set(twenty)
    assert twenty == sorted(twenty, key=lambda t: int(t.split()[1]))
    assert kept(10, 2) != ten
    assert kept(99, 1) == [f"prompt {i}" for i in range(60)]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("absent.jsonl", "no such file"),
        ("*.nothing", "no file matches"),
        ("../outside.txt", "leaves the workspace"),
        ("a/../../outside.txt", "leaves the workspace"),
        ("empty.jsonl", "no usable prompt in 0 rows"),
        ("broken.jsonl.gz", "not a whole gzip file"),
        ("latin.csv", "UTF-8"),
        ("what.bin", "unknown file format"),
    ],
)
def test_sources_that_cannot_be_read_say_so(tmp_path: Path, path: str, says: str) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    (tmp_path / "outside.txt").write_text("secret\n")
    (root / "empty.jsonl").touch()
    (root / "broken.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "x"}\n' * 100)[:-9])
    (root / "latin.csv").write_bytes("prompt\ncafé\n".encode("latin-1"))
    (root / "what.bin").write_bytes(b"\x00\x01")
    with pytest.raises(DataError, match=says):
        load_prompts(PromptSource(path=path), root, 0)


def test_load_all_reports_every_missing_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)one\.jsonl.*two\.jsonl"):
        load_all([PromptSource(path="one.jsonl"), PromptSource(path="two.jsonl")], tmp_path, 0)


def test_load_all_counts_repeats_across_sources(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [cai_row("a1", "Same"), cai_row("a2", "other")])
    write_jsonl(tmp_path / "b.jsonl", [cai_row("b1", "  same "), cai_row("a2", "a new text under a used id"), cai_row("b3", "new")])
    loaded = load_all([PromptSource(path="a.jsonl"), PromptSource(path="b.jsonl")], tmp_path, 0)
    assert [p.id for p in loaded.prompts] == ["a1", "a2", "b3"]
    assert loaded.counts == {"rows": 5, "duplicates": 1, "empty": 0, "failed": 1, "over_limit": 0}
    assert [f.reason for f in loaded.failures] == ["repeated_id"]


def test_training_prompts_that_are_evaluated_are_dropped_and_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [cai_row("t1", "Shared  PROMPT"), cai_row("t2", "mine"), cai_row("e2", "same id")])
    write_jsonl(tmp_path / "e.jsonl", [cai_row("e1", "shared prompt"), cai_row("e2", "theirs")])
    train, evaluate = (load_all([PromptSource(path=n)], tmp_path, 0) for n in ("t.jsonl", "e.jsonl"))
    left_out: list[Failure] = []
    assert [p.id for p in without_evaluated(train.prompts, evaluate.prompts, left_out)] == ["t2"]
    assert [(f.item_id, f.reason) for f in left_out] == [("t1", "in_evaluate"), ("e2", "in_evaluate")]


def test_prompts_of_an_evaluated_conversation_and_its_near_copies_are_left_out() -> None:
    opening = "Please tell me how I can bake a loaf of rye bread at home in an oven without steam"
    follow_up = (
        Message("assistant", "Gladly, what is it that you have?"),
        Message("user", "A small oven, and I never baked in my life before."),
    )
    theirs = [Prompt("e", "other", (Message("user", opening), *follow_up), "e")]
    train = [
        Prompt("same opening", "other", (Message("user", opening.upper()),), "t"),
        Prompt("with a system turn", "other", (Message("system", "Be terse."), Message("user", opening)), "t"),
        Prompt("edited opening", "other", (Message("user", opening + " today"),), "t"),
        Prompt("another", "other", (Message("user", "How do I bake a cake?"), *follow_up[:1], Message("user", "A large one")), "t"),
    ]
    left_out: list[Failure] = []
    kept = without_near_repeats(without_evaluated(train, theirs, left_out), theirs, 0.8, left_out)
    assert [p.id for p in kept] == ["another"]
    assert [(f.item_id, f.reason) for f in left_out] == [
        ("same opening", "in_evaluate"), ("with a system turn", "in_evaluate"), ("edited opening", "near_duplicate"),
    ]  # fmt: skip


def test_near_repeats_of_evaluation_and_of_earlier_training_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    ask = "please tell me in plain words how one would go about opening the lock of a bicycle that belongs to somebody else without a key"
    other = "what would a cook do with two old onions, a handful of rice and the rest of last night's soup when nobody is home"
    rows = [cai_row("near-evaluate", f"{ask} today"), cai_row("first", other), cai_row("again", f"{other} now"), cai_row("far", "hello")]
    write_jsonl(tmp_path / "t.jsonl", rows)
    write_jsonl(tmp_path / "e.jsonl", [cai_row("e1", ask)])
    train, evaluate = (load_all([PromptSource(path=n)], tmp_path, 0) for n in ("t.jsonl", "e.jsonl"))
    left_out: list[Failure] = []
    kept = without_near_repeats(train.prompts, evaluate.prompts, 0.8, left_out)
    assert [p.id for p in kept] == ["first", "far"]
    assert [(f.item_id, f.reason) for f in left_out] == [("near-evaluate", "near_duplicate"), ("again", "near_duplicate")]
    assert left_out[0].detail == "t.jsonl: repeats evaluation prompt e1 of e.jsonl"
    assert left_out[1].detail == "t.jsonl: repeats prompt first of t.jsonl"
    both = [*evaluate.prompts, Prompt("e2", "harmful", (Message("user", f"{ask} today or tomorrow at"),), "e.jsonl")]
    copy = Prompt("c", "harmful", (Message("user", f"{ask} today or tomorrow at six in the evening"),), "t.jsonl")
    assert list(without_near_repeats([copy], both, 0.8, [])) == [], "near the second, which repeats the first, and far from that"
    for similarity in (1.0, None):
        assert tuple(without_near_repeats(train.prompts, evaluate.prompts, similarity, left_out)) == train.prompts
    assert len(left_out) == 2


def test_a_search_among_prompts_of_one_sentence_says_once_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "tell me {} in your own words what a person who has never been to sea has to know about the tides"
    prompts = [Prompt(f"p{i}", "helpful", (Message("user", sentence.format(f"{i} {i}a {i}b {i}c")),), "s") for i in range(40)]
    monkeypatch.setattr("cai.data.prompts.MANY_COMPARISONS", 100)
    said: list[str] = []
    assert list(without_near_repeats(prompts, (), 0.95, [], said.append)) == prompts
    (text,) = said
    assert text.startswith("prompts.near_duplicates: 10") and "null" in text
    said.clear()
    far = [Prompt(f"p{i}", "helpful", (Message("user", f"number {i}"),), "s") for i in range(400)]
    assert list(without_near_repeats(far, (), 0.95, [], said.append)) == far and said == []


def test_streamed_prompts_are_counted_by_hand(tmp_path: Path) -> None:
    first = [
        cai_row("a1", "Same"),
        cai_row("a2", " same"),  # a repeat of a1
        cai_row("a1", "another text under a used id"),
        cai_row("a3", "Another text under a USED id"),  # no repeat: what it repeats was refused
        cai_row("a4", "   "),  # empty
    ]
    write_jsonl(tmp_path / "a.jsonl", first)
    write_jsonl(tmp_path / "b.jsonl", [cai_row("b1", "SAME"), cai_row("a3", "new text, used id"), cai_row("b2", "new"), cai_row("b3", "x")])
    sources = [PromptSource(path="a.jsonl"), PromptSource(path="b.jsonl", limit=3)]
    left_out = SkippedRows()
    kept = [p.id for p in stream_prompts(sources, tmp_path, 0, left_out)]
    assert kept[:2] == ["a1", "a3"]
    over = {"b1", "a3", "b2", "b3"} - set(b_kept(tmp_path, 3))
    assert len(over) == 1
    duplicates, repeated_ids = 1 + ("b1" not in over), 1 + ("a3" not in over)
    assert kept[2:] == [i for i in ("b2", "b3") if i not in over]
    assert left_out.counts == {"rows": 9, "duplicates": duplicates, "empty": 1, "failed": 1 + repeated_ids, "over_limit": 1}
    assert [f.reason for f in left_out.failures] == ["repeated_id", "empty", *["repeated_id"] * (repeated_ids - 1)]


def b_kept(folder: Path, limit: int) -> list[str]:
    return [p.id for p in load_prompts(PromptSource(path="b.jsonl", limit=limit), folder, 0).prompts]


def test_no_prompt_is_held_while_they_stream(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [cai_row(f"p{i}", f"prompt number {i} of a file") for i in range(400)])
    alive = 0
    for source in (PromptSource(path="p.jsonl"), PromptSource(path="p.jsonl", limit=200)):
        left_out: list[Failure] = []
        train = without_evaluated(stream_prompts([source], tmp_path, 0, SkippedRows()), (), left_out)
        for number, _ in enumerate(without_near_repeats(train, (), 0.8, left_out)):
            if number == 150:
                alive = sum(type(o) is Prompt and o.messages[-1].content.endswith("of a file") for o in gc.get_objects())
        assert 1 <= alive < 10


def test_watched_prompts_are_at_most_half_and_stay_watched_as_more_are() -> None:
    prompts = [Prompt(f"p{i}", "harmful", (Message("user", f"How do I do {i}?"),), "test") for i in range(9)]
    few, rest = split_monitored(prompts, 2, 0)
    more, left = split_monitored(prompts, 64, 0)
    assert (len(few), len(more)) == (2, 4) and set(few) < set(more), "4 of 9 are at most half"
    assert sorted(p.id for p in more) == [p.id for p in more] and [p.id for p in left] == sorted(p.id for p in left)
    assert set(few) | set(rest) == set(more) | set(left) == set(prompts) and not set(more) & set(left)
    assert [len({p.id for p in split_monitored(prompts, 4, seed)[0]} & {p.id for p in more}) for seed in range(1, 6)] != [4] * 5, (
        "drawn by the seed"
    )
    assert split_monitored(prompts[:1], 5, 0) == ([], prompts[:1])


def test_watched_prompts_share_no_conversation_with_the_others() -> None:
    turns = [(Message("user", f"Question {i}?"),) for i in range(10)]
    prompts = [
        Prompt(f"p{i}-{k}", "harmful", (*t, Message("assistant", "."), *t) if k else t, "s") for i, t in enumerate(turns) for k in (0, 1)
    ]
    watched, others = split_monitored(prompts, 7, 0)
    assert len(watched) == 6 and {p.id[:2] for p in watched}.isdisjoint(p.id[:2] for p in others)
    watched, others = split_monitored(prompts[:2], 1, 0)
    assert len(watched) == len(others) == 1, "all belong together, and the monitor needs one"
