"""TRL's SFT, reward and DPO trainers with soft labels, example weights and resumable checkpoints.

Import this module inside functions only: it loads torch and TRL. It needs TRL 1.16, whose private hooks it uses: `_save_checkpoint`,
`_send_telemetry`, `_prepare_dataset`, `_metrics`, and the `_use_triton` switch of the fused LM head.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import DPOTrainer, RewardTrainer, SFTTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference as RewardCollator

from cai.errors import TrainingError
from cai.models.local.prefix import common_prefix
from cai.recipe import DPOConfig
from cai.train.checkpoints import mark_complete
from cai.train.encode import IGNORED
from cai.train.losses import dpo_loss, reward_loss, weighted_mean
from cai.train.packing import PackedPairs, last_positions, pack

OnLog = Callable[[int, int, dict[str, float]], None]
LABELS = ("p_chosen", "p_desirable", "weight", "margin")
"""Label columns of a row. `p_desirable` is KTO's, for one completion; `margin` exists only in reward training with a margin."""
COMPLETIONS = ("chosen_ids", "rejected_ids")
REFERENCE_LOGPS = "reference_logps.safetensors"
FIRST_MARGIN = 0.05
"""Largest mean |β·(log-ratio)| at the first step. Policy and reference have the same weights then, so only rounding may differ."""


@contextlib.contextmanager
def completion_positions_only() -> Iterator[None]:
    """Make TRL's fused LM head compute only the positions that have a label, inside the block.

    TRL does so with Triton. Without it, TRL also computes all prompt and padding positions and discards them, to keep shapes constant for
    compilers. `cai` doesn't compile, and with a vocabulary of 49,152 the LM head takes most of a step's time.
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
    """Return the `LABELS` that the rows have, each (B,)."""
    return {name: torch.tensor([float(e[name]) for e in examples]) for name in LABELS if name in examples[0]}


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Reports each step's metrics, and stops a diverged training before its weights are saved."""

    def __init__(self, report: OnLog | None, learning_rate: float) -> None:
        self.report = report
        self.learning_rate = learning_rate

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Report a step's metrics. Raises `TrainingError` if the loss or the gradient norm is not finite."""
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


class Resumable(Trainer):  # type: ignore[misc]
    """Marks complete checkpoints, without TRL's model card in them. Sends no telemetry."""

    fingerprint: str = ""

    def _send_telemetry(self) -> None:
        """Do nothing. TRL would report the kind of training to the Hub."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()  # each process has written its own random state
        if self.is_world_process_zero():
            mark_complete(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", self.fingerprint)


class CountsExamples(Resumable):
    """Divides the loss by the number of examples in the whole optimizer step, so that batch size and accumulation are interchangeable."""

    loss_is_scaled_for_ga = True

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        count = torch.tensor(sum(len(batch["weight"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def count(self, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float | None:
        """Return the divisor of this process's summed loss. Gradients are averaged over processes, so it is the total per process."""
        return None if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes

    def log_means(self, **values: torch.Tensor) -> None:
        """Log the mean over pairs and processes of each (B,) tensor."""
        mode = "train" if self.model.training else "eval"
        for name, value_B in values.items():
            mean = self.accelerator.gather(value_B.detach().float()).mean().item()
            self._metrics[mode][name.replace("__", "/")].append(mean)


class SFTRun(Resumable, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT trainer on rows of token ids."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss, computed without the masked positions."""
        with completion_positions_only():
            return super().compute_loss(*args, **kwargs)


class SoftRewardCollator(RewardCollator):  # type: ignore[misc]
    """Pads pairs, and adds their labels to the batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask` (2B, T), chosen first, and the labels (B,)."""
        return {**super().torch_call(examples), **label_tensors(examples)}


def collate_packed_reward(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Pack pairs into one row without padding: `input_ids`, `position_ids` (1, T), `ends` (2B,), chosen first, `pair_lengths`, labels."""
    pairs = []
    for chosen, rejected in ((e["chosen_ids"], e["rejected_ids"]) for e in examples):
        shared = common_prefix(chosen[:-1], rejected[:-1])  # each side keeps a token of its own
        pairs.append((chosen[:shared], chosen[shared:], rejected[shared:]))
    packed = pack(pairs)
    return {**packed_inputs(packed), "ends": torch.tensor(last_positions(packed.pair_lengths)), **label_tensors(examples)}


def packed_inputs(packed: PackedPairs) -> dict[str, Any]:
    """Return a packed row as arguments of a model's forward."""
    return {"input_ids": packed.tokens_1T, "position_ids": packed.positions_1T, "pair_lengths": packed.pair_lengths}


def score_ends(model: Any) -> None:
    """Let a reward model's forward take `ends`, the positions of a packed row to score; it then returns `logits` of shape (2B, 1).

    The original forward scores the last token of each row that isn't padding.
    """
    original = model.forward

    @functools.wraps(original)
    def forward(*args: Any, ends: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if ends is None:
            return original(*args, **kwargs)
        inputs = {name: kwargs[name] for name in ("input_ids", "position_ids", "pair_lengths", "use_cache")}
        hidden_TH = model.base_model(**inputs).last_hidden_state[0]
        return SequenceClassifierOutputWithPast(logits=model.score(hidden_TH[ends]))

    model.forward = forward


class SoftRewardRun(CountsExamples, RewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer with soft labels and weights, on padded or packed pairs."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return `reward_loss` of a batch; log mean score, margin, and accuracy against the label."""
        p_B, weight_B = inputs["p_chosen"], inputs["weight"]
        outputs = model(**{k: v for k, v in inputs.items() if k not in LABELS}, use_cache=False)
        chosen_B, rejected_B = outputs.logits.squeeze(-1).float().chunk(2)
        center = self.args.center_rewards_coefficient or 0.0
        count = self.count(num_items_in_batch)
        loss = reward_loss(chosen_B, rejected_B, p_B, weight_B, center=center, margin_B=inputs.get("margin"), count=count)
        margin_B = chosen_B - rejected_B
        self.log_means(mean_reward=(chosen_B + rejected_B) / 2, margin=margin_B, accuracy=(margin_B * (p_B - 0.5) > 0))
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class DPOCollator:
    """Collates rows of `dpo_rows` into a batch of B pairs, as R padded rows of T tokens or packed into one row.

    The batch has, for each position, the token that it predicts (`shift_labels` (R, T), `IGNORED` outside completions) and the completion
    that this token belongs to (`sides` (R, T): 0 to B−1 chosen, B to 2B−1 rejected). It also has `completion_tokens` (2B,), `rows` (B,)
    and the labels.
    """

    pad_token_id: int
    packed: bool = False

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch."""
        lengths = [len(e[side]) for side in COMPLETIONS for e in examples]
        rows = {
            "completion_tokens": torch.tensor(lengths),
            "rows": torch.tensor([e["row"] for e in examples]),
            **label_tensors(examples),
        }
        return {**(self._pack(examples) if self.packed else self._pad(examples)), **rows}

    def _pad(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        sides = [(e["prompt_ids"], e[side]) for side in COMPLETIONS for e in examples]
        width = max(len(prompt) + len(completion) for prompt, completion in sides)

        def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

        return {
            "input_ids": padded([prompt + completion for prompt, completion in sides], self.pad_token_id),
            "attention_mask": padded([[1] * (len(prompt) + len(completion)) for prompt, completion in sides], 0),
            "shift_labels": padded([[IGNORED] * (len(prompt) - 1) + completion for prompt, completion in sides], IGNORED),
            "sides": torch.arange(len(sides))[:, None].expand(-1, width).contiguous(),
        }

    def _pack(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pack the pairs. The prompt's last token starts both sides, because it predicts the first token of each."""
        pairs, labels, sides = [], [], []
        for i, example in enumerate(examples):
            *prefix, last = example["prompt_ids"]
            pairs.append((prefix, *([last, *example[side][:-1]] for side in COMPLETIONS)))
            labels += [IGNORED] * len(prefix)
            sides += [i] * len(prefix)
            for k, side in enumerate(COMPLETIONS):
                labels += example[side]
                sides += [k * len(examples) + i] * len(example[side])
        return {**packed_inputs(pack(pairs)), "shift_labels": torch.tensor([labels]), "sides": torch.tensor([sides])}


class SoftDPORun(CountsExamples, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer with soft labels, weights and four losses. The reference is an adapter or the base model.

    Reference log-probabilities are cached per row, so that later epochs need no reference pass. Checkpoints include them, because another
    batch would give slightly different values.

    Args:
        model: the policy, a PEFT model.
        starts_at_reference: whether the policy's first weights are the reference's. This is then checked at the first step.
        held_out: number of rows that are measured and not trained on; they are numbered after the dataset's.
    """

    def __init__(self, model: Any, *, dpo: DPOConfig, starts_at_reference: bool = True, held_out: int = 0, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        # TRL's LM head would also compute entropy, mean logit and top-1 over the whole vocabulary, which are not used here
        trl_utils.add_fused_lm_head(model.get_base_model(), outputs=("log_probs",))
        self.dpo = dpo
        self.starts_at_reference = starts_at_reference
        self.reference_logps_N2 = torch.full((len(self.train_dataset) + held_out, 2), math.nan, device=self.accelerator.device)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return the loss of a batch; log implicit rewards, their margin, and accuracy against the label."""
        p_B, weight_B = inputs["p_chosen"], inputs["weight"]
        chosen_B, rejected_B = (self._logps(model, inputs) - self._reference_logps(inputs)).chunk(2)
        chosen_tokens_B, rejected_tokens_B = inputs["completion_tokens"].chunk(2)
        loss_B = dpo_loss(
            chosen_B,
            rejected_B,
            p_B,
            beta=self.beta,
            loss=self.dpo.loss,
            label_smoothing=self.dpo.label_smoothing,
            chosen_tokens_B=chosen_tokens_B,
            rejected_tokens_B=rejected_tokens_B,
        )
        margin_B = self.beta * (chosen_B - rejected_B)
        if self.state.global_step == 0 and self.starts_at_reference:
            check_reference(self.beta * torch.cat((chosen_B, rejected_B)))
        self.log_means(
            rewards__chosen=self.beta * chosen_B,
            rewards__rejected=self.beta * rejected_B,
            rewards__margins=margin_B,
            rewards__accuracies=(margin_B * (p_B - 0.5) > 0),
        )
        loss = weighted_mean(loss_B, weight_B, self.count(num_items_in_batch))
        return (loss, None) if return_outputs else loss

    def _logps(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the log-probabilities of the batch's completions, summed over their tokens, (2B,), chosen first."""
        passed = ("input_ids", "position_ids", "attention_mask", "pair_lengths", "shift_labels")
        with completion_positions_only():
            outputs = model(**{k: v for k, v in inputs.items() if k in passed}, fused_lm_head=True, use_cache=False)
        logps_T, sides_T = outputs.log_probs.float().flatten(), inputs["sides"].flatten()
        zeros = logps_T.new_zeros(len(inputs["completion_tokens"]))
        summed: torch.Tensor = zeros.index_add(0, sides_T, logps_T)
        return summed

    def _reference_logps(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the reference's log-probabilities, (2B,), chosen first: cached, or computed and then cached."""
        known_B2 = self.reference_logps_N2[inputs["rows"]]
        missing = known_B2.isnan().any().reshape(1)
        if not bool(self.accelerator.gather(missing).any()):  # over all processes, because all must take part in the gather below
            return known_B2.T.flatten()
        with reference_of(self):
            logps = self._logps(self.model, inputs)
        rows, values_B2 = self.accelerator.gather((inputs["rows"], torch.stack(logps.chunk(2), dim=1)))
        self.reference_logps_N2[rows] = values_B2
        return logps

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"logps_N2": self.reference_logps_N2.cpu()}, folder / REFERENCE_LOGPS)
        super()._save_checkpoint(model, trial)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train, with the reference log-probabilities from the checkpoint if there is one."""
        if resume_from_checkpoint is not None:
            kept = load_file(Path(resume_from_checkpoint) / REFERENCE_LOGPS)["logps_N2"]
            self.reference_logps_N2.copy_(kept)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


@contextlib.contextmanager
def reference_of(trainer: Any) -> Iterator[None]:
    """Switch a trainer's policy to its reference for the block: the adapter `ref`, or no adapter. Without gradients."""
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    with torch.no_grad(), trl_utils.use_adapter(unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None):
        yield


def check_reference(rewards: torch.Tensor) -> None:
    """Raise `TrainingError` if policy and reference differ before the first update.

    Args:
        rewards: β times the log-ratios of the first batch, any shape.
    """
    largest = rewards.detach().abs().mean().item()
    if largest > FIRST_MARGIN:
        raise TrainingError(
            f"before the first update the policy already differs from its reference: mean |β·log-ratio| is {largest:.3f}, "
            f"expected at most {FIRST_MARGIN}. The reference is not the adapter that training starts from."
        )
