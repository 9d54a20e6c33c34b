"""How often each principle is drawn, and for which kinds of prompt."""

from collections.abc import Collection

from cai.records import PROMPT_KINDS, Constitution, Principle, PromptKind

LABELLED_KINDS: tuple[PromptKind, ...] = tuple(k for k in PROMPT_KINDS if k != "other")


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
