"""Whom to ask about next: the most telling first, prompts in turn."""

from cai.data.filters import texts_key
from cai.labels.queue import Queued, choose_pairs
from cai.records import Message, Prompt, Provenance, ResponsePair

LONG = "Please tell me in a few words how the lock on my old garden door can be opened without its key"


def queued(prompt: str, a: str, score: float, b: str = "other") -> Queued:
    return Queued(
        ResponsePair(Prompt(f"id-{prompt}", "other", (Message("user", prompt),), "s"), a, b, "sampled", Provenance("m")), score, ""
    )


def names(chosen: list[Queued]) -> list[str]:
    return [c.pair.response_a for c in chosen]


def test_every_prompt_has_its_turn_before_any_has_a_second() -> None:
    candidates = [queued("p", "p1", 0.9), queued("p", "p2", 0.8), queued("p", "p3", 0.7), queued("q", "q1", 0.2), queued("r", "r1", 0.5)]
    assert names(choose_pairs(candidates, 10)) == ["p1", "r1", "q1", "p2", "p3"]
    assert names(choose_pairs(candidates[::-1], 3)) == ["p1", "r1", "q1"]


def test_prompts_that_nearly_repeat_one_another_share_a_turn() -> None:
    candidates = [queued(LONG, "a", 0.9), queued(f"{LONG} please", "b", 0.8), queued("Something else entirely", "c", 0.1)]
    assert names(choose_pairs(candidates, 2)) == ["a", "c"]


def test_what_people_labelled_is_not_asked_again_and_no_pair_twice() -> None:
    one = queued("p", "p1", 0.9)
    done = frozenset({texts_key(one.pair.prompt, "other", "P1 ")})
    assert names(choose_pairs([one, queued("q", "q1", 0.1)], 5, done)) == ["q1"]
    assert names(choose_pairs([queued("p", "x", 0.3), queued("p", "other", 0.4, b="X")], 5)) == ["other"]
