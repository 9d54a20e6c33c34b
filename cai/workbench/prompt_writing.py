"""Let a model write prompts that exercise each principle of a constitution.

    principle × kind ─▶ five requests a call ─▶ unusable ones and near-copies dropped, counted ─▶ again where some are missing

Near-copies of other written prompts, of the principles and of the workspace's own prompts are dropped, above all of those that models are
evaluated on. The replies of a round are read in a fixed order, so the same seed gives the same prompts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cai.core.flow import in_words
from cai.data.prompts import load_prompts
from cai.data.repeats import NearRepeats
from cai.data.splits import SIMILARITY, compared_texts
from cai.errors import ConstitutionError, DataError, ModelError
from cai.ids import content_hash, derive_seed
from cai.models.requests import Sampling
from cai.recipe import PromptSource
from cai.records import LABELLED_KINDS, Constitution, Failure, Message, Principle, Prompt, PromptKind
from cai.session import Session
from cai.workbench.replies import fault, labelled
from cai.workbench.sample import Calls, calls_of

TEMPLATES: dict[PromptKind, str] = {"harmful": "write_harmful", "borderline": "write_borderline", "helpful": "write_helpful"}
PER_CALL = 5
"""Number of requests that a template asks for."""
ROUNDS = 4
"""Number of times that missing prompts are asked for."""
WRITING = Sampling(384, 1.0, 0.95)
SOURCE = "generated"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many prompts were written for one principle and kind."""

    principle: str
    kind: PromptKind
    wanted: int
    written: int


@dataclass(frozen=True, slots=True)
class WrittenPrompts:
    """Prompts that a model wrote, and what was dropped."""

    prompts: tuple[Prompt, ...]
    """In the order of the principles; `category` is the principle's id."""
    coverage: tuple[Coverage, ...]
    dropped: dict[str, int]
    """Requests that were dropped: reason to number. Near-copies name the file that has the other one."""
    failures: tuple[Failure, ...]
    """Replies that couldn't be read."""
    calls: Calls


@dataclass(slots=True)
class _Slot:
    """A principle and a kind to write for, and what was written."""

    principle: Principle
    kind: PromptKind
    wanted: int
    kept: list[Prompt] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Call:
    slot: _Slot
    number: int

    @property
    def id(self) -> str:
        return f"{self.slot.principle.id}/{self.slot.kind}#{self.number}"


async def write_prompts(
    session: Session, constitution: Constitution, n: int, kinds: Sequence[PromptKind], existing: Sequence[Prompt]
) -> WrittenPrompts:
    """Write up to `n` prompts for each principle, in equal parts for the kinds that it applies to.

    Args:
        session: an open session, whose model writes.
        constitution: the principles.
        n: number of prompts per principle.
        kinds: kinds to write for, of those that a principle applies to.
        existing: prompts that no written one may nearly repeat.

    Raises:
        ConstitutionError: no principle applies to the kinds.
        ModelError: the model wrote no usable request, or can't go on.
        TemplateError: a template can't be read.
    """
    slots = list(_slots(constitution, n, kinds))
    if not slots:
        raise ConstitutionError(f"constitution {constitution.id}: no principle applies to {', '.join(kinds)} prompts. Name another --kind.")
    names = [TEMPLATES[kind] for kind in LABELLED_KINDS]
    templates = dict(zip(LABELLED_KINDS, session.named_templates(*names), strict=True))

    async def ask(call: _Call) -> tuple[_Call, list[str]]:
        asked = templates[call.slot.kind].render({"statement": call.slot.principle.statement})
        seed = derive_seed(session.recipe.seed, "prompts", call.slot.principle.id, call.slot.kind, call.number)
        reply = await session.model.complete(asked.messages, WRITING, seed, asked.prefill)
        return call, labelled(reply, asked, templates[call.slot.kind])

    dropped: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    with NearRepeats(1.0 if SIMILARITY is None else SIMILARITY) as met:
        for p in existing:
            for text in compared_texts(p):
                met.keep(text, p.source)
        for principle in constitution.principles:
            met.keep(principle.statement, "a principle")
        for _ in range(ROUNDS):
            calls = []
            for slot in slots:
                for _ in range(-(-(slot.wanted - len(slot.kept)) // PER_CALL)):
                    key = f"{slot.principle.id}/{slot.kind}"
                    calls.append(_Call(slot, numbers[key]))
                    numbers[key] += 1
            if not calls:
                break
            for call, texts in await session.each(calls, ask, "calls", may_all_fail=True):
                for text in texts:
                    reason = _refused(text, call.slot, met, fault(text, templates[call.slot.kind]))
                    if reason is not None:
                        dropped[reason] += 1
    prompts = tuple(p for slot in slots for p in slot.kept)
    if not prompts:
        reasons = [", ".join(f"{reason} × {count}" for reason, count in dropped.most_common(3)), in_words(session.failures)]
        raise ModelError(
            f"{session.model.engine.name} wrote no usable prompt ({'; '.join(r for r in reasons if r)}). Name a larger model with --model."
        )
    coverage = tuple(Coverage(s.principle.id, s.kind, s.wanted, len(s.kept)) for s in slots)
    return WrittenPrompts(prompts, coverage, dict(dropped.most_common()), tuple(session.failures), calls_of(session))


def known_prompts(session: Session, files: Sequence[Path]) -> list[Prompt]:
    """Load the prompts of some files. Warns of a file that has none, whose prompts can't be compared."""
    found: list[Prompt] = []
    for file in files:
        try:
            found += load_prompts(PromptSource(path=str(file.resolve())), session.workspace.root, session.recipe.seed).prompts
        except DataError as e:
            session.reporter.warn(f"not compared with the written prompts: {e}")
    return found


def prompt_row(prompt: Prompt) -> dict[str, object]:
    """Return a prompt as a row of a prompt file."""
    return {"id": prompt.id, "kind": prompt.kind, "category": prompt.category, "messages": prompt.messages}


def _slots(constitution: Constitution, n: int, kinds: Sequence[PromptKind]) -> "list[_Slot]":
    slots = []
    for p in constitution.principles:
        mine = [kind for kind in LABELLED_KINDS if kind in kinds and kind in p.applies_to]
        parts = {kind: n // len(mine) + (i < n % len(mine)) for i, kind in enumerate(mine)}
        slots += [_Slot(p, kind, part) for kind, part in parts.items() if part]
    return slots


def _refused(text: str, slot: _Slot, met: NearRepeats, reason: str | None) -> str | None:
    """Keep a request as a prompt, or return why not."""
    if reason is not None:
        return reason
    if len(slot.kept) >= slot.wanted:
        return "more than wanted"
    if twin := met.twin(text, "another written prompt"):
        return f"near-copy of {twin}"
    name = f"{slot.principle.id}-{content_hash(text, 8)}"
    slot.kept.append(Prompt(name, slot.kind, (Message("user", text),), SOURCE, slot.principle.id))
    return None
