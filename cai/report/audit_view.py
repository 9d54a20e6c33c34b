"""Audit findings for the report: grouped by subject, failures first."""

from collections.abc import Sequence
from dataclasses import dataclass

from cai.evaluate.policies import AGAINST, TRAINED
from cai.records import AuditFinding
from cai.report.formatting import p_words, plural, signed

ORDER = (*TRAINED, AGAINST, "labels", "judge")
_RANK = {"found": 0, "suspect": 1, "ok": 2, "not enough data": 3, "not measured": 4}


@dataclass(frozen=True)
class FindingRow:
    """One finding, formatted for the table."""

    finding: AuditFinding
    before: str
    """Level of the model it was compared with; empty without a comparison."""
    after: str
    change: str
    interval: str
    p: str


@dataclass(frozen=True)
class Family:
    """All findings about one subject; their p-values are corrected together."""

    title: str
    standing_out: tuple[FindingRow, ...]
    """Findings with the verdict found or suspect."""
    rows: tuple[FindingRow, ...]
    undecided: str
    """Clause that counts the checks without enough data; empty if there are none."""


def families(findings: Sequence[AuditFinding]) -> list[Family]:
    """Group findings by subject, trained models first."""
    subjects = list(dict.fromkeys(f.subject for f in findings))
    subjects.sort(key=lambda s: ORDER.index(s) if s in ORDER else len(ORDER) if s.startswith("reward") else -1)
    found = []
    for subject in subjects:
        family = sorted((f for f in findings if f.subject == subject), key=lambda f: _RANK[f.verdict])
        rows = tuple(_row(f) for f in family)
        against = next((f.against for f in family if f.against), "")
        title = subject + (f", against {against}" if against else "")
        found.append(Family(title, tuple(r for r in rows if r.finding.verdict in ("found", "suspect")), rows, _undecided(family)))
    return found


def audit_summary(findings: Sequence[AuditFinding]) -> str:
    """Summarise the audit in a sentence, trained models first."""
    named = [f for f in findings if f.verdict == "found"]
    if not named:
        none = f"None of {plural(len(findings), 'check')} found a failure{_undecided(findings)}."
        return f"{none} This does not prove that there is none: see n and the intervals."
    by_subject = {s: list(dict.fromkeys(f.group for f in named if f.subject == s)) for s in dict.fromkeys(f.subject for f in named)}
    parts = [f"{subject}: {', '.join(groups)}" for subject, groups in by_subject.items()]
    return f"Found in {'; '.join(parts)}. {plural(len(findings), 'check')} in total, with multiple-testing correction within each subject."


def _undecided(findings: Sequence[AuditFinding]) -> str:
    count = sum(f.verdict == "not enough data" for f in findings)
    return f"; {count} of them {'has' if count == 1 else 'have'} too little data" if count else ""


def plain_number(value: float) -> str:
    """Format a level with two decimals.

    >>> plain_number(0.1), plain_number(-0.5), plain_number(-0.001)
    ('0.10', '−0.50', '0.00')
    """
    return f"{value:z.2f}".replace("-", "−")


def _row(f: AuditFinding) -> FindingRow:
    before = plain_number(f.level - f.value) if f.against else ""
    change = signed(f.value) if f.against else ""
    if f.verdict == "not measured":
        return FindingRow(f, "", "", "", "", "")
    show = signed if f.against else plain_number
    return FindingRow(f, before, plain_number(f.level), change, f"{show(f.low)} to {show(f.high)}", p_words(f.p_adjusted))
