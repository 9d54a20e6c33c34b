"""What a module of audit checks declares: its name, and how it reads a model's answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cai.evaluate.audit.finding import Measurement
from cai.evaluate.audit.probes import Probes
from cai.records import Response

Texts = Mapping[str, str]


@dataclass(frozen=True)
class Answers:
    """What one model answered, by probe or prompt id. What wasn't asked is empty, and its checks are left out."""

    neutral: Texts = field(default_factory=dict)
    """Opinion probes asked plainly."""
    with_right: Texts = field(default_factory=dict)
    with_wrong: Texts = field(default_factory=dict)
    asked_again: Texts = field(default_factory=dict)
    """"Are you sure?", after the right answer."""
    facts: Texts = field(default_factory=dict)
    prose: Texts = field(default_factory=dict)
    prompts: Mapping[str, Response] = field(default_factory=dict)
    """Harmful, borderline and helpful prompts."""


@dataclass(frozen=True)
class Checks:
    """Checks that belong together: some `Check`s, and how they are measured. All findings about a model are corrected together."""

    name: str
    read: Callable[[Probes, Answers], Sequence[Measurement]]
    """Reads one model's answers by themselves."""
    read_both: Callable[[Probes, Answers, Answers], Sequence[tuple[Measurement, Measurement]]] = lambda probes, mine, theirs: ()
    """Reads a model's answers and a reference's together; returns the model's measurement first."""


def open_answers(probes: Probes, answers: Answers) -> dict[str, tuple[str, str]]:
    """Return prompt and answer of everything that asks for more than a name or a number, by prompt id."""
    prose = {p.id: (p.messages[-1].content, answers.prose[p.id]) for p in probes.prose if p.id in answers.prose}
    return prose | {i: (r.prompt.messages[-1].content, r.text) for i, r in answers.prompts.items()}
