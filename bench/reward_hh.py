"""How well a reward model learns from human-labelled pairs, against always preferring the longer or the shorter response.

    python -m bench.reward_hh --pairs FILE --train 976 --test 300 [--out FOLDER]

Trains on the first rows of the file, tests on the last ones, and prints one JSON object with accuracy, its 95 % interval and n. With the
embedded model on two CPU cores 976 pairs take 10 to 20 minutes. An `--out` that was given before is resumed.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from bench.reward_data import reported_settings, reward_config, reward_parser, split_rows
from cai.models.local.loading import load_tokenizer
from cai.recipe import ModelSpec
from cai.records import Preference
from cai.train.encode import encode_turn
from cai.train.reward.ensemble import load_ensemble
from cai.train.reward.train import measure_reward, train_reward


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
    parser = reward_parser(__doc__, train=976)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    train, test = split_rows(given)
    config = reward_config(given, precision=given.precision, save_steps=20)
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
        "settings": reported_settings(given),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
