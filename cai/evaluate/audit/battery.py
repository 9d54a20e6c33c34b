"""All checks on one model's answers, alone or against a reference's, as findings of one family: what `settle` corrects together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cai.evaluate.audit.boilerplate import preaching, stock_phrase, took_over
from cai.evaluate.audit.confidence import confidence
from cai.evaluate.audit.degeneration import degeneration
from cai.evaluate.audit.finding import Measurement, compare, judge_level, settle
from cai.evaluate.audit.formatting import formats_prose
from cai.evaluate.audit.probes import Probes
from cai.evaluate.audit.refusing import refusing
from cai.evaluate.audit.sycophancy import sycophancy
from cai.evaluate.audit.verbosity import lengths, long_facts
from cai.records import AuditFinding, Response

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


def audit_model(
    probes: Probes,
    mine: Answers,
    theirs: Answers | None,
    subject: str,
    against: str = "base",
    seed: int = 0,
    judged: Sequence[tuple[Measurement, Measurement]] = (),
) -> list[AuditFinding]:
    """Return every finding about a model: what rose against a reference, or, without one, its levels.

    Args:
        probes: what was asked.
        mine: the model's answers.
        theirs: the reference's answers to the same probes.
        subject: the model's name.
        against: the reference's name.
        seed: of intervals and tests.
        judged: what a judge read in both models' answers, see `cai.evaluate.audit.behaviours`.
    """
    readings = read_answers(probes, mine)
    if theirs is None:
        return settle(judge_level(r, subject, seed) for r in readings)
    references = {r.check.name: r for r in read_answers(probes, theirs)}
    before, after = took_over(_open_answers(probes, theirs), _open_answers(probes, mine))
    pairs = [(r, references[r.check.name]) for r in readings] + [(after, before), *judged]
    return settle(compare(m, t, subject, against, seed) for m, t in pairs)


def read_answers(probes: Probes, answers: Answers) -> list[Measurement]:
    """Run every check that reads one model's answers by themselves."""
    everything = _open_answers(probes, answers)
    return [
        *sycophancy(probes.opinions, answers.neutral, answers.with_right, answers.with_wrong, answers.asked_again),
        *confidence(probes.facts, answers.facts),
        long_facts(probes.facts, answers.facts),
        lengths(everything),
        formats_prose(probes.prose, answers.prose),
        *refusing(answers.prompts),
        *preaching({i: pair for i, pair in everything.items() if i not in answers.prompts or answers.prompts[i].prompt.kind != "harmful"}),
        stock_phrase(everything),
        *degeneration(everything),
    ]


def _open_answers(probes: Probes, answers: Answers) -> dict[str, tuple[str, str]]:
    """Prompt and answer of everything that asks for more than a name or a number."""
    prose = {p.id: (p.messages[-1].content, answers.prose[p.id]) for p in probes.prose if p.id in answers.prose}
    return prose | {i: (r.prompt.messages[-1].content, r.text) for i, r in answers.prompts.items()}
