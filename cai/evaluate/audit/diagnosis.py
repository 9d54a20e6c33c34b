"""From findings to what a practitioner should suspect: a name for the behaviour, the evidence, and what to change.

The advice is declared beside the checks: where in the pipeline such a behaviour usually comes from. Which principles of the constitution
speak of it is looked up in their words, so that it fits whatever constitution is used.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cai.evaluate.audit.check import Advice
from cai.evaluate.audit.checks import CHECKS
from cai.records import AuditFinding, Constitution


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What to suspect, why, and what to change."""

    suspicion: str
    sure: bool
    """Found, not only suspect."""
    findings: tuple[AuditFinding, ...]
    stages: tuple[str, ...]
    change: str
    principles: tuple[str, ...]
    """Ids of the principles to look at; empty where the constitution says nothing about it."""


def known_advice() -> dict[str, Advice]:
    """Return the advice about every group of findings; a package's does not replace that of `cai` about the same group."""
    found: dict[str, Advice] = {}
    for checks in CHECKS.all():
        found = {**checks.advice, **found}
    return found


def diagnose(findings: Iterable[AuditFinding], constitution: Constitution) -> list[Suspicion]:
    """Return what to suspect, what was found before what is only suspect; empty where nothing stands out.

    Args:
        findings: about one model.
        constitution: whose principles could be changed.
    """
    advice = known_advice()
    groups: dict[str, list[AuditFinding]] = {}
    for f in findings:
        if f.verdict in ("found", "suspect") and f.group in advice:
            groups.setdefault(f.group, []).append(f)
    suspicions = [_suspicion(advice[group], tuple(found), constitution) for group, found in groups.items()]
    return sorted(suspicions, key=lambda s: not s.sure)


def _suspicion(advice: Advice, findings: tuple[AuditFinding, ...], constitution: Constitution) -> Suspicion:
    pattern = re.compile(advice.principles, re.IGNORECASE)
    principles = tuple(p.id for p in constitution.principles if pattern.search(f"{p.id.replace('-', ' ')} {p.statement}"))
    sure = any(f.verdict == "found" for f in findings)
    return Suspicion(advice.suspicion, sure, findings, advice.stages, advice.change, principles)
