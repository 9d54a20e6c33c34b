"""What the benches of reward models on human-labelled pairs share: their settings on the command line, and which pairs are whose."""

import argparse
from pathlib import Path
from typing import Any

from cai.errors import RecipeError
from cai.labels.load import load_pairs
from cai.recipe import LoraSpec, RewardConfig
from cai.records import Preference


def reward_parser(description: str | None, train: int) -> argparse.ArgumentParser:
    """Return a parser of the shared settings; `train` is how many pairs to train on where nothing is said."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--train", type=int, default=train)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def split_rows(given: argparse.Namespace) -> tuple[tuple[Preference, ...], tuple[Preference, ...]]:
    """Return the first rows of the file, to train on, and the last ones, to test on. Raises `RecipeError` where they would overlap."""
    pairs = load_pairs(given.pairs).preferences
    if len(pairs) < given.train + given.test:
        raise RecipeError(f"{given.pairs}: {len(pairs)} pairs, fewer than --train {given.train} and --test {given.test} together")
    return pairs[: given.train], pairs[len(pairs) - given.test :]


def reward_config(given: argparse.Namespace, **more: Any) -> RewardConfig:
    """Return the shared settings as a recipe has them, with more of its own."""
    return RewardConfig(
        max_length=given.max_length,
        learning_rate=given.learning_rate,
        epochs=given.epochs,
        batch_size=given.batch_size,
        lora=LoraSpec(layers=given.layers, rank=given.rank, alpha=2 * given.rank),
        **more,
    )


def reported_settings(given: argparse.Namespace) -> dict[str, Any]:
    """Return what a report repeats of its settings: all but where files lie."""
    return {k: v for k, v in vars(given).items() if k not in ("pairs", "out")}
