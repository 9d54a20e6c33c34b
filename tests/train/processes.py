"""Run by `torchrun` in `test_processes.py`: one small training of each kind, in as many processes as were started."""

import sys
from collections.abc import Callable
from pathlib import Path

from cai.train.dpo import train_dpo
from cai.train.reward import train_reward
from cai.train.sft import train_sft
from cai.train.team import gather_team, process_count
from tests.train.builders import dpo_config, example, model_at, preference, reward_config, sft_config

STEPS = 3
BATCH = 4
"""Of all processes together."""


def run_all(model_dir: Path, out: Path) -> None:
    """Train SFT, then a reward model and DPO from it, and save them in `out`."""
    changes = {"batch_size": BATCH // process_count(), "epochs": 1.0, "learning_rate": 1e-3}
    texts = ["yes.", "no, and a much longer answer than that.", "perhaps", "it depends on whom one asks."]
    examples = [example(i, texts[i % 4] + str(i)) for i in range(STEPS * BATCH)]
    pairs = [preference(10**i % 997, 0.5 + i / 30, 1.0 + (i % 3) / 2) for i in range(STEPS * BATCH)]
    model = model_at(model_dir)
    trainings: dict[str, Callable[[Path], object]] = {
        "sft": lambda folder: train_sft(sft_config(**changes), model, examples, folder, 0),
        "reward": lambda folder: train_reward(reward_config(**changes), model, pairs, [], folder, 0),
        "dpo": lambda folder: train_dpo(dpo_config(**changes), model, out / "sft", pairs, folder, 0),
    }
    for name, train in trainings.items():
        train(out / name)


if __name__ == "__main__":
    gather_team()
    run_all(Path(sys.argv[1]), Path(sys.argv[2]))
