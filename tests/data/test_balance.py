"""What sources put into a mixture, and whether they pull in opposite directions."""

import pytest

from cai.data.balance import leaning, opposite_leanings, source_balance
from cai.records import Message, Preference, Prompt, Provenance

LONG, SHORT = "I can't help with that, and here is a long reason why not.", "Sure."


def preference(i: int, chosen: str, rejected: str, source: str, p: float = 1.0, weight: float = 1.0) -> Preference:
    prompt = Prompt(f"p{i}", "harmful", (Message("user", f"q{i}"),), "s")
    return Preference(prompt, chosen, rejected, p, weight, source, (), Provenance(""))


def test_each_source_shows_its_size_weight_and_lengths() -> None:
    train = [
        preference(1, LONG, SHORT, "ai:x", 0.75),
        preference(2, SHORT, LONG, "ai:x", 0.75),
        preference(3, "a", "bb", "human:f", 1.0, 2.0),
    ]
    ai, person = source_balance(train, [preference(4, LONG, SHORT, "ai:x", 0.75)])
    assert (ai.source, ai.train, ai.held_out, ai.mean_p_chosen, ai.weight_share) == ("ai:x", 2, 1, 0.75, 0.5)
    assert ai.lengths.chosen_longer_fraction == pytest.approx(2 / 3)
    assert (person.source, person.mean_weight, person.weight_share) == ("human:f", 2.0, 0.5)


@pytest.mark.parametrize(
    ("feature", "chosen", "rejected", "share"),
    [
        ("length", "two words", "one", 1.0),
        ("refusal", "Sure, here it is.", "I can't help with that.", 0.0),
        ("lists", "1. one\n2. two", "one, two", 1.0),
        ("markup", "**bold** claim", "bold claim", 1.0),
        ("questions", "Why?", "Because.", 1.0),
        ("first person", "You may.", "I think I may.", 0.0),
    ],
)
def test_features_count_what_they_say(feature: str, chosen: str, rejected: str, share: float) -> None:
    found = leaning(
        feature, [preference(1, chosen, rejected, "s"), preference(2, rejected, chosen, "s", p=0.2), preference(3, "x", "y", "s")]
    )
    assert found is not None and (found.more_chosen, found.n) == (share, 2)
    assert leaning(feature, [preference(3, "x", "y", "s")]) is None


def test_opposite_leanings_are_named_once_they_are_shown() -> None:
    def mixture(n: int) -> list[Preference]:
        people = [preference(i, SHORT, LONG, "human:f") for i in range(n)]
        return people + [preference(i, LONG, SHORT, "ai:x", 0.8) for i in range(n)]

    (warning, *others) = [w for w in opposite_leanings(source_balance(mixture(30), ())) if "the longer response" in w]
    assert "ai:x and human:f pull in opposite directions" in warning and "100%" in warning and "n = 30" in warning and others == []
    assert opposite_leanings(source_balance(mixture(3), ())) == []
    assert opposite_leanings(source_balance([p for p in mixture(30) if p.source == "ai:x"], ())) == []
