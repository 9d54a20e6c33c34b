import collections
import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cai.errors import DataError
from cai.labels.load import load_human, load_pairs
from cai.recipe import HumanSource
from cai.records import Message, Preference, Prompt, Provenance

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, *rows: Any) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


Q, GOOD, BAD = "Is it: so?", "Yes: it is.", "Yes: no."
HH = {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"}
PROMPT = Prompt("p", "harmful", (Message("user", Q),), "s")
CAI = Preference(PROMPT, GOOD, BAD, 0.8, 0.5, "ai:pairwise", ("kind",), Provenance("m"))
SHAPES = {
    "hh": [HH],
    "hhh": [{"text_correct": HH["chosen"], "text_incorrect": HH["rejected"], "prompt": "Options: (A) (B)", "corrects": [" (B)"]}],
    "ultrafeedback": [
        {
            "prompt": Q,
            "prompt_id": "x",
            "chosen": [user(Q), assistant(GOOD)],
            "rejected": [user(Q), assistant(BAD)],
            "messages": [user(Q), assistant(GOOD)],
            "score_chosen": 8.5,
            "score_rejected": 3,
            "source": "evol_instruct",
        }
    ],
    "trl": [
        {"prompt": Q, "chosen": GOOD, "rejected": BAD},
        {"prompt": [user(Q)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
        {"chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]},
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": " " + GOOD, "rejected": " " + BAD},
        {"prompt": None, "chosen": f"{Q} It is.", "rejected": f"{Q} Isn't."},
    ],
    "cai": [msgspec.to_builtins(CAI)],
    "label-studio": [
        {
            "id": 7,
            "data": {"prompt": Q, "response_a": BAD, "response_b": GOOD},
            "annotations": [{"was_cancelled": False, "result": [{"type": "pairwise", "value": {"selected": "right"}}]}],
        }
    ],
}


@pytest.mark.parametrize(("format", "row"), [(f, r) for f, rows in SHAPES.items() for r in rows])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_every_format_gives_the_same_pair(tmp_path: Path, format: str, row: Any, named: bool, name: str) -> None:
    loaded = load_pairs(write(tmp_path / name, row), format if named else "auto")  # type: ignore[arg-type]
    (p,) = loaded.preferences
    assert loaded.format == format and loaded.failures == ()
    assert p.prompt.messages == (Message("user", Q),)
    implicit = "It is." in str(row.get("chosen")) and row.get("prompt", "") is None
    assert (p.chosen, p.rejected) == (("It is.", "Isn't.") if implicit else (GOOD, BAD))
    assert p.source == ("ai:pairwise" if format == "cai" else f"human:{name}")
    assert p.p_chosen == (0.8 if format == "cai" else 1.0)


def test_an_exported_ai_label_never_comes_back_as_a_persons(tmp_path: Path) -> None:
    row = {"prompt": Q, "chosen": GOOD, "rejected": BAD, "p_chosen": 0.7, "weight": 0.5, "source": "revision:pointwise", "kind": "helpful"}
    (p,) = load_pairs(write(tmp_path / "p.jsonl", row), kind="harmful").preferences
    assert (p.source, p.p_chosen, p.weight, p.prompt.kind) == ("revision:pointwise", 0.7, 0.5, "helpful")


def test_a_label_below_one_half_is_told_the_other_way_round(tmp_path: Path) -> None:
    (p,) = load_pairs(write(tmp_path / "p.jsonl", {"prompt": Q, "chosen": BAD, "rejected": GOOD, "p_chosen": 0.1})).preferences
    assert (p.chosen, p.rejected, p.p_chosen) == (GOOD, BAD, 0.9)


def test_rows_without_a_direction_are_counted_failures(tmp_path: Path) -> None:
    other = f"\n\nHuman: Another?\n\nAssistant: {BAD}"
    bad = [
        ({**HH, "rejected": other}, "prompt_mismatch"),
        ({**HH, "rejected": HH["chosen"].upper().replace("HUMAN", "Human").replace("ASSISTANT", "Assistant")}, "identical"),
        ({**HH, "chosen": f"\n\nHuman: {Q}\n\nAssistant: "}, "empty"),
        ({**HH, "chosen": f"\n\nHuman: {Q}"}, "no_response"),
        ({**HH, "chosen": f"\n\nHuman: {Q}\n\nAssistant: a\n\nAssistant: b"}, "no_user_turn"),
        ({"chosen": HH["chosen"] + " Yes.", "rejected": HH["rejected"], "p_chosen": 0.5}, "tie"),
        ({**HH, "p_chosen": 1.5}, "not_a_probability"),
        ({"chosen": HH["chosen"]}, "no_column"),
        ({"chosen": "just text", "rejected": "more"}, "not_a_transcript"),
        (["x"], "not_a_row"),
    ]
    path = write(tmp_path / "hh.jsonl", HH, *(row for row, _ in bad))
    loaded = load_pairs(path)
    assert len(loaded.preferences) == 1
    assert {f.item_id: f.reason for f in loaded.failures} == {f"{path}:{n}": reason for n, (_, reason) in enumerate(bad, 2)}
    assert len(loaded.failures) == len(bad)


@pytest.mark.parametrize(("high", "low", "reason"), [(5, 5, "tie"), (3, 5, "contradiction"), (None, 5, "no_score")])
def test_ultrafeedback_scores_must_agree_with_the_label(tmp_path: Path, high: Any, low: Any, reason: str) -> None:
    good = SHAPES["ultrafeedback"][0]
    loaded = load_pairs(write(tmp_path / "u.jsonl", good, {**good, "score_chosen": high, "score_rejected": low}))
    assert [f.reason for f in loaded.failures] == [reason]


def test_a_prompt_beside_conversations_that_do_not_hold_it_is_a_mismatch(tmp_path: Path) -> None:
    good = {"prompt": [user(Q)], "chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]}
    loaded = load_pairs(write(tmp_path / "t.jsonl", good, {**good, "prompt": [user("Other")]}, {**good, "prompt": "Other"}))
    assert [f.reason for f in loaded.failures] == ["prompt_mismatch"] * 2


def test_label_studio_choices_follow_each_annotator(tmp_path: Path) -> None:
    task = SHAPES["label-studio"][0]

    def chose(*sides: str | None) -> dict[str, Any]:
        return {**task, "annotations": [{"result": [{"type": "pairwise", "value": {"selected": s}}]} for s in sides]}

    skipped = {**task, "annotations": [{"was_cancelled": True, "result": []}]}
    (tmp_path / "t.json").write_text(json.dumps([chose("left", "right", "left"), skipped, chose(None)]))
    loaded = load_pairs(tmp_path / "t.json")
    assert [(p.chosen, p.rejected, p.p_chosen) for p in loaded.preferences] == [(BAD, GOOD, pytest.approx(2 / 3))]
    assert sorted(f.reason for f in loaded.failures) == ["no_choice", "skipped"]


def test_a_limit_only_adds(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *({"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(40)))
    few, more = (load_pairs(path, limit=n, seed=3).preferences for n in (5, 15))
    assert len(few) == 5 and len(more) == 15 and set(few) < set(more)
    assert [int(p.prompt.messages[0].content[1:]) for p in more] == sorted(int(p.prompt.messages[0].content[1:]) for p in more)


def answers(path: Path, *said: tuple[str, str, str], prompt: str = "q") -> HumanSource:
    """Write a table of annotator, choice and time about one pair; return it as a source."""
    sides = {"prompt": prompt, "response_a": "yes", "response_b": "no"}
    write(path, *({**sides, "annotator": who, "choice": choice, "time": time} for who, choice, time in said))
    return HumanSource(path=path.name)


@pytest.mark.parametrize(
    ("first", "second", "p_yes"),
    [
        ("", "", 2 / 3),  # ann said B in the source that is listed first, and A in the second
        ("2026-01-02", "2026-01-01", 1 / 3),
        ("2026-01-01", "2026-01-02", 2 / 3),
    ],
)
def test_an_annotator_of_several_sources_has_one_vote(tmp_path: Path, first: str, second: str, p_yes: float) -> None:
    one = answers(tmp_path / "a.jsonl", ("ann", "B", first), ("bob", "A", ""))
    other = answers(tmp_path / "b.jsonl", ("ann", "A", second), ("eve", "B", ""))
    said: list[str] = []
    (p,), failures = load_human([one, other], tmp_path, 0, said.append)
    assert (p.p_chosen if p.chosen == "yes" else 1 - p.p_chosen) == pytest.approx(p_yes)
    assert failures == () and "1 human labels don't count" in said[-1]
    (p,), _ = load_human([answers(tmp_path / "c.jsonl", ("ann", "B", "")), answers(tmp_path / "d.jsonl", ("ann", "A", ""))], tmp_path, 0)
    assert (p.chosen, p.p_chosen) == ("yes", 1.0)


def test_a_decision_in_one_source_replaces_the_answers_in_another(tmp_path: Path) -> None:
    sources = [answers(tmp_path / "a.jsonl", ("adjudication", "B", "")), answers(tmp_path / "b.jsonl", ("ann", "A", ""), ("", "A", ""))]
    (p,), _ = load_human(sources, tmp_path, 0)
    assert (p.chosen, p.p_chosen) == ("no", 1.0)


def test_a_pair_beyond_a_sources_limit_replaces_nothing(tmp_path: Path) -> None:
    one = answers(tmp_path / "a.jsonl", ("ann", "A", ""))
    answers(tmp_path / "b.jsonl", ("ann", "B", ""), ("eve", "B", ""))
    with (tmp_path / "b.jsonl").open("a") as file:
        for i in range(20):
            row = {"prompt": f"other {i}", "response_a": "yes", "response_b": "no", "annotator": "ann", "choice": "A"}
            file.write(json.dumps(row) + "\n")
    seeds = [seed for seed in range(20) if len(load_human([one, HumanSource(path="b.jsonl", limit=1)], tmp_path, seed)[0]) == 2]
    assert len(seeds) > 10
    for seed in seeds:  # b's one pair is another one
        found, _ = load_human([one, HumanSource(path="b.jsonl", limit=1)], tmp_path, seed)
        assert {p.prompt.messages[0].content: (p.chosen, p.p_chosen) for p in found}["q"] == ("yes", 1.0)


@pytest.mark.parametrize(
    ("content", "says"),
    [('{"a": 1}\n', "not recognised as labelled pairs"), ("", "no usable pair in 0 rows"), ("{\n", "no usable pair in 1 rows")],
)
def test_files_without_pairs_say_so(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(DataError, match=says):
        load_pairs(tmp_path / "p.jsonl")


def test_shipped_probe_pairs_load_whole() -> None:
    loaded = load_pairs(ROOT / "prompts" / "probe_pairs.jsonl")
    assert len(loaded.preferences) >= 80 and loaded.failures == ()
    assert {p.prompt.kind for p in loaded.preferences} == {"harmful", "borderline", "helpful"}


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("name", "format", "pairs", "failures"),
    [
        ("hh_harmless_dev.jsonl.gz", "hh", 1495, {"empty": 4, "no_user_turn": 1}),
        ("hhh_dev.jsonl", "hhh", 219, {}),
    ],
)
def test_real_files_load_as_counted(name: str, format: str, pairs: int, failures: dict[str, int]) -> None:
    loaded = load_pairs(REAL / name)
    assert (loaded.format, len(loaded.preferences)) == (format, pairs)
    assert collections.Counter(f.reason for f in loaded.failures) == failures
    assert not [p for p in loaded.preferences if p.prompt.messages[-1].role != "user" or "\n\nHuman:" in p.chosen + p.rejected]
