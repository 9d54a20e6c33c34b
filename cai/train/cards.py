"""Model cards: the README.md in an adapter's folder, in the Hub's format."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cai import __version__
from cai.core.jsonl import write_text
from cai.core.text.markdown import code, escape_markdown, hub_base
from cai.recipe import PolicyConfig, TrainSpec
from cai.records import Preference, Prompt, SFTExample
from cai.train.checkpoints import TrainResult

TITLES = {"sft": "SFT policy", "reward": "Reward model", "policy": "Policy"}
USES = {
    "sft": "Trained to imitate revised responses. Preference training starts from it, and uses it as the reference.",
    "reward": "Scores a response to a conversation with one number; only differences between responses to the same prompt mean anything.",
    "policy": "Trained on preferences judged under a constitution.",
}
LIMITS = {
    "sft": "It imitates its training revisions, and is no better than they are. A small model revises poorly.",
    "reward": (
        "It learned to predict the preferred response in its training pairs from any feature that helps: length, tone, the first words "
        "of a refusal. Its scores are unreliable on other kinds of prompts, and for a policy trained to maximise them. Labels by an AI "
        "judge contain that judge's errors."
    ),
    "policy": (
        "It is as harmless, or as evasive, as its labels. Labels by an AI judge contain that judge's errors. "
        "No adapter makes a model safe against deliberate misuse."
    ),
}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The contents of a model card."""

    kind: str
    """`sft`, `reward` or `policy`."""
    base: str
    method: str
    sources: dict[str, int]
    """Number of training examples by source."""
    config: TrainSpec
    result: TrainResult
    seed: int
    measured: dict[str, str] = field(default_factory=dict)
    """Results on held-out data, as text with n and confidence interval."""
    data_slice: str = ""
    """The part of the training data that it was trained on, for a member of an ensemble."""


def sources_of(examples: Iterable[Preference | SFTExample | Prompt]) -> dict[str, int]:
    """Count examples by their source."""
    return dict(Counter(example.source for example in examples))


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write `README.md` into an adapter's folder. Call it on rank 0 only."""
    write_text(folder / "README.md", render_card(facts))


def render_card(facts: CardFacts) -> str:
    """Return the card as Markdown, with the Hub's metadata block."""
    result = facts.result
    settings = {k: v for k, v in msgspec.to_builtins(facts.config).items() if k != "lora"}
    settings |= {f"lora.{k}": v for k, v in msgspec.to_builtins(facts.config.lora).items()} | {"seed": facts.seed, "steps": result.steps}
    dropped = [f"{n} left out: {reason.replace('_', ' ')}" for reason, n in result.dropped.items()]
    if result.truncated:
        dropped.append(f"{result.truncated} truncated on the left, to {facts.config.max_length} tokens")
    method = facts.config.method if isinstance(facts.config, PolicyConfig) else facts.kind
    lines = [
        "---",
        *hub_base(facts.base),
        "library_name: peft",
        "tags: [constitutional-ai, lora, " + method.replace("reward", "reward-model") + "]",
        "---",
        "",
        f"# {TITLES[facts.kind]}",
        "",
        f"{USES[facts.kind]} Made by `cai` {__version__}. A LoRA adapter for {code(facts.base)}; {facts.method}.",
        "",
        "## Data",
        "",
        *[f"- {escape_markdown(source)}: {count}" for source, count in sorted(facts.sources.items())],
        f"- trained on: {result.examples}",
        *([f"- slice: {facts.data_slice}"] if facts.data_slice else []),
        *[f"- {text}" for text in dropped],
        "",
        "## Results",
        "",
        *_table("held-out", facts.measured),
        *_table("training, last step", {k: f"{v:.4g}" for k, v in result.metrics.items() if k != "step_time"}),
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
    if not rows:
        return []
    return [f"| {heading} | |", "|---|---|", *[f"| {escape_markdown(key)} | {escape_markdown(value)} |" for key, value in rows.items()], ""]
