"""What makes a training of a tiny model fast: one thread, and a garbage collector that leaves the loaded libraries alone."""

import gc
from collections.abc import Iterator

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
