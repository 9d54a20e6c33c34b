"""Hashes, seeds and rendezvous assignment: stable, order-free, and moving nothing that needn't move."""

import doctest
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cai.ids
from cai.ids import combine_hashes, content_hash, derive_seed, rendezvous_order, split_fraction
from cai.records import Message

ITEMS = [f"item-{i}" for i in range(4000)]
EVEN = [(f"p{i}", 1.0) for i in range(8)]


def winners(weights: list[tuple[str, float]], salt: int = 0) -> dict[str, str]:
    return {item: rendezvous_order(item, weights, salt)[0] for item in ITEMS}


def test_the_docstrings_examples_hold() -> None:
    result = doctest.testmod(cai.ids)
    assert result.attempted >= 3
    assert result.failed == 0


def test_hashes_never_change_between_versions() -> None:
    # These name items and key the call store in people's workspaces: a change here orphans every finished call.
    assert content_hash({"b": [1, 2.5, None], "a": "é"}) == "d764fee2563da33e"
    assert content_hash(Message("user", "Hi")) == "ba2daed9b288b73b"
    assert derive_seed(0, "prompt-1", "respond", 0) == 866697689
    assert f"{split_fraction('item-1', 'held-out'):.12f}" == "0.353410234696"


@given(st.dictionaries(st.text(max_size=5), st.integers(-1000, 1000), max_size=6), st.randoms())
def test_a_hash_ignores_the_order_of_keys(value: dict[str, int], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert content_hash(dict(items)) == content_hash(value)


def test_hashes_tell_shapes_apart() -> None:
    values = [["ab", "c"], ["a", "bc"], ["a", "b", "c"], "abc", {"a": "bc"}, [["a"], "bc"], ["1"], [1], [None], []]
    assert len({content_hash(v) for v in values}) == len(values)
    assert combine_hashes(["a", "b"]) != combine_hashes(["b", "a"])


@pytest.mark.parametrize("length", [1, 16, 64])
def test_a_hash_has_the_length_asked_for(length: int) -> None:
    assert content_hash("x", length) == content_hash("x", 64)[:length]


@given(st.integers(0, 2**32), st.lists(st.one_of(st.text(max_size=8), st.integers(0, 99)), max_size=4))
def test_seeds_fit_31_bits(run_seed: int, parts: list[str | int]) -> None:
    assert 0 <= derive_seed(run_seed, *parts) < 2**31


def test_seeds_rarely_collide_and_depend_on_every_part() -> None:
    seeds = {derive_seed(run, f"item-{i}", stage, attempt) for run in (0, 1) for i in range(50) for stage in "ab" for attempt in (0, 1)}
    assert len(seeds) == 400
    assert derive_seed(0, "1") != derive_seed(0, 1)


def test_removing_one_candidate_moves_only_its_own_items() -> None:
    before, after = winners(EVEN), winners(EVEN[1:])
    moved = {item for item in ITEMS if before[item] != after[item]}
    assert moved == {item for item in ITEMS if before[item] == "p0"}
    assert len({after[item] for item in moved}) == 7  # spread over all the others, not dumped on a neighbour


def test_adding_one_candidate_moves_only_what_it_wins() -> None:
    before, after = winners(EVEN), winners([*EVEN, ("new", 1.0)])
    assert {item for item in ITEMS if before[item] != after[item]} == {item for item in ITEMS if after[item] == "new"}


def test_raising_one_weight_only_draws_items_to_it() -> None:
    before, after = winners(EVEN), winners([("p0", 3.0), *EVEN[1:]])
    assert all(after[item] == "p0" for item in ITEMS if before[item] != after[item])
    assert Counter(after.values())["p0"] > Counter(before.values())["p0"]


def test_proportions_follow_weights() -> None:
    won = Counter(winners([("a", 1.0), ("b", 2.0), ("c", 5.0)]).values())
    for name, share in (("a", 1 / 8), ("b", 2 / 8), ("c", 5 / 8)):
        assert won[name] / len(ITEMS) == pytest.approx(share, abs=4 * (share * (1 - share) / len(ITEMS)) ** 0.5)


def test_a_salt_gives_another_independent_assignment() -> None:
    one, two = winners(EVEN, salt=1), winners(EVEN, salt=2)
    agree = sum(one[item] == two[item] for item in ITEMS) / len(ITEMS)
    assert agree == pytest.approx(1 / 8, abs=0.025)


@given(st.permutations([("a", 0.5), ("b", 1.0), ("c", 2.0), ("d", 0.0), ("e", -1.0)]))
def test_the_ranking_ignores_the_order_and_leaves_out_weightless_ones(weights: list[tuple[str, float]]) -> None:
    ranked = rendezvous_order("item", weights)
    assert ranked == rendezvous_order("item", sorted(weights))
    assert sorted(ranked) == ["a", "b", "c"]


def test_no_candidates_rank_as_nothing() -> None:
    assert rendezvous_order("item", []) == []


def test_split_fractions_are_uniform_and_stay_when_rows_are_added() -> None:
    values = sorted(split_fraction(item, "held-out") for item in ITEMS)
    assert 0 < values[0] < values[-1] < 1
    assert max(abs(v - i / len(values)) for i, v in enumerate(values)) < 0.03
    assert split_fraction("item-1", "held-out") != split_fraction("item-1", "train")
