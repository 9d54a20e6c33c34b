"""Several processes on one run, as `torchrun` starts them: one leads, the others join it where weights are trained.

Answering, judging and writing are the leader's alone: calls are kept in one store, and a local model's batches fill one device. Before a
stage that trains, the leader calls the others by the stage's number; they read the same records and train beside it, as
`transformers.Trainer` has it, and wait again. All of them see the same run directory, so on several machines it lies on a shared disk.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cai.errors import TrainingError
from cai.train.running import is_first_process, process_count

PATIENCE = timedelta(days=30)
"""How long the others wait for the leader, who may be sampling for hours; the library's own limits are minutes."""
STALL = timedelta(hours=2)
"""How long a process waits for the others inside a training, where the first also measures and saves."""
_OVER, _DONE = -1, -2


class RankZeroFailed(Exception):
    """The leader has failed, and says itself why."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, seen from one of them."""

    size: int = 1
    is_rank_zero: bool = True
    _group: Any = None

    def broadcast(self, stage: int) -> None:
        """Have the others run a stage, by its number. Only the leader calls."""
        if self.size > 1:
            self._broadcast(stage)

    def on_rank_zero(self, work: Callable[[], None]) -> None:
        """Have the leader do something within a stage that all take part in, while the others wait.

        Raises:
            LeaderGone: in the others, where it failed.
        """
        if self.is_rank_zero:
            work()
            self.broadcast(_DONE)
        elif self.next_stage() is None:
            raise RankZeroFailed

    def shutdown(self) -> None:
        """Let the others go. Only the leader does, as its last word."""
        self.broadcast(_OVER)

    def next_stage(self) -> int | None:
        """Wait for the leader, and return the number of the stage to run, or None where it is done or gone."""
        try:
            stage = self._broadcast(_OVER)
        except RuntimeError:  # its connection broke: it has failed, and says so itself
            return None
        return None if stage == _OVER else stage

    def _broadcast(self, stage: int) -> int:
        import torch
        import torch.distributed as dist

        word = torch.tensor([stage])
        dist.broadcast(word, src=0, group=self._group)
        return int(word.item())


def refuse_processes(what: str) -> None:
    """Raise `TrainingError` where a launcher has started several processes of something that each would do alone, and write."""
    if process_count() > 1:
        raise TrainingError(
            f"{what}: started {process_count()} times at once (WORLD_SIZE), and only `cai run` shares its work among processes.\n"
            "Fix: call it without torchrun or accelerate launch"
        )


def join_process_group() -> ProcessGroup:
    """Meet the other processes of this run, if a launcher started any.

    Returns:
        A team of one where there are none; else the whole team, on a channel of its own that waits for `PATIENCE`.
    """
    if process_count() == 1:
        return ProcessGroup()
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "1"  # without it the trainers' processes would not find each other
    PartialState(cpu=on_cpu, timeout=STALL)
    return ProcessGroup(process_count(), is_first_process(), dist.new_group(backend="gloo", timeout=PATIENCE))
