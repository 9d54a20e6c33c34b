"""Lengths of responses compared with the base model's, and the rates of truncated and of looping ones.

Check these first when a win rate rises: looping is the most common way in which a small policy collapses while its reward rises.
"""

import random

from cai.core.text.repetition import LOOPING, repeated_fraction
from cai.core.text.words import word_count
from cai.errors import DataError
from cai.evaluate.paired import AnswersByPrompt, rate, rate_and_change, shared_ids, unpaired_note
from cai.ids import derive_seed
from cai.records import EvalResult
from cai.stats import paired_bootstrap

_RESAMPLES = 2000


def length_stats(model: str, answers: AnswersByPrompt, base: AnswersByPrompt | None = None, seed: int = 0) -> list[EvalResult]:
    """Return mean words (`response_words`), the truncation rate (`truncated`) and the ratio of mean words to base (`response_words_ratio`).

    Args:
        answers: its responses. Words are separated by white space.
    """
    if not answers:
        raise DataError(f"{model} has no responses to evaluate")
    words = {i: float(word_count(r.text)) for i, r in answers.items()}
    mean, low, high = paired_bootstrap(list(words.values()), seed)
    results = [EvalResult("response_words", model, mean, len(words), low, high)]
    results.append(rate("truncated", model, [r.truncated for r in answers.values()]))
    if base is not None:
        base_words = {i: float(word_count(r.text)) for i, r in base.items()}
        ids = shared_ids(base_words, words)
        if sum(base_words[i] for i in ids) > 0:
            ratio, low, high = ratio_of_means([words[i] for i in ids], [base_words[i] for i in ids], seed)
            results.append(EvalResult("response_words_ratio", model, ratio, len(ids), low, high, unpaired_note(base_words, words)))
    return results


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


def ratio_of_means(numerators: list[float], denominators: list[float], seed: int) -> tuple[float, float, float]:
    """Return the ratio of two means over the same items, with a 95 % percentile bootstrap interval over items.

    Args:
        numerators: one per item, at least 0.
        denominators: one per item, in the same order; their sum is above 0.

    Returns:
        The ratio, its lower and its upper bound. Resamples with a zero denominator are drawn again.
    """
    generator = random.Random(derive_seed(seed, "ratio_of_means"))
    items = list(zip(numerators, denominators, strict=True))
    ratios: list[float] = []
    while len(ratios) < _RESAMPLES:
        drawn = generator.choices(items, k=len(items))
        total = sum(d for _, d in drawn)
        if total > 0:
            ratios.append(sum(n for n, _ in drawn) / total)
    ratios.sort()
    return sum(numerators) / sum(denominators), ratios[int(0.025 * _RESAMPLES)], ratios[int(0.975 * _RESAMPLES)]
