"""Rules that drop revisions from the SFT data.

    empty              no text is left
    truncated          the revision hit the token limit before its middle
    leaked_meta        it describes the revision ("I have removed …") or writes other turns of the conversation
    repeated_critique  it repeats the critique
    repetitive         it loops
    refused_request    the model refused to revise
    over_refusal       it refuses a prompt that isn't harmful, and the response didn't
    breaks_check       it breaks the check of the principle that it was revised under, or too many checks (`min_share`)
    worse_by_check     it breaks that check, and the text before it didn't: that text is kept
    unchanged          it equals the response, or nearly so: the response is kept

A heading such as "Here is the revised response:" is removed first, and the text after it is kept. Headings and talk about the revision are
recognised in English and in the languages of the shipped templates (`cai.core.text.lexicons`).
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from cai.core.text.lexicons import LEXICONS
from cai.core.text.refusals import is_refusal, refuses_revision
from cai.core.text.words import words
from cai.records import PromptKind

NEARLY_EQUAL = 0.95
"""Minimum ratio of matching words (difflib) at which a revision counts as unchanged."""
CRITIQUE_SHARE = 0.4
"""Maximum fraction of a revision's four-word n-grams that also occur in the critique."""
LOOP_SHARE = 0.5
"""Maximum fraction of a revision's four-word n-grams that are repeats."""
_RUN_WORDS = 4

_BETTER = r"(?:revis\w+|rewrit\w+|rewrote|rephras\w+|edited|updated|improved|corrected|modified|new|better|possible|safer|alternative)"
_THING = r"(?:response|version|answer|reply|revision|rewrite|message|text|paragraph|statement)"
_HEADING = re.compile(
    rf"\A[\s*_#\"“]*(?:"
    rf"(?:(?:sure|certainly|of course|okay|ok|absolutely|yes)[,!.:]*\s+)?"
    rf"(?:here(?:'s|’s| is| are)|this is|below is|the following is|i(?:'ve|’ve| have)? {_BETTER})"
    rf"[^\n:]{{0,100}}(?:{_BETTER}|{_THING})[^\n:]{{0,80}}:"
    rf"|(?:(?:my|the|your|an?) )?(?:{_BETTER} )?(?:assistant )?(?:{_THING}|assistant)[\s*_]*[:：]"
    + "".join(rf"|(?:{pattern})[\s*_]*[:：]" for lexicon in LEXICONS.values() for pattern in lexicon.headings)
    + r")[\s*_]*",
    re.IGNORECASE,
)
_ANYWHERE = re.compile(
    r"\b(?:the |my )?(?:assistant's|assistant’s) (?:last |previous |preceding |original |first )?(?:response|answer|reply|message)\b"
    r"|\bthe (?:critique|revision request|revised response|rewritten response|original response|previous response)\b"
    r"|\b(?:rewrite|revise) the (?:assistant'?s? |previous |last |original )?(?:response|answer)\b"
    r"|\A[\s*_#]*critique[\s*_]*:"
    r"|(?:^|\n)[\s*_]*(?:human|user|assistant|system)[\s*_]*:" + "".join(f"|{p}" for lexicon in LEXICONS.values() for p in lexicon.leaks),
    re.IGNORECASE,
)
_AT_THE_EDGES = re.compile(
    rf"\bi(?:'ve|’ve| have)? (?:also )?(?:revised|rewritten|rewrote|rephrased|edited|modified|reworded|removed)\b"
    rf"[^.\n]{{0,60}}\b(?:{_THING}|(?:it|this) to)\b"
    rf"|\b(?:this|my) {_BETTER} {_THING}\b|\bthe {_BETTER} (?:response|answer|reply|revision)\b"
    rf"|\byour (?:last |previous |first )?(?:response|revision|draft)\b"
    rf"|\bth(?:is|e) (?:response|revision|rewrite|version)"
    rf" (?:is|was|has|should|could|removes|avoids|addresses|acknowledges|provides|follows|does|shows|still|now)\b"
    + "".join(f"|{p}" for lexicon in LEXICONS.values() for p in lexicon.leaks_at_edges),
    re.IGNORECASE,
)


def without_heading(text: str) -> str:
    """Remove a known heading, and quotes around the whole text, from a revision.

    >>> without_heading('Sure! Here is the revised response:\\n\\n"Ask her first."')
    'Ask her first.'
    """
    text = text.strip()
    heading = _HEADING.match(text)
    bare = text[heading.end() :].strip() if heading else text
    for opening, closing in (('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"), ("「", "」")):
        inner = bare[1:-1]
        if len(bare) > 2 and bare.startswith(opening) and bare.endswith(closing) and opening not in inner and closing not in inner:
            bare = inner.strip()
    if bare != text and bare.endswith('"') and bare.count('"') == 1:
        bare = bare[:-1].rstrip()  # its opening quote went with the heading
    return bare


def drop_rule(revision: str, critique: str, before: str, kind: PromptKind, drop_refusals: bool) -> str | None:
    """Return the name of the first rule that a revision breaks; None if it breaks none.

    Args:
        revision: without its heading.
        kind: the prompt's kind. `over_refusal` doesn't apply to `other`, which may be harmful.
        drop_refusals: whether the two rules about refusals apply.
    """
    if not revision:
        return "empty"
    refuses = drop_refusals and is_refusal(revision)
    if refuses and refuses_revision(revision):
        return "refused_request"
    if _leaks(revision):
        return "leaked_meta"
    runs = _runs(revision)
    if _share_of(runs, set(_runs(critique))) > CRITIQUE_SHARE:
        return "repeated_critique"
    if runs and 1 - len(set(runs)) / len(runs) > LOOP_SHARE:
        return "repetitive"
    if refuses and kind in ("borderline", "helpful") and not is_refusal(before):
        return "over_refusal"
    return None


def unchanged(revision: str, response: str) -> bool:
    """Whether two texts differ only in case, punctuation and a few words.

    >>> unchanged("Ask her first.", "ask her,  first"), unchanged("Ask her first.", "Don't.")
    (True, False)
    """
    one, two = _words(revision), _words(response)
    if one == two:
        return True
    matcher = SequenceMatcher(None, one, two, autojunk=False)
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)  # upper bounds, each tighter and slower than the one before
    return all(bound() >= NEARLY_EQUAL for bound in bounds)


def _leaks(text: str) -> bool:
    paragraphs = [p for p in text.split("\n\n") if p.strip()]
    edges = (text[:200], paragraphs[-1][:300] if paragraphs else "")
    return _ANYWHERE.search(text) is not None or any(_AT_THE_EDGES.search(edge) for edge in edges)


def _words(text: str) -> list[str]:
    return [piece for word in words(text.lower()) for piece in re.findall(r"\w+", word)]


def _runs(text: str) -> list[tuple[str, ...]]:
    found = _words(text)
    return [tuple(found[i : i + _RUN_WORDS]) for i in range(len(found) - _RUN_WORDS + 1)]


def _share_of(runs: Sequence[tuple[str, ...]], others: set[tuple[str, ...]]) -> float:
    return sum(run in others for run in runs) / len(runs) if runs else 0.0
