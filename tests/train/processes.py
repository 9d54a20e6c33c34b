"""Run by `torchrun` in `test_processes.py`: one small training of each kind, in as many processes as were started."""

import sys
from collections.abc import Callable
from pathlib import Path

from cai.pipeline.methods.grpo import GRPO
from cai.pipeline.methods.rloo import RLOO
from cai.recipe import ModelSpec, MonitorConfig, OnlineConfig, PolicyConfig
from cai.records import Message, RewardScore
from cai.train.dpo import train_dpo
from cai.train.kto import train_kto
from cai.train.monitor import FRONTIER, Items, Monitor
from cai.train.processes import join_process_group
from cai.train.reward.train import train_reward
from cai.train.rl.grpo import train_online
from cai.train.rl.rewards import RewardFunction, proxy_of
from cai.train.rl.self_distill import train_self_distilled
from cai.train.running import PolicyJob, process_count
from cai.train.sft import train_sft
from tests.train.builders import dpo_config, example, model_at, preference, prompt, reward_config, sft_config

STEPS = 3
BATCH = 4
"""Of all processes together."""
ONLINE = OnlineConfig(num_generations=2, max_tokens=6)


def sampled(config: PolicyConfig, model: ModelSpec, sft: Path, folder: Path) -> None:
    """Train a policy on its own samples, watched by the opposite of what it is rewarded with."""
    prompts = [prompt(i) for i in range(STEPS * BATCH // ONLINE.num_generations)]

    def watch(rewarding: RewardFunction) -> Monitor:
        gold = lambda items: [-s.value for s in letters(items)]  # noqa: E731
        return Monitor(prompts, MonitorConfig(every_steps=2, select="last"), proxy_of(rewarding, prompts), gold, folder / FRONTIER)

    method, load = {"grpo": GRPO, "rloo": RLOO}[config.method], lambda: RewardFunction(ONLINE.rewards, letters)
    train_online(method, PolicyJob(config, model, sft, folder, 0), prompts, load, "letters", load_monitor=watch)


def self_distilled(config: PolicyConfig, model: ModelSpec, sft: Path, folder: Path) -> None:
    """Train a policy on its own answers towards what it would say if it were told to shout."""
    prompts = [prompt(i) for i in range(STEPS * BATCH)]
    told = {p.id: [Message("user", f"{p.messages[-1].content} Shout!")] for p in prompts}
    train_self_distilled(PolicyJob(config, model, sft, folder, 0), prompts, told)


def letters(items: Items) -> list[RewardScore]:
    """Twice the share of ASCII letters and digits: half of what the untrained model writes is something else."""
    shares = [2 * sum(c.isascii() and c.isalnum() for c in text) / max(1, len(text)) for _, text in items]
    return [RewardScore(share, 0.25, (share - 0.25, share + 0.25)) for share in shares]


def run_all(model_dir: Path, out: Path) -> None:
    """Train SFT, then a reward model, and the policies from it, and save them in `out`."""
    changes = {"batch_size": BATCH // process_count(), "epochs": 1.0, "learning_rate": 1e-3}
    texts = ["yes.", "no, and a much longer answer than that.", "perhaps", "it depends on whom one asks."]
    examples = [example(i, texts[i % 4] + str(i)) for i in range(STEPS * BATCH)]
    pairs = [preference(10**i % 997, 0.5 + i / 30, 1.0 + (i % 3) / 2) for i in range(STEPS * BATCH)]
    model = model_at(model_dir)
    trainings: dict[str, Callable[[Path], object]] = {
        "sft": lambda folder: train_sft(sft_config(**changes), model, examples, folder, 0),
        "reward": lambda folder: train_reward(reward_config(**changes), model, pairs, [], folder, 0),
        "dpo": lambda folder: train_dpo(dpo_config(**changes), model, out / "sft", pairs, folder, 0),
        # the last of three steps has one pair left: it and repeats for the first process, repeats alone for the second
        "dpo-short": lambda folder: train_dpo(dpo_config(**changes), model, out / "sft", pairs[: 2 * BATCH + 1], folder, 0),
        "kto": lambda folder: train_kto(dpo_config(**changes), model, out / "sft", pairs[: STEPS * BATCH // 2], folder, 0),
        "grpo": lambda folder: sampled(dpo_config(**changes, method="grpo", online=ONLINE), model, out / "sft", folder),
        "rloo": lambda folder: sampled(dpo_config(**changes, method="rloo", online=ONLINE), model, out / "sft", folder),
        "distill": lambda folder: self_distilled(dpo_config(**changes, method="distill", online=ONLINE), model, out / "sft", folder),
    }
    for name, train in trainings.items():
        train(out / name)


if __name__ == "__main__":
    join_process_group()
    run_all(Path(sys.argv[1]), Path(sys.argv[2]))
