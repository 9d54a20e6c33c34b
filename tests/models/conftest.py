"""Tiny models run fastest on one thread, and more so when other work shares the processor; where a call store is."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give the threads back after each test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a workspace's call store is, in a folder that is not there yet."""
    return tmp_path / "workspace" / "calls.sqlite"
