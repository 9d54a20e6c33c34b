"""The process group of a run that `torchrun` has started: rank 0 runs the pipeline, the other ranks take part in training only.

Only rank 0 generates, judges and writes: there is one call store, and a local model's batches fill one device. Before a stage that
trains, rank 0 broadcasts the stage's number. The other ranks then read the same records, train with it under `transformers.Trainer`, and
wait for the next stage. All ranks need the same run directory, so on several machines it must be on a shared disk.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cai.errors import TrainingError
from cai.train.running import is_first_process, process_count

PATIENCE = timedelta(days=30)
"""Timeout of the other ranks while they wait for rank 0, which may generate for hours. PyTorch's defaults are minutes."""
STALL = timedelta(hours=2)
"""Timeout within a training, where rank 0 also evaluates and saves."""
_OVER, _DONE = -1, -2


class RankZeroFailed(Exception):
    """Rank 0 has failed; its own error says why."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, as one of them sees it."""

    size: int = 1
    is_rank_zero: bool = True
    _group: Any = None

    def broadcast(self, stage: int) -> None:
        """Start a stage, by its number, on the other ranks. Call it on rank 0 only."""
        if self.size > 1:
            self._broadcast(stage)

    def on_rank_zero(self, work: Callable[[], None]) -> None:
        """Do some work on rank 0 within a stage of all ranks, while the others wait. If it fails, they raise `RankZeroFailed`."""
        if self.is_rank_zero:
            work()
            self.broadcast(_DONE)
        elif self.next_stage() is None:
            raise RankZeroFailed

    def shutdown(self) -> None:
        """End the other ranks. Call it on rank 0 only, at the end of the run."""
        self.broadcast(_OVER)

    def next_stage(self) -> int | None:
        """Wait for rank 0, and return the number of the stage to run, or None if rank 0 has finished or failed."""
        try:
            stage = self._broadcast(_OVER)
        except RuntimeError:  # the connection broke: rank 0 has failed, and reports its own error
            return None
        return None if stage == _OVER else stage

    def _broadcast(self, stage: int) -> int:
        import torch
        import torch.distributed as dist

        number = torch.tensor([stage])
        dist.broadcast(number, src=0, group=self._group)
        return int(number.item())


def refuse_processes(what: str) -> None:
    """Raise `TrainingError` if a launcher has started several processes of a command that can't share its work."""
    if process_count() > 1:
        raise TrainingError(
            f"{what}: started in {process_count()} processes (WORLD_SIZE), but only `cai run` can use several processes.\n"
            "Fix: call it without torchrun or accelerate launch"
        )


def join_process_group() -> ProcessGroup:
    """Join the process group of this run, if a launcher has started several processes.

    Returns:
        The process group; of size 1 without a launcher.
    """
    if process_count() == 1:
        return ProcessGroup()
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "1"  # without it the trainers would not form a process group
    PartialState(cpu=on_cpu, timeout=STALL)
    return ProcessGroup(process_count(), is_first_process(), dist.new_group(backend="gloo", timeout=PATIENCE))
