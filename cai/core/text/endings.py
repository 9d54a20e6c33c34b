"""Trim completions that hit the token limit to their last whole sentence or line.

A policy trained on cut-off sentences learns to stop in mid-sentence, and a judge can see which text was cut.
"""

import re

_CLOSING = r"(?:[ \u00a0\u202f]?»|[\"'”’“‘)\]*_」』》〉）】〕])*"
_SENTENCE_END = re.compile(
    rf"(?<![0-9\s])[.!?…]{_CLOSING}(?=\s|$)|(?<=[0-9]{{2}})[.!?](?=\s|$)"
    rf"|(?<=[\w»])[ \u00a0\u202f][!?]{_CLOSING}(?=\s|$)"  # French puts a space before them
    rf"|(?<=[\u0370-\u03ff\u1f00-\u1fff]);{_CLOSING}(?=\s|$)"  # the Greek question mark
    rf"|[。！？｡．‼⁇⁈⁉؟۔।॥။።։។៕༎།](?![」』]+と){_CLOSING}"  # from Chinese, Japanese, Arabic, Urdu, Hindi to Tibetan
    r"|(?<=[\u0e01-\u0e4f\u0e81-\u0ecf])(?=\s)"  # Thai and Lao mark the end of a sentence by a space only
)
_MONTHS = "Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
_ABBREVIATION = re.compile(
    r"(?<!\w)(?:(?:e\.\s?g|i\.\s?e|vs|Mr|Mrs|Ms|Dr|Prof"  # English
    r"|z\.\s?[BT]|d\.\s?h|u\.\s?a|bzw|ca|vgl|evtl|ggf|inkl|Nr"  # German
    r"|Sra?|Srta|Dra|Uds?|p\.\s?ej|MM|p\.\s?ex|c\.-à-d|env|[Ss]ig|[Ss]ig\.ra|[Dd]ott|[Dd]ott\.ssa|p\.\s?es"  # Spanish, French, Italian
    r"|[Dd]hr|[Mm]evr|[Mm]w|[Bb]ijv|o\.\s?a|d\.\s?w\.\s?z|[Nn]p|tzn|tzw|[Öö]rn"  # Dutch, Polish, Turkish
    r"|напр|ул|см|стр|т\.\s?[ек]|т(?=\.\s?[дп]\.)|г(?=\.\s[а-я]))\."  # Russian
    rf"|M\.(?=\s[A-ZÀ-Ý])|No\.(?=\s?\d)|\d{{1,2}}\.(?=\s(?:Jahrhundert|{_MONTHS})\b)"
    r"|(?:[A-ZÄÖÜÉА-Я]\.\s?){2,}(?=\s?[\w])|EE\.\s?UU\.(?=\s\w))"  # initials
)
"""Abbreviations that another word follows. Those that may end a sentence ("etc.", "usw.") are left out."""
_DANGLING = re.compile(r"(?:^|\n)[ \t]*(?:[-*•#]+|\d{1,2}[.)])[ \t]*$|(?:^|\n)[^\n]*:[*_ \t]*$")
_END_TOKEN = re.compile(
    r"(?<=[^\s`'\"“‘(\[:,])\n*(?:<\|(?:im_end|eot_id|eom_id|eot|end|endoftext|end_of_text|end_of_turn|return)\|>|</s>|<end_of_turn>|<turn\|>"
    r"|<｜end▁of▁sentence｜>)+\s*\Z"
)


def without_end_token(text: str) -> str:
    """Return a text without the token that ended the model's turn, which some servers leave in it. One that the text speaks of stays.

    >>> without_end_token("Boil it twice.<|im_end|>"), without_end_token("ChatML ends with <|im_end|>")
    ('Boil it twice.', 'ChatML ends with <|im_end|>')
    """
    return _END_TOKEN.sub("", text)


def whole_sentences(text: str) -> str | None:
    r"""Trim a cut-off text to its last whole sentence or line; return None if less than half of it would remain.

    >>> whole_sentences("Tides follow the moon. They rise twi")
    'Tides follow the moon.'
    >>> whole_sentences("1. Wash the rice twice\n2. Soak it\n3. Bo")
    '1. Wash the rice twice\n2. Soak it'
    >>> whole_sentences("A sentence that was going to be much longer but") is None
    True
    """
    text = text.rstrip()
    sentence = max(_ends(text), default=0)
    kept = text[: max(sentence, text.rfind("\n"))].rstrip()
    while dangling := _DANGLING.search(kept):
        kept = kept[: dangling.start()].rstrip()
    return kept if 2 * len(kept) >= len(text) and kept else None


def sentence_count(text: str) -> int:
    """Return the number of sentences in a text; an ending without a full stop counts too.

    >>> sentence_count("Stop. Look! Then go"), sentence_count("Ask Dr. Mayer, e.g. by mail."), sentence_count("")
    (3, 1, 0)
    """
    text = text.strip()
    ends = _ends(text)
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def _ends(text: str) -> list[int]:
    """Return where the sentences of a text end; the stops of `_ABBREVIATION` end none."""
    within = {i for m in _ABBREVIATION.finditer(text) for i in range(m.start(), m.end())}
    return [m.end() for m in _SENTENCE_END.finditer(text) if m.start() not in within]
