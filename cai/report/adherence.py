"""The report's table of adherence per principle."""

from collections.abc import Sequence
from dataclasses import dataclass

from cai.evaluate.adherence import TOLD
from cai.evaluate.adherence_table import AdherenceRow, adherence_rows, trained_model
from cai.evaluate.policies import AGAINST
from cai.report.collect import ReportData
from cai.report.formatting import percent, points

COLUMNS = (AGAINST, TOLD, "sft", "policy")
_TONES = {"learned": "good", "lost": "bad"}


@dataclass(frozen=True)
class AdherenceView:
    """One row of the table, formatted."""

    id: str
    statement: str
    """Empty for a control, which is of another constitution."""
    control: bool
    rates: tuple[str, ...]
    """Base, told, SFT and policy, and the blend where a run has one; a dash for what was not measured."""
    change: str
    """In percentage points."""
    interval: str
    n: str
    verdict: str
    tone: str


def adherence_views(data: ReportData) -> list[AdherenceView]:
    """Return one row per measured principle, controls last."""
    statements = {p.id: p.statement for p in data.manifest.principles}
    rows = adherence_rows(data.evaluation or ())
    columns = (*COLUMNS, "blend") if any("blend" in row.rates for row in rows) else COLUMNS
    return [adherence_view(row, "" if row.control else statements.get(row.id, ""), columns) for row in rows]


def adherence_view(row: AdherenceRow, statement: str, columns: Sequence[str]) -> AdherenceView:
    """Return one row, formatted, with the rates of these models."""
    trained = trained_model(row)
    moved = row.changes.get(trained or "")
    change = ("", "", "") if moved is None else (points(moved.value), f"{points(moved.low)} to {points(moved.high)}", f"{moved.n:,}")
    rates = tuple(percent(row.rates[m].value) if m in row.rates else "–" for m in columns)
    verdict: str = row.verdict or "not trained yet"
    if row.control:
        moved_alone = moved is not None and not moved.low <= 0.0 <= moved.high
        verdict = "changed" if verdict in _TONES else "perhaps changed" if moved_alone else "unchanged, as it should be"
    tone = "unclear" if row.control else _TONES.get(verdict, "unclear")
    return AdherenceView(row.id, statement, row.control, rates, *change, verdict, tone)
