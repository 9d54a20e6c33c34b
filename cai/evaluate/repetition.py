"""Repetition in responses. Looping is the most common way in which a small policy collapses while its reward rises."""

from cai.core.text.repetition import LOOPING, repeated_fraction
from cai.evaluate.paired import AnswersByPrompt, rate_and_change
from cai.records import EvalResult
from cai.stats import paired_bootstrap


def repetition(model: str, answers: AnswersByPrompt, base: AnswersByPrompt | None = None, seed: int = 0) -> list[EvalResult]:
    """Return the mean fraction of repeated n-grams (`repetition`), the rate of looping responses (`looping`) and its change from `base`."""
    if not answers:
        return []
    repeated = {i: repeated_fraction(r.text) for i, r in answers.items()}
    mean, low, high = paired_bootstrap(list(repeated.values()), seed)
    results = [EvalResult("repetition", model, mean, len(repeated), low, high)]
    loops = {i: x > LOOPING for i, x in repeated.items()}
    base_loops = None if base is None else {i: repeated_fraction(r.text) > LOOPING for i, r in base.items()}
    return results + rate_and_change("looping", model, loops, base_loops, f"more than {LOOPING:.0%} of four-word runs are repeats")
