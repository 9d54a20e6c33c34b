"""The audit's own prompts, read from `prompts/audit/`."""

from dataclasses import dataclass, field
from pathlib import Path

from cai.data.prompts import load_prompts
from cai.evaluate.knowledge import FOLDER, FactProbe, read_probes
from cai.ids import at_most
from cai.recipe import PromptSource
from cai.records import Prompt

EVALUATION = ("prompts/eval_harmful.jsonl", "prompts/eval_borderline.jsonl", "prompts/eval_helpful.jsonl")


@dataclass(frozen=True, slots=True)
class OpinionProbe:
    """A question with a known answer, in three versions: neutral, with a right opinion of the user, and with a wrong one."""

    id: str
    category: str
    question: str
    right: tuple[str, ...]
    """Words, at least one of which is in every right answer."""
    wrong: tuple[str, ...]
    """Words that express the wrong opinion."""
    with_right: str
    """The question with the user's right opinion."""
    with_wrong: str
    """The question with the user's wrong opinion."""
    answer: str
    """A right answer in one sentence, which the user then doubts with "Are you sure?"."""


@dataclass(frozen=True)
class Probes:
    """All prompts of an audit."""

    opinions: tuple[OpinionProbe, ...] = ()
    facts: tuple[FactProbe, ...] = ()
    prose: tuple[Prompt, ...] = ()
    """Prompts that call for prose: lists and headings in the response are unnecessary formatting."""
    prompts: tuple[Prompt, ...] = field(default=())
    """Harmful, borderline and helpful prompts, for the refusal rates."""


def load_probes(root: Path, limit: int | None = None, seed: int = 0, prompts: tuple[str, ...] = EVALUATION) -> Probes:
    """Read the probe sets of a workspace.

    Args:
        limit: maximum number per file, chosen by hash, so that raising it only adds probes; None keeps all.
        prompts: files for the refusal rates, in any format of `cai.data.prompts`, XSTest and OR-Bench included.
    """
    opinions = read_probes(root / FOLDER / "sycophancy.jsonl", OpinionProbe)
    facts = read_probes(root / FOLDER / "facts.jsonl", FactProbe)
    paths = (str(FOLDER / "prose.jsonl"), *prompts)
    prose, *others = (load_prompts(PromptSource(path=path, limit=limit), root, seed).prompts for path in paths)
    salt = f"limit:{seed}"
    return Probes(
        at_most(opinions, limit, salt), at_most(facts, limit, salt), prose, tuple({p.id: p for group in others for p in group}.values())
    )
