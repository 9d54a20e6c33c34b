"""How well a reward model learns from human-labelled pairs, against always preferring the longer or the shorter response.

    python bench/reward_hh.py --pairs FILE --train 976 --test 300 [--out FOLDER]

Trains on the first rows of the file, tests on the last ones, and prints one JSON object with accuracy, its 95 % interval and n. With the
embedded model on two CPU cores 976 pairs take 10 to 20 minutes. An `--out` that was given before is resumed.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from cai.data.human import load_pairs
from cai.errors import RecipeError
from cai.models.loading import load_tokenizer
from cai.recipe import LoraSpec, ModelSpec, RewardConfig
from cai.records import Preference
from cai.train.encode import encode_turn
from cai.train.ensemble import load_ensemble
from cai.train.reward import measure_reward, train_reward


def length_baseline(model: ModelSpec, pairs: tuple[Preference, ...]) -> float:
    """Return how often the longer response, in tokens, is the better one; equal lengths count half."""
    tokenizer = load_tokenizer(model)
    right = 0.0
    for pair in pairs:
        chosen, rejected = (len(encode_turn(tokenizer, pair.prompt.messages, text)[1]) for text in (pair.chosen, pair.rejected))
        right += 0.5 if chosen == rejected else float((chosen > rejected) == (pair.p_chosen > 0.5))
    return right / len(pairs)


def note(step: int, total: int, metrics: dict[str, float]) -> None:
    """Show a step on standard error."""
    shown = " ".join(f"{name} {metrics[name]:.3f}" for name in ("loss", "accuracy", "margin"))
    print(f"step {step}/{total} {shown}", file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line, train, test, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--train", type=int, default=976)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pairs = load_pairs(given.pairs).preferences
    if len(pairs) < given.train + given.test:
        raise RecipeError(f"{given.pairs}: {len(pairs)} pairs, fewer than --train {given.train} and --test {given.test} together")
    train, test = pairs[: given.train], pairs[len(pairs) - given.test :]
    config = RewardConfig(
        max_length=given.max_length,
        learning_rate=given.learning_rate,
        epochs=given.epochs,
        batch_size=given.batch_size,
        precision=given.precision,
        lora=LoraSpec(layers=given.layers, rank=given.rank, alpha=2 * given.rank),
        save_steps=20,
    )
    model = ModelSpec(path=given.model)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        result = train_reward(config, model, train, (), out, given.seed, note)
        trained = time.monotonic()
        metrics = measure_reward(load_ensemble([out]), test)
    report = {
        "accuracy": metrics.accuracy,
        "low": metrics.low,
        "high": metrics.high,
        "n": metrics.n,
        "calibration_error": metrics.calibration_error,
        "longer_is_better": length_baseline(model, test),
        "trained_on": result.examples,
        "steps": result.steps,
        "train_seconds": round(trained - started, 1),
        "test_seconds": round(time.monotonic() - trained, 1),
        "settings": {k: v for k, v in vars(given).items() if k not in ("pairs", "out")},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
