"""Pairs to label, and raters who answer, for the tests in this folder."""

from cai.records import Message, Prompt, Provenance, ResponsePair
from cai.studio.labelling import Labelling, Queue, as_shown

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def pair(number: int, a: str = "", b: str = "") -> ResponsePair:
    prompt = Prompt(f"p{number}", "helpful", (Message("user", f"Question {number}?"),), "secret-source", "secret-category")
    by = Provenance("secret-model", ("secret-principle",))
    return ResponsePair(prompt, a or f"First answer to {number}.", b or f"Second answer to {number}.", "contrast", by, 0.875)


def answer_all(labelling: Labelling, queue: Queue, rater: str, text: str) -> int:
    """Choose the side whose text begins so, until all is done."""
    count = 0
    while (turn := labelling.turn(queue, rater)).pair is not None:
        assert turn.key is not None
        assert labelling.answer(queue, rater, turn.key, "a" if turn.pair.response_a.startswith(text) else "b")
        count += 1
    return count


def label(labelling: Labelling, queue: Queue, rater: str, first: int) -> None:
    """Label the first ten pairs: the "First answer" on the first few of them, the "Second answer" on the others."""
    for i, (key, one) in enumerate(list(labelling.to_label(queue).pairs.items())[:10]):
        shown = as_shown(one, key, rater)
        wanted = "First" if i < first else "Second"
        labelling.answer(queue, rater, key, "a" if shown.response_a.startswith(wanted) else "b")
