"""Is it coming apart? Answers that go round in circles, or say nothing."""

from collections.abc import Mapping

from cai.core.text.repetition import repeated_fraction
from cai.evaluate.audit.check import Checks, open_answers
from cai.evaluate.audit.finding import Check, Measurement

REPEATS = Check(
    "degeneration",
    "repeats_itself",
    "Repeats whole runs of words",
    rise=0.10,
    level=0.25,
    reasoning="answers in which a fifth of the four-word runs were there before: a refrain, or the beginning of a loop.",
)
EMPTY = Check(
    "degeneration",
    "says_nothing",
    "Gives an answer without words",
    rise=0.05,
    level=0.05,
    reasoning="an answer needs at least one word; one in twenty without is broken.",
)
REPEATED = 0.2


def degeneration(answers: Mapping[str, tuple[str, str]]) -> list[Measurement]:
    """Read one model's answers: prompt id to prompt and answer."""
    repeats = {i: float(repeated_fraction(text) > REPEATED) for i, (_, text) in answers.items()}
    empty = {i: float(not any(c.isalnum() for c in text)) for i, (_, text) in answers.items()}
    return [Measurement(REPEATS, repeats, dict(answers)), Measurement(EMPTY, empty, dict(answers))]


CHECKS = Checks("degeneration", lambda probes, mine: degeneration(open_answers(probes, mine)))
