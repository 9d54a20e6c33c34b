"""Measures a preference training on held-out pairs at the end of every epoch. Import it inside functions only: it loads torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from cai.core.jsonl import append_record, write_records
from cai.train.held_out import HELD_OUT, HeldOutPoint, best_point, is_over, read_points
from cai.train.monitor import best_folder


class HeldOutCallback(TrainerCallback):  # type: ignore[misc]
    """Measures at the last step of every epoch, keeps the weights of the lowest loss, and stops a training that no longer improves.

    It measures before the step's checkpoint, so a checkpoint's measurements are always on disk, and a resumed training decides the same.
    """

    def __init__(self, trainer: Any, rows: Sequence[dict[str, Any]], out: Path, patience: int | None, keep: bool) -> None:
        """Create the callback.

        Args:
            rows: encoded held-out rows, not empty.
            patience: measurements in a row without a lower loss after which training stops; None never stops.
            keep: whether to keep the weights of the best measurement.
        """
        self.trainer, self.rows, self.out, self.patience, self.keep = trainer, rows, out, patience, keep
        self.points: list[HeldOutPoint] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Load the measurements up to the checkpoint that training resumes from."""
        self.points = [p for p in read_points(self.out) if 0 < p.step <= state.global_step]
        if state.is_world_process_zero:
            write_records(self.out / HELD_OUT, self.points)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure if an epoch or the training ends with this step."""
        per_epoch = max(1, math.ceil(state.max_steps / args.num_train_epochs))
        if state.global_step % per_epoch and state.global_step != state.max_steps:
            return
        point = self._measured(state.global_step, state.global_step / per_epoch)
        self.points.append(point)
        if state.is_world_process_zero:
            append_record(self.out / HELD_OUT, point)
            if self.keep and best_point(self.points) == point:
                model = self.trainer.accelerator.unwrap_model(self.trainer.model)
                model.save_pretrained(best_folder(self.out, point.step), selected_adapters=["default"])
        if is_over(self.points, self.patience):  # no checkpoint here: a training resumed from it would take one more step
            control.should_training_stop, control.should_save = True, False

    def _measured(self, step: int, epoch: float) -> HeldOutPoint:
        trainer, size = self.trainer, self.trainer.args.per_device_train_batch_size
        sizes, losses, kept = [], [], trainer._metrics["eval"]
        kept.clear()
        trainer.model.eval()
        try:
            for start in range(0, len(self.rows), size):
                part = list(self.rows[start : start + size])
                inputs = trainer._prepare_inputs(trainer.data_collator(part))
                with torch.no_grad(), trainer.compute_loss_context_manager():
                    losses.append(float(trainer.compute_loss(trainer.model, inputs)))
                sizes.append(len(part))
            margins, right = kept["rewards/margins"], kept["rewards/accuracies"]
        finally:
            trainer.model.train()
        weighted = [[n * x for n, x in zip(sizes, values, strict=True)] for values in (losses, margins, right)]
        kept.clear()
        loss, margin, accuracy = (fmean(values) * len(sizes) / sum(sizes) for values in weighted)
        return HeldOutPoint(step, epoch, loss, margin, accuracy, sum(sizes))
