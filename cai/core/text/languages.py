"""The language of a text, by its script and, in the Latin and Cyrillic scripts, by its commonest function words.

It decides which rules may read a text, so it would rather answer None than guess. Short texts without function words have no language.
"""

import re
from collections import Counter
from functools import lru_cache

from cai.core.text.words import words

_SCRIPTS: tuple[tuple[str, str], ...] = (
    ("ja", "\u3041-\u30fa\u31f0-\u31ff\uff66-\uff9f"),
    ("zh", "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"),
    ("ko", "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"),
    ("th", "\u0e01-\u0e4e"),
    ("lo", "\u0e81-\u0edf"),
    ("km", "\u1780-\u17d3"),
    ("my", "\u1000-\u109f\ua9e0-\ua9fe\uaa60-\uaa7f"),
    ("bo", "\u0f40-\u0fbc"),
    ("ar", "\u0620-\u064a\u066e-\u06d3\u06fa-\u06ff"),
    ("he", "\u05d0-\u05ea"),
    ("hi", "\u0900-\u0963"),
    ("bn", "\u0980-\u09e3"),
    ("pa", "\u0a01-\u0a74"),
    ("gu", "\u0a81-\u0ae3"),
    ("ta", "\u0b82-\u0bd7"),
    ("te", "\u0c00-\u0c63"),
    ("kn", "\u0c80-\u0ce3"),
    ("ml", "\u0d00-\u0d63"),
    ("si", "\u0d81-\u0df3"),
    ("ka", "\u10a0-\u10ff"),
    ("am", "\u1200-\u137f"),
    ("hy", "\u0531-\u0587"),
    ("el", "\u0370-\u03ff\u1f00-\u1fff"),
    ("cyrillic", "\u0400-\u052f"),
    ("latin", "a-z\u00aa\u00ba\u00df-\u024f\u1e00-\u1eff"),
)
_SCRIPT = re.compile("|".join(f"(?P<{name}>[{chars}])" for name, chars in _SCRIPTS))
_FUNCTION_WORDS: dict[str, dict[str, str]] = {
    "latin": {
        "en": "a the of and to in is at by from but we he she they no so my me when all any some there which their has had that it for "
        "you with are this be i as not have can on or what how if do your was will an",
        "es": "el la los las de que y en un una es no se con por para lo su del al más como pero sus le está puedo esto eso tu si",
        "fr": "le la les de des du et est un une je ne pas que qui dans pour vous ce il elle sur avec plus au aux mais sont cela en se ou",
        "de": "der die das und ist ich nicht zu den mit von für auf ein eine es sie dem des im sich auch wie kann dass bei als wir dabei",
        "it": "il lo la gli le di che e è un una non per con sono del della si come ma più nel alla questo posso mi ti anche",
        "pt": "o a os as de que e é um uma não para com por do da em no na se mais como mas eu você isso dos das posso seu está",
        "nl": "de het een en van ik niet is dat op te in met voor zijn je aan er maar om ook als dit kan die naar wij bij",
        "pl": "i w nie na się że z do jest to jak o ale po co tak za od czy mogę jestem by dla przez",
        "sv": "och att det i på är som en för jag inte med har av till kan om den ett du så men",
        "da": "og at det i på er som en for jeg ikke med har af til kan om den et du så men",
        "fi": "ja on ei että se en voi mutta ovat myös olen tämä kuin tai joka niin ole sen",
        "tr": "bir ve bu için ile de da çok ne ama daha gibi değil ben olarak var olan mi en",
        "vi": "là và của không có tôi cho được các một này trong với những người bạn thể để đã",
        "id": "yang dan di tidak ini itu untuk dengan saya dari dalam adalah bisa pada ke anda akan atau",
        "cs": "a se na je to že v s o ale jako z pro by jsem není jsou tak nebo mohu",
        "ro": "și de la nu în că este un o pe cu mai din pentru sunt care să ce pot",
        "hu": "a az és nem hogy egy is van ez meg de csak mint vagy nem tudok",
    },
    "cyrillic": {
        "ru": "и в не на что с я это как по но к у из за от для вы мы его она они так же быть могу",
        "uk": "і в не на що з я це як до у та за від для ви ми його вона вони так але можу є",
        "bg": "и в не на че с аз това как по но за от са се да е ще или мога",
        "sr": "и у не на да се је то као за од са су али или могу",
    },
}
_WORDS = {script: {code: frozenset(text.split()) for code, text in by.items()} for script, by in _FUNCTION_WORDS.items()}
_PERSIAN, _URDU = re.compile("[پچژگ]"), re.compile("[ٹڈڑںےھہ]")
MIN_LETTERS = 2
SAMPLE_CHARACTERS = 2000


def language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; None if it can't be told.

    >>> language("I can't help with that."), language("对不起，我不能帮助您。"), language("Je ne peux pas vous aider."), language("42")
    ('en', 'zh', 'fr', None)
    """
    found = candidates(text)
    return next(iter(found)) if len(found) == 1 else None


@lru_cache(maxsize=4096)
def candidates(text: str) -> frozenset[str]:
    """Return the codes of the languages that fit a text best; several if function words don't decide, none if there are none.

    >>> sorted(candidates("Jeg kan ikke hjelpe deg med det")), candidates("Paris")
    (['da'], frozenset())
    """
    sample = text[:SAMPLE_CHARACTERS].lower()
    counts = Counter(m.lastgroup for m in _SCRIPT.finditer(sample))
    if not counts:
        return frozenset()
    japanese = counts["ja"]
    if japanese and japanese >= 0.1 * (japanese + counts["zh"]):  # Japanese is written in kana and Han
        counts["ja"] += counts.pop("zh", 0)
    script, letters = counts.most_common(1)[0]
    if letters < MIN_LETTERS or script is None:
        return frozenset()
    if script in _WORDS:
        return _by_function_words(sample, script)
    if script == "ar":
        return frozenset({"ur" if _URDU.search(sample) else "fa" if _PERSIAN.search(sample) else "ar"})
    return frozenset({script})


def _by_function_words(text: str, script: str) -> frozenset[str]:
    """Return the languages with the most function words in a text; none if it has none."""
    found = Counter(word for w in words(text.replace("’", "'")) for word in re.findall(r"[^\W\d_]+", w))
    score = {code: sum(found[w] for w in known) for code, known in _WORDS[script].items()}
    most = max(score.values())
    return frozenset(code for code, n in score.items() if n == most) if most else frozenset()
