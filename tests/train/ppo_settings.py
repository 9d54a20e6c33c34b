"""Prompts and settings of a short PPO training."""

from typing import Any

from cai.recipe import MonitorConfig, PolicyConfig, PPOSpec
from tests.train.builders import ppo_config, prompt

PROMPTS = [prompt(i) for i in range(6)]
SHORT = {"response_length": 8, "num_ppo_epochs": 2, "num_mini_batches": 2}


def config(steps: int = 3, **changes: Any) -> PolicyConfig:
    """Settings for steps of eight responses each."""
    spec = PPOSpec(**{**SHORT, "total_episodes": 8 * steps, **changes.pop("ppo", {})})
    return ppo_config(**{"learning_rate": 1e-3, "save_steps": 1, "watch": MonitorConfig(every_steps=1), "ppo": spec, **changes})
