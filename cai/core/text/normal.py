"""Texts as word rules read them."""

import re

_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc\uff07\u00b4`", "''''''")
_ARABIC = re.compile("[\u0640\u064b-\u065f\u0670]")
_ALIF = str.maketrans("أإآٱ", "اااا")


def plain(text: str) -> str:
    """Normalise a text for word rules: lower case, ASCII apostrophes, single spaces, no leading quotes or markup.

    Arabic loses vowel marks and lengthening, and its alifs have one form.
    """
    text = _ARABIC.sub("", text.translate(_APOSTROPHES)).translate(_ALIF)
    return " ".join(text.lower().split()).lstrip("\"'*_#“> ")
