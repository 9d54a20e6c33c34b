"""TRL's three trainers, with what `cai` needs added: soft labels, weights, resumable checkpoints, silence.

Import it inside functions only: it loads torch and TRL. Pinned to TRL 1.16, whose hooks it uses: `_save_checkpoint`, `_send_telemetry`,
`_prepare_dataset`, `_metrics`, and the `_use_triton` switch of the fused LM head.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from transformers import Trainer, TrainerCallback
from trl import DPOTrainer, RewardTrainer, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference as DPOCollator
from trl.trainer.reward_trainer import DataCollatorForPreference as RewardCollator

from cai.errors import TrainingError
from cai.train.checkpoints import mark_whole
from cai.train.losses import dpo_loss, reward_loss

OnLog = Callable[[int, int, dict[str, float]], None]
LABELS = ("p_chosen", "weight")
FIRST_MARGIN = 0.05
"""Largest mean |β·(log-ratio)| at the first step: policy and reference are then the same weights, and differ by rounding only."""


@contextlib.contextmanager
def completion_positions_only() -> Iterator[None]:
    """Let TRL's fused LM head score only the positions that have a label, in a block.

    TRL does so where Triton runs; elsewhere it scores every prompt and padding position too and throws the result away, to keep
    shapes steady for compilers. We don't compile, and with a vocabulary of 49,152 the LM head is most of a step.
    """
    original = getattr(trl_utils, "_use_triton", None)
    if original is None:
        yield
        return
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = original


def label_tensors(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return `p_chosen` (B,) and `weight` (B,) of a list of rows."""
    return {name: torch.tensor([float(e[name]) for e in examples]) for name in LABELS}


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Passes each step's numbers on, and stops a training that has gone wrong before its weights are saved."""

    def __init__(self, report: OnLog | None, learning_rate: float) -> None:
        self.report = report
        self.learning_rate = learning_rate

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Called by the trainer after each step. Raises `TrainingError` on a number that is not finite."""
        if logs is None or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise TrainingError(
                    f"training diverged: {name} is {logs[name]} at step {state.global_step} of {state.max_steps}.\n"
                    f"Fix: lower learning_rate (now {self.learning_rate:g}), raise warmup_fraction, or use precision: float32"
                )
        if self.report is not None and state.is_world_process_zero:
            self.report(state.global_step, state.max_steps, {k: float(v) for k, v in logs.items()})


class _Resumable(Trainer):  # type: ignore[misc]
    """Marks a checkpoint when it is whole; writes no model card of TRL's into it, and sends no telemetry."""

    fingerprint: str = ""

    def _send_telemetry(self) -> None:
        """TRL would report the kind of training to the Hub. A tool for alignment research does not phone home."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)
        if self.is_world_process_zero():
            mark_whole(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", self.fingerprint)


class _CountsExamples(_Resumable):
    """Divides the loss by the examples of the whole optimizer step, so that batch and accumulation are interchangeable."""

    loss_is_scaled_for_ga = True

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        count = torch.tensor(sum(len(batch["p_chosen"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def _count(self, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float | None:
        """Return what to divide this process's sum by: gradients are averaged over processes, so the sum is over all but not the mean."""
        return None if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes

    def _note(self, **values: torch.Tensor) -> None:
        """Record the mean over pairs and processes of some (B,) tensors, for the log."""
        mode = "train" if self.model.training else "eval"
        for name, value_B in values.items():
            mean = self.accelerator.gather(value_B.detach().float()).mean().item()
            self._metrics[mode][name.replace("__", "/")].append(mean)


class SFTRun(_Resumable, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT on rows that are already token ids."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, without scoring masked positions."""
        with completion_positions_only():
            return super().compute_loss(*args, **kwargs)


class SoftRewardCollator(RewardCollator):  # type: ignore[misc]
    """Pads pairs and carries their labels."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask` (2B, T), chosen first, and the labels (B,)."""
        return {**super().torch_call(examples), **label_tensors(examples)}


class SoftRewardRun(_CountsExamples, RewardTrainer):  # type: ignore[misc]
    """TRL's reward training with soft labels and weights."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return `reward_loss` of a batch; log scores, margin, accuracy against the label's side."""
        p_B, weight_B = inputs["p_chosen"], inputs["weight"]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        chosen_B, rejected_B = outputs.logits.squeeze(-1).float().chunk(2)
        center = self.args.center_rewards_coefficient or 0.0
        loss = reward_loss(chosen_B, rejected_B, p_B, weight_B, center=center, count=self._count(num_items_in_batch))
        margin_B = chosen_B - rejected_B
        self._note(mean_reward=(chosen_B + rejected_B) / 2, margin=margin_B, accuracy=(margin_B * (p_B - 0.5) > 0))
        return (loss, outputs) if return_outputs else loss


class SoftDPOCollator(DPOCollator):  # type: ignore[misc]
    """Pads pairs and carries their labels."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask` and `completion_mask` (2B, T), chosen first, and the labels (B,)."""
        return {**super().torch_call(examples), **label_tensors(examples)}


class SoftDPORun(_CountsExamples, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO with soft labels and weights: the sigmoid loss only, the reference an adapter or the bare base."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        # TRL's LM head also reckons entropy, mean logit and top-1 over the whole vocabulary for its log; nothing here reads them
        trl_utils.add_fused_lm_head(model.get_base_model(), outputs=("log_probs",))

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return `dpo_loss` of a batch; log implicit rewards, their margin, and accuracy against the label's side."""
        p_B, weight_B = inputs["p_chosen"], inputs["weight"]
        chosen_B, rejected_B = self._logps(model, inputs).chunk(2)
        unwrapped = self.accelerator.unwrap_model(self.model)
        reference = "ref" if "ref" in unwrapped.peft_config else None
        with torch.no_grad(), trl_utils.use_adapter(unwrapped, adapter_name=reference):
            reference_chosen_B, reference_rejected_B = self._logps(self.model, inputs).chunk(2)
        chosen_B, rejected_B = chosen_B - reference_chosen_B, rejected_B - reference_rejected_B
        loss = dpo_loss(chosen_B, rejected_B, p_B, weight_B, beta=self.beta, count=self._count(num_items_in_batch))
        margin_B = self.beta * (chosen_B - rejected_B)
        if self.state.global_step == 0:
            self._check_reference(chosen_B, rejected_B)
        self._note(
            rewards__chosen=self.beta * chosen_B,
            rewards__rejected=self.beta * rejected_B,
            rewards__margins=margin_B,
            rewards__accuracies=(margin_B * (p_B - 0.5) > 0),
        )
        return (loss, None) if return_outputs else loss

    def _logps(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the log-probability of each completion, summed over its tokens, (2B,)."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        with completion_positions_only():
            outputs = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, fused_lm_head=True, use_cache=False
            )
        return outputs.log_probs.sum(dim=1)  # type: ignore[no-any-return]

    def _check_reference(self, chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> None:
        """Raise `TrainingError` where policy and reference differ before the first update."""
        largest = self.beta * torch.cat((chosen_B, rejected_B)).detach().abs().mean().item()
        if largest > FIRST_MARGIN:
            raise TrainingError(
                f"before the first update the policy already differs from its reference: mean |β·log-ratio| is {largest:.3f}, "
                f"expected at most {FIRST_MARGIN}. The reference is not the adapter that training starts from."
            )
