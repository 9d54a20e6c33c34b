"""The audit's own questions: what is in `prompts/audit/`, typed. Asking them is `asking`'s matter, counting the answers the checks'."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cai.core.jsonl import read_records
from cai.data.prompts import load_prompts
from cai.errors import DataError
from cai.ids import split_fraction
from cai.recipe import PromptSource
from cai.records import Prompt

FOLDER = Path("prompts/audit")
EVALUATION = ("prompts/eval_harmful.jsonl", "prompts/eval_borderline.jsonl", "prompts/eval_helpful.jsonl")


@dataclass(frozen=True, slots=True)
class OpinionProbe:
    """A question with a known answer, asked plainly, beside the right opinion, and beside a wrong one."""

    id: str
    category: str
    question: str
    right: tuple[str, ...]
    """Words of which one is in every right answer."""
    wrong: tuple[str, ...]
    """Words for what the wrong opinion says."""
    with_right: str
    with_wrong: str
    answer: str
    """A right answer in a sentence, for asking "are you sure?" about it."""


@dataclass(frozen=True, slots=True)
class FactProbe:
    """A short factual question and the words of which one is in every right answer."""

    id: str
    category: str
    question: str
    right: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of good prose, and a request that it answers."""

    id: str
    category: str
    prompt: str
    text: str


Probe = TypeVar("Probe", OpinionProbe, FactProbe, Passage)


@dataclass(frozen=True)
class Probes:
    """Everything that a model is asked."""

    opinions: tuple[OpinionProbe, ...] = ()
    facts: tuple[FactProbe, ...] = ()
    prose: tuple[Prompt, ...] = ()
    """Prompts that prose fits: a list or a heading in the answer is form for its own sake."""
    prompts: tuple[Prompt, ...] = field(default=())
    """Harmful, borderline and helpful prompts, for the refusal rates."""


def load_probes(root: Path, limit: int | None = None, seed: int = 0, prompts: tuple[str, ...] = EVALUATION) -> Probes:
    """Read the probe sets of a workspace.

    Args:
        root: the workspace.
        limit: keep this many of each file, chosen by hash, so that a higher limit only adds; None keeps all.
        seed: of that choice.
        prompts: files for the refusal rates, in any format of `cai.data.prompts`; XSTest and OR-Bench files are recognised.

    Raises:
        DataError: a file is missing, can't be read, or repeats an id.
    """
    opinions = _read(root / FOLDER / "sycophancy.jsonl", OpinionProbe)
    facts = _read(root / FOLDER / "facts.jsonl", FactProbe)
    paths = (str(FOLDER / "prose.jsonl"), *prompts)
    prose, *others = (load_prompts(PromptSource(path=path, limit=limit), root, seed).prompts for path in paths)
    return Probes(
        _some(opinions, limit, seed), _some(facts, limit, seed), prose, tuple({p.id: p for group in others for p in group}.values())
    )


def load_knowledge(root: Path, limit: int | None = None, seed: int = 0) -> tuple[tuple[FactProbe, ...], tuple[Passage, ...]]:
    """Read a workspace's facts and passages, at most `limit` of each, chosen as `load_probes` does. Raises as that does."""
    facts, passages = _read(root / FOLDER / "facts.jsonl", FactProbe), _read(root / FOLDER / "passages.jsonl", Passage)
    return _some(facts, limit, seed), _some(passages, limit, seed)


def _read(path: Path, record_type: type[Probe]) -> list[Probe]:
    found = list(read_records(path, record_type))
    ids = {p.id for p in found}
    if len(ids) != len(found):
        raise DataError(f"{path}: {len(found) - len(ids)} probes repeat another's id; give each its own")
    return found


def _some(probes: list[Probe], limit: int | None, seed: int) -> tuple[Probe, ...]:
    if limit is None or limit >= len(probes):
        return tuple(probes)
    chosen = {id(p) for p in sorted(probes, key=lambda p: split_fraction(p.id, f"limit:{seed}"))[:limit]}
    return tuple(p for p in probes if id(p) in chosen)
