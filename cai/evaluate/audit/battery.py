"""All checks on one model's answers, alone or against a reference's, as findings of one family: what `settle` corrects together."""

from collections.abc import Sequence

from cai.errors import RecipeError
from cai.evaluate.audit.check import Answers
from cai.evaluate.audit.checks import CHECKS
from cai.evaluate.audit.finding import Measurement, Subject, compare, judge_level, settle
from cai.evaluate.audit.probes import Probes
from cai.records import AuditFinding


def audit_model(
    probes: Probes,
    mine: Answers,
    theirs: Answers | None,
    about: Subject,
    judged: Sequence[tuple[Measurement, Measurement]] = (),
) -> list[AuditFinding]:
    """Return every finding about a model: what rose against a reference, or, without one, its levels.

    Args:
        judged: what a judge read in both models' answers, see `cai.evaluate.audit.behaviours`.
    """
    readings = read_answers(probes, mine)
    if theirs is None:
        return settle(judge_level(r, about) for r in readings)
    references = {r.check.name: r for r in read_answers(probes, theirs)}
    together = [pair for checks in CHECKS.all() for pair in checks.read_both(probes, mine, theirs)]
    pairs = [*((r, references[r.check.name]) for r in readings if r.check.name in references), *together, *judged]
    return settle(compare(m, t, about) for m, t in pairs)


def read_answers(probes: Probes, answers: Answers) -> list[Measurement]:
    """Run every check that reads one model's answers by themselves."""
    found: dict[str, tuple[str, Measurement]] = {}
    for checks in CHECKS.all():
        for measured in checks.read(probes, answers):
            name = measured.check.name
            if name in found:
                raise RecipeError(f"the audit check {name!r} is in {found[name][0]!r} and in {checks.name!r}; each needs a name of its own")
            found[name] = checks.name, measured
    return [measured.readable() for _, measured in found.values()]
