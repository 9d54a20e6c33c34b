import pytest

from cai.data.filters import length_stats, normalise, prompt_key, split_by_prompt
from cai.data.splits import split_groups
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
    group_of = split_groups(p.prompt for p in rows)
    train, held_out = split_by_prompt(rows, 0.25, "s", group_of)
    assert 0.15 < len(held_out) / len(rows) < 0.35
    more_train, more_held_out = split_by_prompt(shouted + rows, 0.25, "s", group_of)
    assert set(train) <= set(more_train) and set(held_out) <= set(more_held_out)
    assert not {prompt_key(p.prompt) for p in more_train} & {prompt_key(p.prompt) for p in more_held_out}
    assert split_by_prompt(rows, 0.25, "t", group_of)[1] != held_out
    assert split_by_prompt(rows, 0.0, "s", group_of) == (rows, []) and split_by_prompt(rows, 1.0, "s", group_of) == ([], rows)


def test_length_statistics_count_equal_lengths_as_half() -> None:
    stats = length_stats(
        [preference("a", "xxxx", "x"), preference("b", "x", "xx"), preference("c", "xx", "yy"), preference("d", "xxx", "x")]
    )
    assert stats.mean_chosen_characters == pytest.approx(2.5)
    assert stats.mean_rejected_characters == pytest.approx(1.5)
    assert stats.chosen_longer_fraction == pytest.approx(2.5 / 4)
    assert length_stats([]).n == 0
