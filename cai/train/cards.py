"""Model cards: the README.md beside an adapter, in the Hub's format. What is known is written down; what isn't is not made up."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cai import __version__
from cai.core.jsonl import write_text
from cai.recipe import PolicyConfig, TrainSpec
from cai.records import Preference
from cai.train.checkpoints import TrainResult

TITLES = {"sft": "SFT policy", "reward": "Reward model", "policy": "Policy"}
USES = {
    "sft": "Trained to imitate revised responses. It is the start and the reference of preference training.",
    "reward": "Scores a response to a conversation with one number; only differences between responses to the same prompt mean anything.",
    "policy": "Trained on preferences judged under a constitution.",
}
LIMITS = {
    "sft": "It learned to sound like its revisions, and no better than they are. A small model revises poorly.",
    "reward": (
        "It learned who wins in its training pairs, by whatever tells them apart: length, tone, a refusal's first words. Outside of "
        "prompts like those, and against a policy trained to please it, its scores mislead. Labels by an AI judge are the judge's opinions."
    ),
    "policy": (
        "It is as harmless, or as evasive, as its labels made it. Labels by an AI judge carry that judge's errors. "
        "No adapter makes a model safe against someone who sets out to misuse it."
    ),
}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says."""

    kind: str
    """`sft`, `reward` or `policy`."""
    base: str
    method: str
    sources: dict[str, int]
    """Examples given, by source."""
    config: TrainSpec
    result: TrainResult
    seed: int
    measured: dict[str, str] = field(default_factory=dict)
    """Results on data that was not trained on, as text with n and interval."""
    data_slice: str = ""
    """What of the whole training data it saw, where it is one of several."""


def preference_sources(preferences: Sequence[Preference]) -> dict[str, int]:
    """Count pairs by who labelled them."""
    counts: dict[str, int] = {}
    for preference in preferences:
        counts[preference.source] = counts.get(preference.source, 0) + 1
    return counts


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write `README.md` into an adapter's folder."""
    from cai.train.running import is_first_process

    if is_first_process():
        write_text(folder / "README.md", render_card(facts))


def render_card(facts: CardFacts) -> str:
    """Return the card as Markdown with the Hub's metadata block."""
    result = facts.result
    settings = {k: v for k, v in msgspec.to_builtins(facts.config).items() if k != "lora"}
    settings |= {f"lora.{k}": v for k, v in msgspec.to_builtins(facts.config.lora).items()} | {"seed": facts.seed, "steps": result.steps}
    dropped = [f"{n} left out: {reason.replace('_', ' ')}" for reason, n in result.dropped.items()]
    method = facts.config.method if isinstance(facts.config, PolicyConfig) else facts.kind
    hub_base = [f"base_model: {facts.base}"] if facts.base.count("/") == 1 and not facts.base.startswith((".", "/", "~")) else []
    lines = [
        "---",
        *hub_base,
        "library_name: peft",
        "tags: [constitutional-ai, lora, " + method.replace("reward", "reward-model") + "]",
        "---",
        "",
        f"# {TITLES[facts.kind]}",
        "",
        f"{USES[facts.kind]} Made by `cai` {__version__}. A LoRA adapter for `{facts.base}`; {facts.method}.",
        "",
        "## Data",
        "",
        *[f"- {source}: {count}" for source, count in sorted(facts.sources.items())],
        f"- trained on: {result.examples}",
        *([f"- slice: {facts.data_slice}"] if facts.data_slice else []),
        *[f"- {text}" for text in dropped],
        "",
        "## Results",
        "",
        *_table("held-out", facts.measured),
        *_table("training, last step", {k: f"{v:.4g}" for k, v in result.metrics.items()}),
        "## Settings",
        "",
        *_table("setting", {k: str(v) for k, v in settings.items()}),
        "## Limits",
        "",
        LIMITS[facts.kind],
        "",
    ]
    return "\n".join(lines)


def _table(heading: str, rows: dict[str, str]) -> list[str]:
    return [f"| {heading} | |", "|---|---|", *[f"| {key} | {value} |" for key, value in rows.items()], ""] if rows else []
