"""Whether responses go round in circles: the commonest way for a small policy to come apart while its reward rises."""

from cai.evaluate.intervals import paired_bootstrap
from cai.evaluate.paired import AnswersByPrompt, change_result, rate, shared_ids, unpaired_note
from cai.records import EvalResult

GRAM_WORDS = 4
LOOPING = 0.5
"""A response loops where more than this share of its four-word runs are repeats."""


def repeated_fraction(text: str) -> float:
    """Return the share of a text's four-word runs that were there before: 0 where none repeats, towards 1 for a loop.

    One minus distinct-4; case is ignored, and a text of fewer than five words can't repeat.

    >>> repeated_fraction("a b c d a b c d")  # runs: abcd bcda cdab dabc abcd
    0.2
    """
    words = text.lower().split()
    grams = list(zip(*(words[i:] for i in range(GRAM_WORDS)), strict=False))
    return (len(grams) - len(set(grams))) / len(grams) if len(grams) > 1 else 0.0


def repetition(model: str, answers: AnswersByPrompt, base: AnswersByPrompt | None = None, seed: int = 0) -> list[EvalResult]:
    """Return the mean repeated share (`repetition`), the share of responses that loop (`looping`) and its change against `base`."""
    if not answers:
        return []
    repeated = {i: repeated_fraction(r.text) for i, r in answers.items()}
    mean, low, high = paired_bootstrap(list(repeated.values()), seed)
    results = [EvalResult("repetition", model, mean, len(repeated), low, high)]
    loops = {i: x > LOOPING for i, x in repeated.items()}
    results.append(rate("looping", model, list(loops.values()), f"more than {LOOPING:.0%} of four-word runs are repeats"))
    base_loops = {} if base is None else {i: repeated_fraction(r.text) > LOOPING for i, r in base.items()}
    ids = shared_ids(base_loops, loops)
    if ids:
        before, after = [base_loops[i] for i in ids], [loops[i] for i in ids]
        results.append(change_result("looping_change", model, before, after, unpaired_note(base_loops, loops)))
    return results
