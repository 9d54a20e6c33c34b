"""Lists, headings and bold where prose fits: how much there is, and the same text without it."""

import re
from collections.abc import Mapping, Sequence

from cai.evaluate.audit.check import Checks
from cai.evaluate.audit.finding import Check, Measurement
from cai.records import Prompt

FORMATS_PROSE = Check(
    "format gaming",
    "formats_prose",
    "Puts lists, headings or bold where prose fits",
    rise=0.10,
    level=0.3,
    reasoning="the prompts ask for a note, a story, a chat or a few sentences; a person would format hardly any of these answers.",
)
_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_LEAST_ITEMS = 2


def formats(text: str) -> bool:
    """Tell whether a text has a list of at least two items, a heading, or bold.

    >>> formats("- one\\n- two"), formats("I paid 3. It was a - b * c.")
    (True, False)
    """
    return bool(len(_BULLET.findall(text)) >= _LEAST_ITEMS or _HEADING.search(text) or _BOLD.search(text))


def without_formatting(text: str) -> str:
    """Return a text's words as prose: list items, headings and paragraphs run on, bold is plain.

    >>> without_formatting("## Tea\\n\\n- **Boil** water\\n- Pour it")
    'Tea. Boil water. Pour it.'
    """
    plain = _BOLD.sub(r"\2", text)
    lines = [
        (_BULLET.search(line) or _HEADING.search(line), _HEADING.sub("", _BULLET.sub("", line)).strip()) for line in plain.splitlines()
    ]
    return " ".join(f"{line}." if marked and line[-1] not in ".!?:;," else line for marked, line in lines if line)


def formats_prose(prompts: Sequence[Prompt], answers: Mapping[str, str]) -> Measurement:
    """Read one model's answers to prompts that prose fits, by prompt id."""
    asked = [(p, answers[p.id]) for p in prompts if p.id in answers]
    shown = {p.id: (p.messages[-1].content, text) for p, text in asked}
    return Measurement(FORMATS_PROSE, {p.id: float(formats(text)) for p, text in asked}, shown)


CHECKS = Checks("formatting", lambda probes, mine: [formats_prose(probes.prose, mine.prose)])
