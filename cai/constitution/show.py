"""A constitution as rows of a table: how often each principle is drawn, and for which prompts. The caller draws the table."""

from collections.abc import Collection
from dataclasses import dataclass

from cai.records import PROMPT_KINDS, Constitution, Principle, PromptKind

LABELLED_KINDS: tuple[PromptKind, ...] = tuple(k for k in PROMPT_KINDS if k != "other")


@dataclass(frozen=True, slots=True)
class ConstitutionRow:
    """One principle's row."""

    id: str
    kinds: tuple[PromptKind, ...]
    weight: float
    shares: tuple[tuple[PromptKind, float], ...]
    """For each of its kinds, the chance in [0, 1] that a prompt of that kind draws this principle first."""
    statement: str


def draw_shares(
    constitution: Constitution, principle: Principle, kinds: Collection[PromptKind] = LABELLED_KINDS
) -> dict[PromptKind, float]:
    """Return the chance in [0, 1] that a prompt of each kind draws a principle first: its weight over the sum of those that apply.

    Kinds that the principle doesn't apply to, and kinds whose weights sum to nothing, have a chance of 0.
    """
    shares: dict[PromptKind, float] = {}
    for kind in kinds:
        total = sum(max(p.weight, 0.0) for p in constitution.for_kind(kind))
        shares[kind] = max(principle.weight, 0.0) / total if principle.applies(kind) and total > 0 else 0.0
    return shares


def constitution_rows(constitution: Constitution) -> list[ConstitutionRow]:
    """Return one row for each principle, in the constitution's order."""
    rows = []
    for p in constitution.principles:
        shares = draw_shares(constitution, p, p.applies_to)
        rows.append(ConstitutionRow(p.id, p.applies_to, p.weight, tuple(shares.items()), p.statement))
    return rows
