"""Principles and constitutions."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from cai.ids import content_hash
from cai.records.base import LABELLED_KINDS, PromptKind


@dataclass(frozen=True, slots=True)
class ResponseCheck:
    """Conditions on a response that need no model. A response passes if all of them hold. See `cai.core.text.checks`."""

    kinds: tuple[PromptKind, ...] = ()
    """Kinds of prompt that the conditions apply to; empty means all kinds of the principle."""
    max_words: int | None = None
    min_words: int | None = None
    max_sentences: int | None = None
    matches: str | None = None
    """Regular expression that must match somewhere."""
    not_matches: str | None = None
    """Regular expression that must match nowhere."""
    contains_any: tuple[str, ...] = ()
    """Words or phrases, of which at least one must occur, in any case."""
    no_lists: bool = False
    """Whether bulleted and numbered lists are excluded."""
    ends_with: tuple[str, ...] = ()
    """Endings, of which the response must have one."""
    language: str | None = None
    """ISO 639-1 code of the response's language."""
    refuses: bool | None = None
    """True: the response must be a refusal, by rule. False: it must not."""
    json_schema: dict[str, Any] | None = field(default=None, hash=False)
    """JSON Schema (2020-12) that the response must fulfil, as JSON with or without a code fence."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Example responses, which show what a principle means and test its check."""

    good: tuple[str, ...] = ()
    """Responses that follow the principle."""
    bad: tuple[str, ...] = ()
    """Responses that break it."""


@dataclass(frozen=True, slots=True)
class Principle:
    """One article of a constitution. Every request and question about it shows its statement; the wordings below refine what is asked."""

    id: str
    statement: str
    critique: str = "Say how your last response breaks this principle."
    """Critique request: asks what is wrong with the last response under this principle."""
    revision: str = "Rewrite your last response so that it follows this principle."
    """Revision request: asks for a rewrite that follows the principle."""
    ask_positive: str = "Does the response follow the principle?"
    """Yes-or-no question about one response; Yes means the response follows the principle."""
    ask_negative: str = "Does the response break the principle?"
    """Yes-or-no question about one response; Yes means the response breaks the principle."""
    compare: str = "Which response follows the principle better?"
    """Question about two responses: which one follows the principle better."""
    applies_to: tuple[PromptKind, ...] = ("harmful", "borderline", "helpful")
    weight: float = 1.0
    """Relative probability of being drawn, and weight in an ensemble of principles. Above 0."""
    source: str = ""
    check: tuple[ResponseCheck, ...] = ()
    """Conditions that decide, without a model, whether a response follows the principle; empty if only a judge can tell."""
    examples: Examples = Examples()
    openings: tuple[str, ...] = ()
    """Words with which a response that follows the principle may begin. Context distillation begins with one of them."""

    def applies(self, kind: PromptKind) -> bool:
        """Whether the principle applies to prompts of this kind. All principles apply to unlabelled (`other`) prompts."""
        return kind == "other" or kind in self.applies_to

    @property
    def own_wording(self) -> dict[str, str]:
        """The requests and questions that were written for this principle, by field; those at their default are left out."""
        return {name: text for name in DEFAULT_WORDING if (text := getattr(self, name)) not in (w[name] for w in WORDINGS.values())}


DEFAULT_WORDING: dict[str, str] = {
    f.name: str(f.default) for f in fields(Principle) if f.name in ("critique", "revision", "ask_positive", "ask_negative", "compare")
}
"""What is asked about a principle that only has a statement, by field."""
WORDINGS: dict[str, dict[str, str]] = {
    "en": DEFAULT_WORDING,
    "de": {
        "critique": "Sag, wie deine letzte Antwort diesen Grundsatz verletzt.",
        "revision": "Schreib deine letzte Antwort so um, dass sie diesem Grundsatz folgt.",
        "ask_positive": "Folgt die Antwort dem Grundsatz?",
        "ask_negative": "Verletzt die Antwort den Grundsatz?",
        "compare": "Welche Antwort folgt dem Grundsatz besser?",
    },
    "es": {
        "critique": "Di en qué incumple este principio tu última respuesta.",
        "revision": "Reescribe tu última respuesta para que siga este principio.",
        "ask_positive": "¿Sigue la respuesta el principio?",
        "ask_negative": "¿Incumple la respuesta el principio?",
        "compare": "¿Qué respuesta sigue mejor el principio?",
    },
    "zh": {
        "critique": "说明你上一个回答如何违反了这条原则。",
        "revision": "重写你上一个回答，使它遵循这条原则。",
        "ask_positive": "这个回答遵循这条原则吗？",
        "ask_negative": "这个回答违反这条原则吗？",
        "compare": "哪个回答更好地遵循这条原则？",
    },
}
"""`DEFAULT_WORDING` by language (ISO 639-1). A constitution's `language` chooses one."""


@dataclass(frozen=True, slots=True)
class Constitution:
    """A named set of principles with unique ids."""

    id: str
    name: str
    description: str
    principles: tuple[Principle, ...]

    def for_kind(self, kind: PromptKind) -> tuple[Principle, ...]:
        """Principles that apply to prompts of this kind, in the constitution's order."""
        return tuple(p for p in self.principles if p.applies(kind))

    def principle(self, principle_id: str) -> Principle:
        """Return the principle with this id. Raises `KeyError`."""
        for p in self.principles:
            if p.id == principle_id:
                return p
        raise KeyError(principle_id)

    def draw_shares(self, principle: Principle, kinds: Collection[PromptKind] = LABELLED_KINDS) -> dict[PromptKind, float]:
        """Return, for each kind of prompt, the probability in [0, 1] that a principle is drawn first: its weight over the sum of weights.

        The probability is 0 for kinds that the principle does not apply to, and for kinds whose weights sum to 0.
        """
        shares: dict[PromptKind, float] = {}
        for kind in kinds:
            total = sum(max(p.weight, 0.0) for p in self.for_kind(kind))
            shares[kind] = max(principle.weight, 0.0) / total if principle.applies(kind) and total > 0 else 0.0
        return shares

    @property
    def hash(self) -> str:
        """Content hash of everything in the constitution."""
        return content_hash(self)
