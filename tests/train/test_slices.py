"""What each member of an ensemble sees: whole prompts, by hash, with nothing lost and nothing twice."""

from collections import Counter
from dataclasses import replace

import pytest

from cai.errors import TrainingError
from cai.records import Message, Preference
from cai.train.reward.slices import slice_preferences
from tests.train.builders import preference

PAIRS = [replace(preference(i % 20), chosen=f"chosen {i}") for i in range(60)]
"""Three labels of each of twenty prompts."""


def prompts(pairs: tuple[Preference, ...]) -> set[str]:
    return {p.prompt.id for p in pairs}


def test_all_gives_everyone_everything() -> None:
    assert [s.preferences for s in slice_preferences(PAIRS, 2, "all", 0)] == [tuple(PAIRS)] * 2


def test_folds_leave_out_what_parts_give() -> None:
    folds, parts = (slice_preferences(PAIRS, 3, kind, 5) for kind in ("folds", "parts"))
    assert sorted(p.id for s in parts for p in s.preferences) == sorted(p.id for p in PAIRS), "every label in one part"
    for fold, part in zip(folds, parts, strict=True):
        assert not prompts(fold.preferences) & prompts(part.preferences)
        assert len(fold.preferences) + len(part.preferences) == len(PAIRS)
    assert "fold 2 of 3" in folds[1].description and "part 2 of 3" in parts[1].description


def test_near_copies_and_turns_of_one_conversation_are_in_one_slice() -> None:
    asked = "Tell me in {0} plain words how one would go about opening lock number {0} of a bicycle that belongs to somebody else"
    pairs = []
    for i in range(40):
        first = Message("user", asked.format(f"w{i}a w{i}b w{i}c w{i}d"))
        turns = ((first,), (Message("user", f"{first.content} now"),), (first, Message("assistant", "No."), Message("user", f"Why {i}?")))
        made = [replace(PAIRS[0], chosen=f"chosen {i} {k}") for k in range(3)]
        pairs += [replace(p, prompt=replace(p.prompt, id=f"{i}-{k}", messages=turns[k])) for k, p in enumerate(made)]
    for kind in ("parts", "bootstrap"):
        for s in slice_preferences(pairs, 3, kind, 0):
            counts = Counter(p.chosen.split()[1] for p in s.preferences)
            assert len(counts) > 5 and all(n % 3 == 0 for n in counts.values()), kind
    for fold in slice_preferences(pairs, 3, "folds", 0):
        assert set(Counter(p.chosen.split()[1] for p in fold.preferences).values()) == {3}
    exact = slice_preferences(pairs, 3, "parts", 0, similarity=None)
    assert any(n % 3 for s in exact for n in Counter(p.chosen.split()[1] for p in s.preferences).values()), "prompts.near_duplicates: null"


def test_more_rows_move_no_other() -> None:
    few, many = (slice_preferences(PAIRS[:n], 3, "parts", 0) for n in (30, 60))
    for a, b in zip(few, many, strict=True):
        assert set(a.preferences) <= set(b.preferences)


def test_bootstrap_draws_whole_prompts_with_replacement() -> None:
    drawn = slice_preferences(PAIRS, 3, "bootstrap", 1)
    assert drawn == slice_preferences(PAIRS, 3, "bootstrap", 1)
    assert len({s.preferences for s in drawn}) == 3
    assert drawn[:2] == slice_preferences(PAIRS, 2, "bootstrap", 1), "another member leaves the others as they are"
    for s in drawn:
        times = Counter(p.prompt.id for p in s.preferences)
        assert sum(times.values()) == 60 and all(n % 3 == 0 for n in times.values()) and max(times.values()) >= 6


def test_sources_are_dealt_out_by_size() -> None:
    sources = ["ai:a"] * 30 + ["human:b"] * 20 + ["contrast"] * 10
    pairs = [replace(p, source=s) for p, s in zip(PAIRS, sources, strict=True)]
    one, two = slice_preferences(pairs, 2, "source", 0)
    assert {p.source for p in one.preferences} == {"ai:a"} and len(one.preferences) == 30
    assert {p.source for p in two.preferences} == {"human:b", "contrast"}
    assert two.description == "sources contrast, human:b"


def test_a_label_without_a_principle_goes_to_everyone() -> None:
    pairs = [replace(p, principle_ids=ids) for p, ids in zip(PAIRS[:4], [("kind",), ("brief",), (), ("kind", "brief")], strict=True)]
    one, two = slice_preferences(pairs, 2, "principle", 0)
    assert sorted(len(s.preferences) for s in (one, two)) == [3, 3]
    assert {p.principle_ids for p in (*one.preferences, *two.preferences)} == {("kind",), ("brief",), (), ("kind", "brief")}
    assert {p.id for p in one.preferences} & {p.id for p in two.preferences} == {pairs[2].id, pairs[3].id}


def test_slices_that_cannot_be_cut_say_why() -> None:
    with pytest.raises(TrainingError, match="folds needs at least 2 members, found 1"):
        slice_preferences(PAIRS, 1, "folds", 0)
    with pytest.raises(TrainingError, match="source with 2 members, but the training pairs have 1 sources: ai:test"):
        slice_preferences(PAIRS, 2, "source", 0)
    with pytest.raises(TrainingError, match="have 0 principles: none"):
        slice_preferences(PAIRS, 2, "principle", 0)
    with pytest.raises(TrainingError, match=r"parts leaves no pair, of 1 pairs, for member \d"):
        slice_preferences(PAIRS[:1], 3, "parts", 0)
