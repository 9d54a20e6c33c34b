"""What makes a training of a tiny model fast (one thread, a garbage collector that leaves the loaded libraries alone), and adapters."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="package")
def fast_trainings() -> Iterator[None]:
    """One thread: a small matrix product is faster alone than shared. Frozen heap: every training collects garbage at its start."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def sft(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an SFT adapter that differs from the base."""
    from cai.train.sft import train_sft
    from tests.train.builders import examples, model_at, sft_config

    folder = tmp_path_factory.mktemp("sft")
    train_sft(sft_config(epochs=3.0), model_at(tiny_model_dir), examples(4), folder, 0)
    return folder


@pytest.fixture(scope="package")
def members(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Folders of two reward models, of different rank, each with a centre."""
    from cai.recipe import LoraSpec
    from cai.train.reward.ensemble import write_centre
    from cai.train.reward.train import train_reward
    from tests.train.builders import model_at, preferences, reward_config

    folders = []
    for seed, rank in enumerate((4, 2)):
        folder = tmp_path_factory.mktemp(f"reward-{seed}")
        config = reward_config(epochs=3.0, lora=LoraSpec(rank=rank))
        train_reward(config, model_at(tiny_model_dir), preferences(4), (), folder, seed)
        write_centre(folder, [0.25 + seed])
        folders.append(folder)
    return tuple(folders)
