import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.data.filters import drop_near_duplicates, length_stats, normalise, prompt_key, shingles, split_by_prompt
from cai.records import Message, Preference, Prompt, Provenance


def preference(text: str, chosen: str = "yes", rejected: str = "no") -> Preference:
    prompt = Prompt(f"id-{text}", "other", (Message("user", text),), "s")
    return Preference(prompt, chosen, rejected, 1.0, 1.0, "human:x", (), Provenance(""))


def test_prompts_that_say_the_same_share_a_key_and_others_do_not() -> None:
    assert prompt_key(preference("What IS\n this?").prompt) == prompt_key(preference(" what is this? ").prompt)
    assert prompt_key(preference("3-2").prompt) != prompt_key(preference("3+2").prompt)
    assert normalise("\ufb01n\u00a0e") == "fin e"


def test_a_split_never_separates_one_prompt_and_never_moves_rows() -> None:
    rows = [preference(f"q{i}", chosen=f"c{j}") for i in range(200) for j in range(2)]
    shouted = [preference(f"  Q{i} ", chosen="other") for i in range(200)]
    train, held_out = split_by_prompt(rows, 0.25, "s")
    assert 0.15 < len(held_out) / len(rows) < 0.35
    more_train, more_held_out = split_by_prompt(shouted + rows, 0.25, "s")
    assert set(train) <= set(more_train) and set(held_out) <= set(more_held_out)
    assert not {prompt_key(p.prompt) for p in more_train} & {prompt_key(p.prompt) for p in more_held_out}
    assert split_by_prompt(rows, 0.25, "t")[1] != held_out
    assert split_by_prompt(rows, 0.0, "s") == (rows, []) and split_by_prompt(rows, 1.0, "s") == ([], rows)


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


def test_length_statistics_count_equal_lengths_as_half() -> None:
    stats = length_stats(
        [preference("a", "xxxx", "x"), preference("b", "x", "xx"), preference("c", "xx", "yy"), preference("d", "xxx", "x")]
    )
    assert stats.mean_chosen_characters == pytest.approx(2.5)
    assert stats.mean_rejected_characters == pytest.approx(1.5)
    assert stats.chosen_longer_fraction == pytest.approx(2.5 / 4)
    assert length_stats([]).n == 0
