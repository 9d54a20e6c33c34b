"""Words of a text in any script: separated by spaces, or character by character where a script has no spaces between words.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan are read by character, with the marks that belong to it. A character is less than a
word, so lengths compare answers in one script, not across scripts. Korean, Arabic, Hindi and others put spaces between words.

A loop without spaces ("no,no,no", "😂😂😂", unspaced Korean) has many words all the same: an emoji is a word, a comma before a letter ends
one, and a run that is longer than the limits below is read by its marks, and then by character.
"""

import re
import unicodedata

_UNSPACED = (
    (0x0E01, 0x0E4E),  # Thai
    (0x0E81, 0x0ECD),  # Lao
    (0x0EDC, 0x0EDF),
    (0x0F40, 0x0FBC),  # Tibetan
    (0x1000, 0x1049),  # Burmese
    (0x1050, 0x109F),
    (0x1780, 0x17D3),  # Khmer
    (0x3005, 0x3007),  # Japanese and Chinese: repetition marks, kana, Han
    (0x3031, 0x3035),
    (0x3041, 0x30FA),
    (0x30FC, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FE),  # Burmese, extended
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # half-width kana
    (0x20000, 0x3FFFD),
)
_PUNCTUATION = (
    r"\u104a-\u104f\u17d4-\u17dc\u0f00-\u0f3f\u3000-\u3004\u3008-\u3030\u303b-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_EMOJI = r"\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001faff"
_JOINED = r"[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff]"
"""What belongs to the emoji before it."""
LONGEST_HANGUL, LONGEST_WORD, LONGEST_MARKS = 10, 40, 120
"""Characters of the longest word with Korean letters, of any other, and of the longest rule or table line that is one word."""


def _class(ranges: tuple[tuple[int, int], ...]) -> str:
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges)


def _marks() -> str:
    """Return the marks that belong to the character before them, for a character class."""
    small = [chr(c) for low, high in _UNSPACED if high < 0x20000 for c in range(low, high + 1)]
    return "".join(c for c in small if unicodedata.category(c) in ("Mn", "Mc"))


UNSPACED = _class(_UNSPACED)
"""The characters that are words by themselves, for a character class in a pattern."""
_WORD = re.compile(rf"[{UNSPACED}][{_marks()}\ufe00-\ufe0f]*|[^\s{UNSPACED}{_PUNCTUATION}]+|[{_PUNCTUATION}]+")
_ONE = re.compile(f"[{UNSPACED}]")
_HANGUL_LETTERS = r"\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
_HANGUL = re.compile(f"[{_HANGUL_LETTERS}]")
_ONE_EMOJI = re.compile(f"[{_EMOJI}]")
_ENDS_WORD = ",;!…،؛，；！、"
_IN_LETTERS = rf"(?<=[^\W\d_])[{_ENDS_WORD}]+(?=[^\W\d_])"
_NO_SPACES = re.compile(f"[{_EMOJI}{_HANGUL_LETTERS}]")
_JOINS = re.compile(rf"[{_ENDS_WORD}](?=[^\W\d_])")
_PART = re.compile(rf"[{_EMOJI}]{_JOINED}*(?:\u200d[{_EMOJI}]{_JOINED}*)*|[^{_EMOJI}]+?(?:{_IN_LETTERS}|(?=[{_EMOJI}])|\Z)")
_UNIT = re.compile(r"\w+\W*|\W+")
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc\uff07\u00b4`", "''''''")
_ARABIC_MARKS = re.compile("[\u0640\u064b-\u065f\u0670]")
_ALIF = str.maketrans("أإآٱ", "اااا")


def unspaced(text: str) -> bool:
    """Return whether a text has characters of a script without spaces between words.

    >>> unspaced("我会帮助你。"), unspaced("I will help you.")
    (True, False)
    """
    return not text.isascii() and _ONE.search(text) is not None


def words(text: str) -> list[str]:
    """Return the words of a text: as `str.split` gives them, and every character of a script without spaces.

    >>> words("Yes, I will."), words("请用Python写。"), words("ได้ครับ")
    (['Yes,', 'I', 'will.'], ['请', '用', 'Python', '写'], ['ไ', 'ด้', 'ค', 'รั', 'บ'])
    >>> words("no,no,no 😂😂")
    ['no,', 'no,', 'no', '😂', '😂']
    """
    if unspaced(text):
        return [w for run in _WORD.findall(text) for w in _parts(run) if _says_something(w) or len(run) > LONGEST_MARKS]
    found = text.split()
    if max(map(len, found), default=0) > LONGEST_WORD or _JOINS.search(text) or (not text.isascii() and _NO_SPACES.search(text)):
        return [w for run in found for w in _parts(run)]
    return found


def _parts(run: str) -> list[str]:
    """Return the words of a run without spaces."""
    if run.isalnum() and len(run) <= LONGEST_HANGUL:
        return [run]
    parts = [part for one in _PART.findall(run) for part in ([one] if _fits(one) else _UNIT.findall(one))]
    return [piece for part in parts for piece in ([part] if _fits(part) else part)]


def _fits(part: str) -> bool:
    """Whether some characters are short enough to be one word."""
    if _HANGUL.search(part):
        return len(part) <= LONGEST_HANGUL
    return len(part) <= (LONGEST_WORD if any(c.isalnum() for c in part) else LONGEST_MARKS)


def _says_something(word: str) -> bool:
    return any(c.isalnum() for c in word) or _ONE_EMOJI.match(word) is not None


def word_count(text: str) -> int:
    """Return the number of `words` of a text."""
    return len(words(text))


def plain(text: str) -> str:
    """Normalise a text for word rules: lower case, ASCII apostrophes, single spaces, no leading quotes or markup.

    Arabic loses vowel marks and lengthening, and its alifs have one form.
    """
    text = _ARABIC_MARKS.sub("", text.translate(_APOSTROPHES)).translate(_ALIF)
    return " ".join(text.lower().split()).lstrip("\"'*_#“> ")


def mostly_unspaced(found: list[str]) -> bool:
    """Return whether most of some words are single characters of a script without spaces, or of Korean without any."""
    return 2 * sum(_ONE.match(w) is not None or (len(w) == 1 and _HANGUL.match(w) is not None) for w in found) > len(found)


def mentions(phrases: tuple[str, ...], text: str) -> bool:
    """Tell whether a text has one of some names or numbers as whole words.

    >>> mentions(("Au",), "It is Au."), mentions(("Au",), "An author"), mentions(("4",), "It's 42.")
    (True, False, False)
    """
    return any(re.search(rf"(?<![\w.,]){re.escape(p.lower())}(?!\w|[.,]\d)", text.lower()) for p in phrases)
