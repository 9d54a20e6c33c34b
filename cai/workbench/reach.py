"""Which prompts and pairs an edit of a constitution can affect, before any model call.

A revision can change only if its prompt draws other principles, or a principle whose requests changed. A label can change only if the judge
asks other questions about the pair. Everything else is the same call before and after the edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cai.constitution.diff import ConstitutionDiff
from cai.generate.critique import principles_in_turn
from cai.judge.judge import Judge
from cai.judge.protocols import PROTOCOLS
from cai.recipe import Recipe
from cai.records import Constitution, Principle, Prompt, ResponsePair

DRAWN_BY = ("applies_to", "weight")
"""Fields that decide which principles are drawn."""
REQUESTS = ("statement", "critique", "revision", "check")
"""Fields that critiques and revisions are asked with, or filtered by."""
Asked = tuple[object, ...]


@dataclass(frozen=True)
class Reach:
    """What an edit can affect."""

    before: Constitution
    after: Constitution
    recipe: Recipe

    def revises(self, prompt: Prompt) -> bool:
        """Whether the prompt's critiques or revisions are requested in other words, or under other principles."""
        return _requests(prompt, self.before, self.recipe) != _requests(prompt, self.after, self.recipe)

    def labels_kind(self, prompt: Prompt) -> bool:
        """Whether the judge's questions about some pair of this prompt's kind can differ."""
        before, after = (
            sorted(_question(p, self.recipe.feedback.protocol, p.weight, p.id) for p in c.for_kind(prompt.kind))
            for c in (self.before, self.after)
        )
        return before != after

    def rank(self, prompt: Prompt) -> int:
        """Return 0 for a prompt whose revision the edit can change, 1 for one where only labels can, 2 for one that it can't affect."""
        return 0 if self.revises(prompt) else 1 if self.labels_kind(prompt) else 2


def labels(pair: ResponsePair, before: Judge, after: Judge) -> bool:
    """Whether two judges of the same protocol ask other questions about a pair."""
    return _questions(pair, before) != _questions(pair, after)


def why_no_revisions(text: ConstitutionDiff, prompts: int) -> str:
    """Say why an edit can't change any revision of a sample of prompts."""
    return _why(text, REQUESTS, "critiques and revisions don't use", f"none of the {prompts} sampled prompts draws a changed principle")


def why_no_labels(text: ConstitutionDiff, protocol: str, prompts: int) -> str:
    """Say why an edit can't change any label of a sample of prompts."""
    return _why(
        text,
        PROTOCOLS.get(protocol).asks,
        f"{protocol} doesn't ask",
        f"no pair of the {prompts} sampled prompts is judged by a changed principle",
    )


def _why(text: ConstitutionDiff, used: Sequence[str], unused: str, unreached: str) -> str:
    if not text.principles:
        return "the principles are the same"
    changed = {f.field for change in text.principles for f in change.fields}
    moved = any(change.kind != "edited" for change in text.principles)
    if moved or changed & {*used, *DRAWN_BY}:
        return unreached
    return f"{unused} {', '.join(sorted(changed))}"


def _requests(prompt: Prompt, constitution: Constitution, recipe: Recipe) -> list[Asked]:
    config = recipe.critique
    if prompt.kind not in config.kinds or not constitution.for_kind(prompt.kind):
        return []
    drawn = principles_in_turn(prompt, constitution, recipe.seed, config.rounds)
    return [tuple(str(getattr(p, field)) for field in REQUESTS) for p in drawn]


def _questions(pair: ResponsePair, judge: Judge) -> list[Asked]:
    config = judge.config
    return sorted(
        _question(p, config.protocol, p.weight if config.principles == "ensemble" else 1.0, p.id if judge.calibration else "")
        for p in judge.principles(pair)
    )


def _question(p: Principle, protocol: str, weight: float, principle_id: str) -> Asked:
    return (*(str(getattr(p, field)) for field in PROTOCOLS.get(protocol).asks), weight, principle_id)
