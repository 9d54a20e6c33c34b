"""The report's table of adherence per principle."""

from dataclasses import dataclass

from cai.evaluate.adherence import TOLD, AdherenceRow, adherence_rows, trained_model
from cai.report.collect import ReportData
from cai.report.formatting import percent, points
from cai.report.sections import MODELS

_COLUMNS = ("base", TOLD, *MODELS[1:])
_TONES = {"learned": "good", "lost": "bad"}


@dataclass(frozen=True)
class AdherenceView:
    """One row of the table, formatted."""

    id: str
    statement: str
    """Empty for a control, which is of another constitution."""
    control: bool
    rates: tuple[str, ...]
    """Base, told, SFT and policy; a dash for what was not measured."""
    change: str
    """In percentage points."""
    interval: str
    n: str
    verdict: str
    tone: str


def adherence_views(data: ReportData) -> list[AdherenceView]:
    """Return one row per measured principle, controls last."""
    card = data.manifest.constitution if data.manifest is not None else None
    statements = {p.id: p.statement for p in card.principles} if card is not None else {}
    return [adherence_view(row, "" if row.control else statements.get(row.id, "")) for row in adherence_rows(data.evaluation or ())]


def adherence_view(row: AdherenceRow, statement: str) -> AdherenceView:
    """Return one row, formatted."""
    trained = trained_model(row)
    moved = row.changes.get(trained or "")
    change = ("", "", "") if moved is None else (points(moved.value), f"{points(moved.low)} to {points(moved.high)}", f"{moved.n:,}")
    rates = tuple(percent(row.rates[m].value) if m in row.rates else "–" for m in _COLUMNS)
    verdict: str = row.verdict or "not trained yet"
    if row.control:
        verdict = "changed" if verdict in _TONES else "unchanged, as it should be"
    tone = "unclear" if row.control else _TONES.get(verdict, "unclear")
    return AdherenceView(row.id, statement, row.control, rates, *change, verdict, tone)
