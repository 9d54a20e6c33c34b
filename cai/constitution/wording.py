"""Similarity and contradiction of short English texts, from term statistics and word lists.

No model is used, so linting is fast and deterministic. Principles that say the same in different words are not detected; this keeps
false alarms rare.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SENTENCE_END = re.compile(r"(?:(?<=[.!?;])|(?<=[.!?;][\"'”’)]))\s+")

FUNCTION_WORDS = frozenset(
    """a about all also always an and any anyone anything are as at be been being both but by can could did do does each either even
    ever every everyone everything for from had has have how if in into is it its itself just may might more most much must of
    on one only or other our out over own shall should so some someone something such than that the their them themselves then
    there these they this those to too up use very was way ways were what when where whether which while who whose will with
    would you your yours""".split()
)
"""Stop words. Negations are not included, because `claim` uses them."""

_ABOUT_THE_TASK = frozenset(
    "response responses reply replies assistant assistant's model user user's users last preceding previous please make sure".split()
)
"""Words that nearly every principle contains."""

_NEGATORS = frozenset("no not never none nor neither nobody nothing without cannot don't doesn't didn't isn't aren't can't won't".split())
_AVOIDERS = (
    "fail to",
    "fails to",
    "failing to",
    "failed to",
    "leave out",
    "leaves out",
    "left out",
    "leaving out",
    "keep out",
    "hold back",
    "free of",
    "free from",
    "refrain from",
)
_AVOIDER_WORDS = frozenset(
    """avoid avoids avoiding omit omits omitting exclude excludes excluding withhold withholds withholding refrain refrains lack lacks
    forbid forbids prohibit prohibits""".split()
)
_INCLUDERS = frozenset(
    "include includes including contain contains containing give gives giving provide provides providing add adds".split()
)
"""Verbs that only state presence. They are ignored as content; "free of" is their opposite."""

_OPPOSITES = {
    "comply": ("answer comply accept fulfil fulfill help assist", "refuse decline deny reject"),
    "brevity": ("short brief concise shorter", "long lengthy detailed longer"),
    "amount": ("more", "less fewer"),
    "formality": ("formal", "informal casual"),
    "agreement": ("agree", "disagree"),
    "encouragement": ("encourage promote", "discourage"),
    "disclosure": ("reveal disclose share show expose", "hide conceal"),
    "permission": ("allow permit", "disallow"),
    "simplicity": ("simple plain", "technical complicated"),
    "increase": ("increase raise", "decrease reduce lower"),
    "order": ("before", "after"),
    "beginning": ("start begin open", "end close finish"),
    "trust": ("trust believe", "distrust doubt suspect"),
    "certainty": ("certain sure confident", "uncertain unsure"),
    "honesty": ("honest truthful", "dishonest untruthful"),
    "respect": ("polite respectful", "rude disrespectful"),
    "safety": ("safe harmless", "unsafe harmful"),
}
_CONDITIONS = frozenset("unless except if when where while until only but instead rather".split())
_SUBORDINATORS = frozenset("unless if when where while until".split())
_WITHOUT_CONTENT = (FUNCTION_WORDS - {"more"}) | _NEGATORS | _AVOIDER_WORDS | _INCLUDERS | _ABOUT_THE_TASK | _CONDITIONS


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, with ASCII apostrophes."""
    return _WORD.findall(text.lower().replace("’", "'"))


def sentences(text: str) -> list[str]:
    """Split a text into sentences; a semicolon also ends a sentence."""
    return [s for s in _SENTENCE_END.split(text.strip()) if s]


def stem(word: str) -> str:
    """Remove the commonest English ending of a word, so that `refuses` matches `refusing`.

    >>> stem("refuses") == stem("refusing") == stem("refuse")
    True
    """
    for ending in ("'s", "ations", "ation", "ings", "ing", "ies", "ied", "edly", "ed", "es", "s", "ly", "e", "y"):
        if word.endswith(ending) and not (ending == "s" and word.endswith("ss")) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] in "bdgmnprt" else word


_SIDE_OF = {
    stem(word): (f"<{name}>", sign)
    for name, sides in _OPPOSITES.items()
    for side, sign in zip(sides, (1, -1), strict=True)
    for word in side.split()
}


def vectors(texts: Sequence[str]) -> list[dict[str, float]]:
    """Return unit TF-IDF vectors over the character 3- and 4-grams of each text's content words.

    Character n-grams match `invent`, `invents` and `invented`. The document frequencies are computed over the given texts.
    """
    counts = []
    for text in texts:
        content = [w for w in words(text) if w not in FUNCTION_WORDS and w not in _ABOUT_THE_TASK] or words(text)
        counts.append(Counter(f" {w} "[i : i + n] for w in content for n in (3, 4) for i in range(len(w) + 3 - n)))
    frequency = Counter(piece for c in counts for piece in c)
    result = []
    for c in counts:
        v = {piece: (1 + math.log(k)) * (1 + math.log((1 + len(texts)) / (1 + frequency[piece]))) for piece, k in c.items()}
        norm = math.sqrt(sum(x * x for x in v.values())) or 1.0
        result.append({piece: x / norm for piece, x in v.items()})
    return result


def cosine(a: dict[str, float], b: dict[str, float]) -> float:
    """Return the cosine similarity of two unit vectors, in [0, 1]; 1 means identical."""
    if len(a) > len(b):
        a, b = b, a
    return min(1.0, sum(x * b[piece] for piece, x in a.items() if piece in b))


MOST_GENERAL = 2
"""Number of content words up to which a prohibition counts as general."""


@dataclass(frozen=True)
class Claim:
    """Topic of one sentence, and whether the sentence is for or against it."""

    content: frozenset[str]
    """Stems of the content words; two antonyms have the same stem."""
    sign: int
    """+1 or −1: the product of the signs of negation, avoidance ("leave out", "free of") and antonyms."""
    conditional: bool
    head: str = ""
    """The first content word, which in a request is its verb or the thing asked for."""

    def alike(self, other: "Claim") -> bool:
        """Return whether both have the same topic: one word set contains the other, and they share at least 4 in 5 words."""
        shared = len(self.content & other.content)
        return shared > 0 and shared == min(len(self.content), len(other.content)) and shared >= 0.8 * len(self.content | other.content)


def is_negated(sentence: str) -> bool:
    """Return whether the number of different negations and avoidances is odd.

    >>> is_negated("Use words that a person without training understands."), is_negated("No steps, no amounts.")
    (True, True)
    >>> is_negated("Does it use words that a person without training would not understand?")
    False
    """
    return len({w for w in _folded(sentence) if w in _NEGATORS or w in _AVOIDER_WORDS}) % 2 == 1


def _folded(sentence: str) -> list[str]:
    """Return the words of a sentence, with "avoid" for every phrase that means it."""
    padded = f" {' '.join(words(sentence))} "
    for phrase in _AVOIDERS:
        padded = padded.replace(f" {phrase} ", " avoid ")
    return padded.split()


def claim(sentence: str) -> Claim:
    """Parse one English sentence or question as a claim.

    Each kind of negation counts once, even if repeated ("no ingredients, no steps"). Two kinds cancel ("do not leave out"). Both sides of
    an antonym pair in one sentence ("too long or too short") cancel too, except that "refuse to answer" counts as refusing.
    """
    sign = 1
    found = _folded(sentence)
    begins = next((i for i, w in enumerate(found) if w in _SUBORDINATORS), len(found))
    if any(w in _NEGATORS for w in (found[:begins] if begins else found)):  # "where none are known" negates nothing before it
        sign = -sign
    if any(w in _AVOIDER_WORDS for w in found):
        sign = -sign
    sides: dict[str, set[int]] = {}
    content = set()
    head = ""
    for word in found:
        if word in _WITHOUT_CONTENT:
            continue
        folded, side = _SIDE_OF.get(stem(word), (stem(word), 0))
        content.add(folded)
        head = head or folded
        if side:
            sides.setdefault(folded, set()).add(side)
    for folded, stood in sides.items():
        if stood == {-1} or (folded == "<comply>" and -1 in stood):
            sign = -sign
    return Claim(frozenset(content), sign, any(w in _CONDITIONS for w in found), head)


def opposed(a: Claim, b: Claim) -> bool:
    """Return whether two claims about the same topic contradict each other. If only one has a condition, they do not.

    A general prohibition contradicts a special request ("Do not lecture." and "Lecture about morals."). A special prohibition does not
    contradict a general request: it may be an exception ("Give advice." and "Give no advice on weapons.").
    """
    return a.sign != b.sign and a.conditional == b.conditional and (a.alike(b) or forbids(a, b) or forbids(b, a))


def forbids(a: Claim, b: Claim) -> bool:
    """Return whether `a` is a general prohibition without a condition, and `b` asks for a special case of what it prohibits."""
    general = a.sign < 0 < b.sign and not a.conditional and 0 < len(a.content) <= MOST_GENERAL
    return general and a.head == b.head and a.content <= b.content


def leans_against(a: Claim, b: Claim) -> bool:
    """Return whether two claims have opposite signs and begin with the same word, or share at least half of the shorter one's words."""
    shared = len(a.content & b.content)
    return a.sign != b.sign and shared > 0 and (a.head == b.head or shared >= 0.5 * min(len(a.content), len(b.content)))
