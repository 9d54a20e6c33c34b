"""Kahneman–Tversky optimization (KTO, arXiv 2402.01306) with the same preferences, starting adapter and reference model as DPO.

A thin layer over TRL's `KTOTrainer`. Departures from the paper:

1. Each side of a judged pair is one example. It is desirable with the probability that the label gives it (see `cai.train.losses`), so
   both λ are 1.
2. Examples have weights.
3. The mismatched completion that estimates the KL of a prompt is chosen before training. TRL and the paper take it from a neighbour in
   the batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.errors import TrainingError
from cai.recipe import ModelSpec, PolicyConfig
from cai.records import Preference
from cai.train.arguments import training_arguments
from cai.train.checkpoints import TrainResult, checkpoint_folder
from cai.train.dpo import BETA, PairMethod, load_policy, set_reference, train_policy
from cai.train.encode import kto_rows
from cai.train.monitor import MonitorSpec
from cai.train.running import OnLog, PolicyJob, float_trained_weights


def train_kto(
    config: PolicyConfig,
    model: ModelSpec,
    sft_adapter: Path | None,
    preferences: Sequence[Preference],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
    *,
    monitor_spec: MonitorSpec | None = None,
    held_out: Sequence[Preference] = (),
) -> TrainResult:
    """Train the policy on both sides of the preferences, and save it as `train_dpo` does.

    Args:
        config: the recipe's `policy` block. `batch_size` counts completions (two per pair) and is at least 2. The KL is estimated over
            one batch of all processes, so unlike in DPO, gradient accumulation is not equivalent to a larger batch.
        model: see `train_dpo`, also for `sft_adapter`, `preferences`, `out`, `seed`, `monitor_spec` and
            `held_out`.
        on_log: called after each step, with `kl`, `rewards/margins`, `rewards/accuracies`, `loss`.

    Raises:
        TrainingError: as in `train_dpo`, or a batch has a single completion, which is too few to estimate the KL.
        ModelError: the model or the adapter can't be loaded.
    """
    if config.batch_size < 2:
        raise TrainingError(
            "policy.batch_size is 1: KTO estimates the KL to the reference over the completions of a batch.\n"
            "Fix: set batch_size to 2 or more"
        )
    job = PolicyJob(config, model, sft_adapter, out, seed, on_log)
    method = PairMethod("KTO", lambda tokenizer, pairs: kto_rows(tokenizer, pairs, config.max_length, seed), kto_trainer)
    return train_policy(job, method, preferences, monitor_spec=monitor_spec, held_out=held_out)


def kto_trainer(job: PolicyJob, tokenizer: Any, rows: list[dict[str, Any]], reference: Path | None = None, held_out: int = 0) -> Any:
    """Return TRL's trainer with policy, reference and rows, ready to train."""
    from datasets import Dataset
    from trl import KTOConfig

    from cai.train.kto_trainer import SoftKTOCollator, SoftKTORun

    config = job.config
    arguments = KTOConfig(
        **training_arguments(config, len(rows), checkpoint_folder(job.out), job.seed),
        beta=config.beta_or(BETA),
        max_length=None,  # rows that are too long were dropped already
    )
    trainer = SoftKTORun(
        model=load_policy(job),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=SoftKTOCollator(pad_token_id=tokenizer.pad_token_id, max_length=config.max_length),
    )
    float_trained_weights(trainer.model)
    set_reference(trainer.model, reference)
    return trainer
