"""Repetition within and between texts, by n-grams: the commonest sign of a collapsed policy."""

from collections.abc import Sequence

from cai.core.text.words import words

GRAM_WORDS = 4
LOOPING = 0.5
"""Share of repeated 4-grams above which a response counts as looping."""


def repeated_fraction(text: str) -> float:
    """Return the share of a text's 4-grams that are repeats: 0 if none repeats, close to 1 for a loop. Words are those of `words`.

    This is 1 minus distinct-4. Case is ignored. A text of fewer than five words gives 0.

    >>> repeated_fraction("a b c d a b c d")  # runs: abcd bcda cdab dabc abcd
    0.2
    """
    said = words(text.lower())
    grams = list(zip(*(said[i:] for i in range(GRAM_WORDS)), strict=False))
    return (len(grams) - len(set(grams))) / len(grams) if len(grams) > 1 else 0.0


def distinct_fraction(texts: Sequence[str]) -> float:
    """Return distinct-2 over all texts: the share of distinct bigrams. 1 if no bigram repeats, close to 0 for one text many times.

    Distinct-2 of Li et al. 2016 (arXiv 1510.03055), with start and end of a text as extra words, so that empty and one-word texts
    count. Case is ignored. 0 if there are no texts.

    >>> distinct_fraction(["Yes", "yes"])  # start-yes, yes-end, and again
    0.5
    """
    runs = [run for text in texts for said in [words(text.lower())] for run in zip(["", *said], [*said, ""], strict=True)]
    return len(set(runs)) / len(runs) if runs else 0.0
