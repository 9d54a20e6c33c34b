"""Records and settings for the room's tests."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cai.recipe import LoraSpec, ModelSpec, PolicyConfig, RewardConfig, SFTConfig
from cai.records import Message, Preference, Prompt, Provenance, SFTExample

BY = Provenance("test")
FAST: dict[str, Any] = {"precision": "float32", "batch_size": 4, "learning_rate": 1e-2, "warmup_fraction": 0.0, "lora": LoraSpec(rank=4)}


def prompt(i: int, text: str = "") -> Prompt:
    return Prompt(f"p{i}", "harmful", (Message("user", text or f"question {i}?"),), "test")


def example(i: int, completion: str = "") -> SFTExample:
    return SFTExample(prompt(i), completion or f"answer {i}.", (), "revision", BY)


def preference(i: int, p: float = 1.0, weight: float = 1.0) -> Preference:
    return Preference(prompt(i), f"yes {i}, gladly.", f"no {i}!", p, weight, "ai:test", (), BY)


def examples(n: int) -> list[SFTExample]:
    return [example(i) for i in range(n)]


def preferences(n: int, p: float = 1.0, weight: float = 1.0) -> list[Preference]:
    return [preference(i, p, weight) for i in range(n)]


def model_at(folder: Path) -> ModelSpec:
    return ModelSpec(path=str(folder), precision="float32")


def sft_config(**changes: Any) -> SFTConfig:
    return SFTConfig(**{**FAST, **changes})


def reward_config(**changes: Any) -> RewardConfig:
    return RewardConfig(**{**FAST, **changes})


def dpo_config(**changes: Any) -> PolicyConfig:
    return PolicyConfig(**{**FAST, **changes})


def ppo_config(**changes: Any) -> PolicyConfig:
    return PolicyConfig(**{**FAST, "method": "ppo", **changes})


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Return the saved weights of an adapter; copied, because the file is mapped into memory and may be overwritten."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def assert_same_weights(a: Path, b: Path, **tolerance: float) -> None:
    left, right = adapter(a), adapter(b)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **(tolerance or {"rtol": 0.0, "atol": 0.0}), msg=lambda m, n=name: f"{n}: {m}")


def moved(trainer: Any) -> Any:
    """Move the policy away from its reference, so that there is a loss to speak of."""
    generator = torch.Generator().manual_seed(0)
    for p in trainer.model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
    trainer.state.global_step = 1
    return trainer
