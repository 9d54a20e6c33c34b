"""Grouping by shared beginnings: the fewest tokens, every prompt once."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from cai.models.local import prefix
from cai.models.local.prefix import PASS_TOKENS, Group, share_prefixes, sub_batches

TEXT_A, TEXT_B = [1, 2] * 60, [1, 2] * 15 + [3, 4] * 50


def cost(groups: list[Group], prompts: list[list[int]]) -> int:
    return sum(g.length + sum(len(prompts[i]) - g.length for i in g.rows) for g in groups)


def test_questions_about_two_texts_make_two_groups() -> None:
    prompts = [[*text, q, 9] for q in range(10, 20) for text in (TEXT_A, TEXT_B)]
    groups = share_prefixes(prompts)
    assert sorted(g.length for g in groups) == [len(TEXT_A), len(TEXT_B)]
    assert {frozenset(g.rows) for g in groups} == {frozenset(range(0, 20, 2)), frozenset(range(1, 20, 2))}


def test_a_lone_prompt_joins_where_that_saves_most() -> None:
    prompts = [[*TEXT_A, 7], [*TEXT_A, 8], [*TEXT_B, 7]]
    assert sorted(g.rows for g in share_prefixes(prompts)) == [(0, 1), (2,)]
    assert [g.rows for g in share_prefixes([[*TEXT_A, 7], [*TEXT_B, 7]])] == [(0, 1)]


def test_equal_prompts_keep_a_token_each() -> None:
    (group,) = share_prefixes([TEXT_A, TEXT_A, TEXT_A])
    assert group == Group(len(TEXT_A) - 1, (0, 1, 2))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=8))
def test_every_prompt_once_and_never_dearer_than_alone(shapes: list[tuple[int, int, int]]) -> None:
    prompts = [[kind] * 20 + [8] * length + [end] for kind, length, end in shapes]
    groups = share_prefixes(prompts)
    assert sorted(i for g in groups for i in g.rows) == list(range(len(prompts)))
    for g in groups:
        assert g.length == 0 or g.length >= prefix.SHORTEST_SHARED_TOKENS
        assert len({tuple(prompts[i][: g.length]) for i in g.rows}) == 1
        assert all(len(prompts[i]) > g.length for i in g.rows)
    assert cost(groups, prompts) <= sum(map(len, prompts))
    one = prefix.common_prefix(min(prompts), max(prompts))
    if one >= prefix.SHORTEST_SHARED_TOKENS and all(len(p) > one for p in prompts):
        assert cost(groups, prompts) <= one + sum(len(p) - one for p in prompts)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_rows_are_cut_as_cheaply_as_any_cut_would(lengths: list[int]) -> None:
    budget = 60

    def cost_of(cuts: list[list[int]]) -> int:
        return sum(PASS_TOKENS + len(rows) * max(1, *(lengths[i] for i in rows), 1) for rows in cuts)

    cuts = sub_batches(lengths, budget)
    assert sorted(i for rows in cuts for i in rows) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * max(lengths[i] for i in rows) <= budget for rows in cuts)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for places in product((False, True), repeat=len(order) - 1):
        other = [[order[0]]]
        for i, cut in zip(order[1:], places, strict=True):
            if cut:
                other.append([])
            other[-1].append(i)
        if all(len(rows) == 1 or len(rows) * max(1, *(lengths[i] for i in rows)) <= budget for rows in other):
            assert cost_of(cuts) <= cost_of(other)
