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
        "you with are this be i as not have can on or what how if do your was will an would could should may might them then than "
        "these those into about out up more most one first also just very here yes please sorry use make get go need want know take "
        "help good time way people other only over after before because while who where why each both its our us him were been being "
        "does did s t don ll re ve isn doesn didn wasn won couldn wouldn",
        "es": "el la los las de que y en un una es no se con por para lo su del al más como pero sus le está puedo esto eso tu si",
        "fr": "j d l n qu ai le la les de des du et est un une je ne pas que qui dans pour vous ce il elle sur avec plus au aux mais "
        "sont cela en se ou",
        "de": "der die das und ist ich nicht zu den mit von für auf ein eine es sie dem des im sich auch wie kann dass bei als wir "
        "dabei in man einen einem einer eines aus vom zum zur nach vor über unter durch ohne bis gegen ihr ihm ihn dich mich "
        "mir dir uns sind hat haben habe wird werden wurde kannst können muss soll sollte oder aber wenn dann weil denn noch "
        "nur schon sehr mehr diese dieser dieses kein keine keinen wer hier ja nein etwa",
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
        "hr": "i u je da se na za ne mogu su od što kao ali sam to s o bih biti koji nije ili vam mi ti",
        "sl": "in je da se na za ne v so od kot ali sem to s o bi ki ni lahko z pa vam",
        "sk": "a sa na je to že v s o ale ako z pre by nie som sú tak alebo môžem vám",
        "lt": "ir yra kad su į iš ne aš tai bet kaip už ar negaliu jums man apie nuo šį šis",
        "lv": "un ir ka ar uz no ne es tas bet kā par vai nevaru jums man tā šo to ļoti",
        "et": "ja on ei et see ma kuid või kui ka ta ole olen mis oma saa seda teid",
        "eu": "eta da ez du bat dut naiz dira baina egin hau ezin dago honekin hori zaitut",
        "cy": "y yn i a o ar mae ni gyda am fod wedi eich fi gallaf helpu hynny yr chi",
        "ga": "agus an na ar is i le ní go sé seo tá mé don leis chun",
        "sw": "na ya wa kwa ni katika la si za hii hiyo lakini siwezi kuwa yako kama hilo kukusaidia",
        "tl": "ang ng sa na ay mga at hindi ko ito ako para po iyon kita kung niyan diyan",
        "ca": "el la els les de que i en un una és no es amb per al del dels puc però ho aquest això us et",
        "gl": "o a os as de que e é un unha non para con por do da no na máis como pero che",
        "is": "og að er í á það ekki ég sem með af til fyrir en við þú get þér",
        "sq": "dhe të në e i një për nuk që me është ka nga si por mund unë kjo",
        "af": "die en is nie het ek jy van te dat om vir met op kan aan ook wat",
        "ms": "yang dan di tidak ini itu untuk dengan saya boleh anda adalah kepada ialah atau",
        "no": "og er på i det jeg ikke av til kan om den du så men med har fra som deg for en et",
        "az": "və bir bu üçün deyil mən də ilə sizə bilmərəm edə",
        "eo": "la kaj de en ne mi estas por kun ke al vi tio povas",
        "mt": "u li ta il fil ma hija huwa għal biex nista dan",
        "hi": "hai hain ka ki ke ko se mein nahi main aap yeh aur kar sakta sakti mujhe aapki hoon",
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
_ARABIC_SCRIPT = {
    "ps": re.compile("[ښځڅږڼټډړېۍ]"),
    "ckb": re.compile("[ڕڵۆێ]"),
    "sd": re.compile("[ڄڃڇڏڍڪڻ]"),
    "ur": re.compile("[ٹڈڑںےھہ]"),
    "fa": re.compile("[پچژگکی]"),
}
"""Letters that Arabic doesn't have, by language; the first that has one of a text's letters is its language."""
MIN_LETTERS = 2
SAMPLE_CHARACTERS = 2000


def language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; None if it can't be told.

    >>> language("I can't help with that."), language("对不起，我不能帮助您。"), language("Je ne peux pas vous aider."), language("42")
    ('en', 'zh', 'fr', None)
    """
    found = candidates(text)
    return next(iter(found)) if len(found) == 1 else None


def candidates(text: str) -> frozenset[str]:
    """Return the codes of the languages that fit a text best; several if function words don't decide, none if there are none.

    >>> sorted(candidates("Jeg kan ikke hjelpe deg med det")), candidates("Paris")
    (['no'], frozenset())
    """
    return evidence(text)[0]


@lru_cache(maxsize=4096)
def evidence(text: str) -> tuple[frozenset[str], int]:
    """Return `candidates`, and how many words or, in scripts of one language, letters speak for them."""
    sample = text[:SAMPLE_CHARACTERS].lower()
    counts = Counter(m.lastgroup for m in _SCRIPT.finditer(sample))
    if not counts:
        return frozenset(), 0
    japanese = counts["ja"]
    if japanese and japanese >= 0.1 * (japanese + counts["zh"]):  # Japanese is written in kana and Han
        counts["ja"] += counts.pop("zh", 0)
    script, letters = counts.most_common(1)[0]
    if letters < MIN_LETTERS or script is None:
        return frozenset(), 0
    if script in _WORDS:
        return _by_function_words(sample, script)
    if script == "ar":
        script = next((code for code, own in _ARABIC_SCRIPT.items() if own.search(sample)), "ar")
    return frozenset({script}), letters


def _by_function_words(text: str, script: str) -> tuple[frozenset[str], int]:
    """Return the languages with the most function words in a text, and how many; none if it has none."""
    found = Counter(word for w in words(text.replace("’", "'")) for word in re.findall(r"[^\W\d_]+", w))
    score = {code: sum(found[w] for w in known) for code, known in _WORDS[script].items()}
    most = max(score.values())
    return frozenset(code for code, n in score.items() if n == most) if most else frozenset(), most
