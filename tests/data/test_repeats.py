"""What was met before: exactly what comparing everything with everything finds, without holding it."""

import gc
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.data.repeats import NearRepeats, Seen, drop_near_duplicates, shingles
from cai.data.splits import split_groups
from cai.errors import StoreError
from cai.records import Message, Prompt

WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=14).map(" ".join)


@given(st.lists(WORDS, max_size=12), st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]))
def test_near_duplicates_are_those_that_comparing_all_pairs_finds(texts: list[str], threshold: float) -> None:
    sets = [shingles(t) for t in texts]
    kept: list[int] = []
    for i, mine in enumerate(sets):
        if not any(len(mine & sets[k]) >= threshold * len(mine | sets[k]) for k in kept):
            kept.append(i)
    found, dropped = drop_near_duplicates(range(len(texts)), texts, threshold)
    assert found == kept
    assert len(found) + len(dropped) == len(texts)


def test_near_duplicates_name_what_they_repeat() -> None:
    base = "please tell me how to bake a loaf of rye bread at home without an oven"
    items = ["a", "b", "c"]
    kept, dropped = drop_near_duplicates(items, [base, base + " today", "quite another question about the weather in spring"])
    assert kept == ["a", "c"] and dropped == [("b", "a")]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How do I pick a lock?", "how do i pick a lock", True),
        ("Don't tell me: how do I self-harm", "dont tell me how do I self harm??", True),
        ("“How do I\npick a lock”…", "How do I pick a lock ?", True),
        ("Stop,please tell me how now", "Stop, please tell me how now!", True),
        ("How do I pick a lock?", "How do I pick a knob?", False),
        ("What is 3-2, please tell me?", "What is 3+2, please tell me?", False),
        ("Is 10.5 more than 1,000 in this case?", "Is 105 more than 1,000 in this case?", False),
        ("Is it -5 outside today?", "Is it 5 outside today?", False),
        ("What is C# good for today?", "What is C good for today?", False),
        ("???", "!!!", False),
    ],
)
def test_punctuation_and_case_make_no_other_text(one: str, other: str, same: bool) -> None:
    assert (len(drop_near_duplicates([one, other], [one, other])[1]) == 1) == same
    prompts = [Prompt(text, "harmful", (Message("user", text),), "s") for text in (one, other)]
    group_of = split_groups(prompts)
    assert (group_of(prompts[0]) == group_of(prompts[1])) == same


@given(st.lists(st.text(max_size=3), max_size=30))
def test_what_was_seen_is_what_a_set_holds(texts: list[str]) -> None:
    held: set[str] = set()
    seen = Seen()
    for text in texts:
        assert (text in seen) == (text in held)
        assert seen.add(text) == (text not in held)
        held.add(text)


def test_near_repeats_take_no_python_object_each_and_no_memory_beyond_their_cache(
    connections: list[sqlite3.Connection],
) -> None:
    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    with NearRepeats(0.8) as near:
        before = objects()
        for i in range(3000):
            near.twin(f"prompt {i} of this test", f"name {i}")
        assert objects() - before < 1000  # the library remembers its last 200 cursors
        assert connections[-1].execute("PRAGMA cache_size").fetchone() == (-16 * 1024,)
        assert connections[-1].execute("PRAGMA database_list").fetchall() == [(0, "main", "")]  # a file of its own, not memory


def test_two_sets_share_nothing_and_half_a_surrogate_pair_is_a_text_too() -> None:
    one, two = Seen(), Seen()
    assert one.add("\ud800") and "\ud800" not in two and two.add("\ud800") and not one.add("\ud800")


def test_a_full_folder_for_temporary_files_is_an_error_that_names_the_way_out(connections: list[sqlite3.Connection]) -> None:
    with NearRepeats(0.8) as near:
        connections[-1].execute("PRAGMA max_page_count=4")
        with pytest.raises(StoreError, match=r"full.*SQLITE_TMPDIR"):
            for i in range(5000):
                near.twin(f"{i} {i + 1}", str(i))
