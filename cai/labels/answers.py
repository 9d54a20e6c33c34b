"""Reads what annotators answered (`A`, `left`, `2`, a number on a scale) as the probability that the first response is better.

A code means nothing by itself: `1` is the first response in one file, the second in another, and "slightly worse" on a scale. So a whole
column is read at once, over all files of a source. Words and letters are read by the lists below. Numbers are read in three cases only: the
response columns end in numbers (`response_0`, `response_1`), which the answers then repeat; the column holds 1 and 2, and no other number;
or the user says what they mean. Any other column is refused as a whole.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cai.data.conversations import RowFault
from cai.errors import DataError

FIRST = frozenset(("a", "left", "first", "chosen"))
SECOND = frozenset(("b", "right", "second", "rejected"))
TIE = frozenset(
    ("tie", "tied", "equal", "equally good", "equally bad", "draw", "same", "both", "neither", "no preference", "tie (bothbad)", "both_bad")
)
HELP = "--choices 0=A,1=B (also tie, or a probability of A such as 0.75), or a scale from 'A is better' to 'B is better': --choices 1..7"
MAX_SHOWN = 8
_NAMED = re.compile(r"(?:response|option|answer|output|model|assistant|completion|candidate|text|summary)[ _-]?([ab]|[0-9]+)")
_GRADED = re.compile(r"\A[c-z]\Z|\b(?:a|b|left|right|first|second|[0-9])\b")
"""An answer that can't be read and is one of several letters or grades a side ("slightly A"): the column is a scale."""
MOST_UNREAD = 0.5
_SCALE = re.compile(r"\s*([+-]?[0-9.]+)\s*\.\.\s*([+-]?[0-9.]+)\s*")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the answers of a column mean, as a user or the documentation of a data set states it."""

    codes: Mapping[str, float] = field(default_factory=dict)
    """CodedAnswer (see `code_of`) to the probability that the first response is better."""
    scale: tuple[float, float] | None = None
    """The number at which the first response is clearly better, and the one at which the second is. Numbers between them are read
    linearly, so the middle is a tie."""

    def p_first(self, code: str) -> float | None:
        """Return the probability that a code stands for; None if it isn't stated."""
        if code in self.codes:
            return self.codes[code]
        number = _number(code)
        if self.scale is None or number is None:
            return None
        first, last = self.scale
        p = abs((last - number) / (last - first))
        return p if min(first, last) <= number <= max(first, last) else None


@dataclass(frozen=True, slots=True)
class CodedAnswer:
    """One annotator's answer, not yet read."""

    column: str
    code: str
    names: tuple[str, str]
    """Names of the columns with the two responses."""
    choices: Choices | None = None
    """What the codes mean, where the format says it."""


def parse_choices(text: str | None) -> Choices | None:
    """Parse the option `--choices`: `0=A,1=B,2=tie`, probabilities of A (`1=1.0,2=0.75`), or a scale `FIRST..LAST`.

    >>> parse_choices("0=A,1=B").codes, parse_choices("-3..3").p_first("-1")
    ({'0': 1.0, '1': 0.0}, 0.6666666666666666)

    Raises:
        DataError: it is none of these.
    """
    if text is None:
        return None
    if scale := _SCALE.fullmatch(text):
        first, last = (_number(end) for end in scale.groups())
        if first is None or last is None or first == last:
            raise DataError(f"--choices {text}: expected two different numbers, the first where A is better: --choices 1..7")
        return Choices(scale=(first, last))
    codes: dict[str, float] = {}
    for part in text.split(","):
        code, eq, meaning = part.rpartition("=")
        p = _meaning(meaning.strip().casefold())
        if not (eq and code.strip()) or p is None:
            raise DataError(f"--choices {text}: can't read {part.strip()!r}. Expected {HELP}")
        if codes.setdefault(_plain(code), p) != p:
            raise DataError(f"--choices {text}: says two things about {code.strip()}")
    return Choices(codes)


def code_of(value: Any) -> str:
    """Return an answer as a text without case, out of the lists and mappings in which tools put it. Whole numbers have no decimal point.

    >>> code_of("Left"), code_of([{"choices": ["B"]}]), code_of(2.0), code_of("1.0"), code_of(True)
    ('left', 'b', '2', '1', 'true')

    Raises:
        RowFault: there is no answer, or several.
    """
    if isinstance(value, dict):
        inner = [value[key] for key in ("selected", "choices", "choice", "value") if value.get(key) is not None]
        value = inner[0] if len(inner) == 1 else None
    if isinstance(value, list | tuple):
        answers = {code_of(v) for v in value}
        if len(answers) != 1:
            raise RowFault("no_choice", f"expected one answer, found {list(value)!r}")
        return answers.pop()
    if isinstance(value, bool):
        return str(value).casefold()
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise RowFault("no_choice", f"{value!r} is no answer")
    code = _plain(str(value))
    if code.startswith("["):  # a cell of a CSV export
        try:
            return code_of(msgspec.json.decode(code.encode()))
        except msgspec.DecodeError as e:
            raise RowFault("no_choice", f"not readable as an answer: {code[:60]}") from e
    return code


def read_answers(answers: Sequence[CodedAnswer], stated: Choices | None = None) -> list[float | None]:
    """Return the probability that the first response is better, per answer; None for a word that can't be read among others that can.

    Args:
        answers: the answers of one column, of all files of a source.
        stated: what the user says that they mean; it goes before what a format says.

    Raises:
        DataError: the column's values don't fit; says what was found.
    """
    read = [_read(a, stated) for a in answers]
    numbers = {code for code, p in ((_numeric(a.code), p) for a, p in zip(answers, read, strict=True)) if code is not None and p is None}
    if numbers == {"1", "2"} and stated is None:
        read = [({"1": 1.0, "2": 0.0}.get(_numeric(a.code) or "") if p is None else p) for a, p in zip(answers, read, strict=True)]
        numbers = set()
    sides = {p > 0.5 for p in read if p is not None and p != 0.5}
    known = stated is not None or len(sides) == 2 or any(a.code in map(_plain, a.names) for a in answers)
    unread = [a.code for a, p in zip(answers, read, strict=True) if p is None]
    is_scale = stated is None and any(_GRADED.search(code) for code in unread)
    if numbers or is_scale or (unread and not known) or len(unread) > MOST_UNREAD * len(answers):
        raise DataError(_refusal(answers, read, bool(numbers), stated))
    return read


def _read(answer: CodedAnswer, stated: Choices | None) -> float | None:
    """Read one answer as far as it means the same in every file."""
    for choices in (stated, answer.choices):
        if choices is not None and (p := choices.p_first(answer.code)) is not None:
            return p
    names = [_plain(name) for name in answer.names]
    if answer.code in names:
        return float(answer.code == names[0])
    spaced = [re.sub(r"[ _-]", "", name) for name in names]
    if (code := re.sub(r"[ _-]", "", answer.code)) in spaced:
        return float(code == spaced[0])
    word = named[1] if (named := _NAMED.fullmatch(answer.code)) else answer.code
    for words, p in ((FIRST, 1.0), (SECOND, 0.0), (TIE, 0.5)):
        if word in words:
            return p
    ends = [found[0] if (found := re.search(r"[0-9]+$", name)) else "" for name in names]
    if stated is None and answer.choices is None and all(ends) and ends[0] != ends[1] and word in ends:
        return float(word == ends[0])
    return None


def _refusal(answers: Sequence[CodedAnswer], read: Sequence[float | None], numbers: bool, stated: Choices | None) -> str:
    counts = Counter(a.code for a in answers)
    shown = ", ".join(f"{code[:40]} ({n}×)" for code, n in counts.most_common(MAX_SHOWN))
    more = f" and {len(counts) - MAX_SHOWN} other values" if len(counts) > MAX_SHOWN else ""
    strange = sorted({a.code[:40] for a, p in zip(answers, read, strict=True) if p is None})[:MAX_SHOWN]
    if stated is not None:
        why = f"--choices doesn't say what {', '.join(strange)} mean{'s' if len(strange) == 1 else ''}"
    elif numbers:
        why = "numbers are read only where 1 and 2 both occur and no other does, or where the response columns end in them"
    elif strange and any(_GRADED.search(code) for code in strange):
        why = f"{', '.join(strange)} may be further steps of a scale, and then A and B don't mean what they seem to"
    else:
        why = "expected A, B or tie (left, right; first, second; the column's name)"
    return (
        f"the answers in column {answers[0].column!r} can't be read, so none is: found {shown}{more}; {why}. Say what they mean with "
        f"`cai human import`: {HELP}"
    )


def _meaning(text: str) -> float | None:
    named = {"a": 1.0, "b": 0.0, "tie": 0.5}
    if text in named:
        return named[text]
    p = _number(text) if "." in text else None
    return p if p is not None and 0.0 <= p <= 1.0 else None


def _plain(text: str) -> str:
    """Return a text without case and outer space, and a whole number without its decimal point."""
    plain = text.strip().casefold()
    number = _number(plain)
    return plain if number is None else f"{number:g}" if abs(number) < 1e6 else plain


def _numeric(code: str) -> str | None:
    """Return the number of an answer, alone or after a word such as `response`; None without a number. Truth values are numbers too."""
    word = named[1] if (named := _NAMED.fullmatch(code)) else code
    return word if _number(word) is not None or word in ("true", "false") else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
