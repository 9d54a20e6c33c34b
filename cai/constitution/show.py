"""Table rows of a constitution: how often each principle is drawn, and for which kinds of prompt."""

from collections.abc import Collection
from dataclasses import dataclass

from cai.records import PROMPT_KINDS, Constitution, Principle, PromptKind

LABELLED_KINDS: tuple[PromptKind, ...] = tuple(k for k in PROMPT_KINDS if k != "other")


@dataclass(frozen=True, slots=True)
class ConstitutionRow:
    """Table row of one principle."""

    id: str
    kinds: tuple[PromptKind, ...]
    weight: float
    shares: tuple[tuple[PromptKind, float], ...]
    """For each kind it applies to, the probability in [0, 1] that a prompt of that kind draws this principle first."""
    statement: str


def draw_shares(
    constitution: Constitution, principle: Principle, kinds: Collection[PromptKind] = LABELLED_KINDS
) -> dict[PromptKind, float]:
    """Return, for each kind of prompt, the probability in [0, 1] that a principle is drawn first: its weight over the sum of weights.

    The probability is 0 for kinds that the principle does not apply to, and for kinds whose weights sum to 0.
    """
    shares: dict[PromptKind, float] = {}
    for kind in kinds:
        total = sum(max(p.weight, 0.0) for p in constitution.for_kind(kind))
        shares[kind] = max(principle.weight, 0.0) / total if principle.applies(kind) and total > 0 else 0.0
    return shares


def constitution_rows(constitution: Constitution) -> list[ConstitutionRow]:
    """Return one row per principle, in the order of the constitution."""
    rows = []
    for p in constitution.principles:
        shares = draw_shares(constitution, p, p.applies_to)
        rows.append(ConstitutionRow(p.id, p.applies_to, p.weight, tuple(shares.items()), p.statement))
    return rows
