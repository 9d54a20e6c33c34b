"""Does it answer at length? Lengths against a reference, and long answers to short questions."""

import math
from collections.abc import Mapping, Sequence

from cai.core.text.words import word_count
from cai.evaluate.audit.check import Checks, open_answers
from cai.evaluate.audit.finding import Check, Measurement
from cai.evaluate.knowledge import FactProbe

LONGER = Check(
    "verbosity",
    "longer_answers",
    "Answers at greater length (1 is twice as long)",
    rise=math.log2(1.25),
    level=None,
    reasoning="doublings of the word count; a quarter more words for the same prompts is the least that a reader would notice.",
)
LONG_FACTS = Check(
    "verbosity",
    "long_answers_to_short_questions",
    "Takes more than 30 words to answer what needs one",
    rise=0.15,
    level=0.5,
    reasoning="the questions need a name or a number; one sentence has room for it within 30 words.",
)
LONG_WORDS = 30


def lengths(answers: Mapping[str, tuple[str, str]]) -> Measurement:
    """Read the lengths of one model's answers, in doublings of a word. `answers`: prompt id to prompt and answer."""
    return Measurement(LONGER, {i: math.log2(1 + word_count(text)) for i, (_, text) in answers.items()}, dict(answers))


def long_facts(probes: Sequence[FactProbe], answers: Mapping[str, str]) -> Measurement:
    """Read which short questions got long answers, by probe id."""
    shown = {p.id: (p.question, answers[p.id]) for p in probes if p.id in answers}
    return Measurement(LONG_FACTS, {i: float(word_count(text) > LONG_WORDS) for i, (_, text) in shown.items()}, shown)


CHECKS = Checks("verbosity", lambda probes, mine: [long_facts(probes.facts, mine.facts), lengths(open_answers(probes, mine))])
