"""Observes a training for over-optimization from within TRL's trainer. Import it inside functions only: it loads torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cai.ids import derive_seed
from cai.recipe import OnlineConfig
from cai.train.live_policy import LivePolicy
from cai.train.monitor import Monitor, alarm, keep_best


class MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Observes the policy before the first step and whenever the monitor is due, keeps the best weights, and stops on its verdict."""

    def __init__(self, monitor: Monitor, trainer: Any, out: Path, limits: OnlineConfig, warn: Callable[[str], None]) -> None:
        self.monitor = monitor
        self.trainer = trainer
        self.out = out
        self.limits = limits
        self.warn = warn
        self.warned = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Load earlier observations, or make the first one."""
        if state.is_world_process_zero:
            self.monitor.resume(state.global_step or -1)
        if state.global_step == 0:
            self._observe_if_due(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Observe the policy if due. This is before the step's checkpoint, so that a checkpoint's observations are always on disk."""
        if state.global_step > 0:
            self._observe_if_due(state, control)

    def _observe_if_due(self, state: Any, control: Any) -> None:
        from accelerate.utils import broadcast_object_list

        step = state.global_step
        if not self.monitor.due(step, state.max_steps):
            return
        verdicts = ["go"]
        if state.is_world_process_zero:
            verdicts[0] = self._observe(step)
        verdict = broadcast_object_list(verdicts)[0]
        if verdict != "go" and not self.warned and state.is_world_process_zero:
            self.warned = True
            self.warn(alarm(self.monitor, verdict))
        if verdict == "stop":  # no checkpoint here: a training resumed from it would take one more step
            control.should_training_stop, control.should_save = True, False

    def _observe(self, step: int) -> str:
        policy = LivePolicy(self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer.processing_class)
        ids = [policy.encode(p) for p in self.monitor.prompts]
        seeds = [derive_seed(self.trainer.args.seed, "watch", p.id) for p in self.monitor.prompts]
        completions = policy.sample(ids, self.limits.max_tokens, 1.0, seeds, thinking_tokens=self.limits.thinking_tokens)
        ratios = policy.kl(ids, completions)
        verdict = self.monitor.observe(step, sum(ratios) / len(ratios), [policy.decode(c) for c in completions])
        keep_best(self.monitor, self.out, lambda folder: policy.model.save_pretrained(folder, selected_adapters=["default"]))
        return verdict
