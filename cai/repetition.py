"""How much a text repeats itself, by its words alone: the commonest sign that a policy comes apart while its reward rises."""

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
