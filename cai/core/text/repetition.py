"""How much texts repeat themselves and each other, by their words alone: the commonest sign that a policy comes apart."""

from collections.abc import Sequence

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


def distinct_fraction(texts: Sequence[str]) -> float:
    """Return the share of the two-word runs of some texts that are different ones: 1 where none comes twice, towards 0 for one text again
    and again.

    Distinct-2 of Li et al. 2016 (arXiv 1510.03055) over all texts, with a text's start and end as words of their own, so that empty
    texts and those of one word count too; case is ignored. 0 where there is no text.

    >>> distinct_fraction(["Yes", "yes"])  # start-yes, yes-end, and again
    0.5
    """
    runs = [run for text in texts for words in [text.lower().split()] for run in zip(["", *words], [*words, ""], strict=True)]
    return len(set(runs)) / len(runs) if runs else 0.0
