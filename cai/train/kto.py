"""Kahneman–Tversky optimization (arXiv 2402.01306) on the same preferences as DPO, from the same start and against the same reference.

A thin layer over TRL's `KTOTrainer`. Departures from the paper: each side of a judged pair is a single example, desirable with the
probability that its label gives it (see `cai.train.losses`), so both λ are 1; weights as everywhere; and the completion that a prompt
gets to estimate the divergence is set beforehand, where TRL and the paper take that of a neighbour in the batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.errors import TrainingError
from cai.recipe import ModelSpec, PolicyConfig
from cai.records import Preference
from cai.train.arguments import training_arguments
from cai.train.checkpoints import TrainResult, checkpoint_folder
from cai.train.dpo import load_policy, set_reference, train_policy
from cai.train.encode import kto_rows
from cai.train.rl.monitor import MonitorSpec
from cai.train.running import OnLog, float_trained_weights


def train_kto(
    config: PolicyConfig,
    model: ModelSpec,
    sft_adapter: Path | None,
    preferences: Sequence[Preference],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
    *,
    watching: MonitorSpec | None = None,
) -> TrainResult:
    """Train the policy on the two sides of preferences, and save it as `train_dpo` does.

    Args:
        config: the recipe's `policy` block; `batch_size` counts completions, of which a pair gives two, and is at least 2. The
            divergence is estimated from a batch of all processes, so gradient accumulation, other than in DPO, doesn't stand in for a
            larger one.
        model: as for `train_dpo`, and so are `sft_adapter`, `preferences`, `out`, `seed` and `watching`.
        on_log: called after each step, with `kl`, `rewards/margins`, `rewards/accuracies`, `loss`.

    Raises:
        TrainingError: as `train_dpo`, or a batch holds a single completion, which is too few to estimate the divergence from.
        ModelError: the model or the adapter can't be loaded.
    """
    if config.batch_size < 2:
        raise TrainingError(
            "policy.batch_size is 1: KTO estimates how far the policy is from its reference over the completions of a batch.\n"
            "Fix: batch_size 2 or more, with a higher gradient_accumulation if need be"
        )
    return train_policy(
        config,
        model,
        sft_adapter,
        preferences,
        out,
        seed,
        on_log,
        name="KTO",
        encode=lambda tokenizer: kto_rows(tokenizer, preferences, config.max_length, seed),
        build=kto_trainer,
        watching=watching,
    )


def kto_trainer(
    config: PolicyConfig,
    start: ModelSpec,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    out: Path,
    seed: int,
    reference: Path | None = None,
) -> Any:
    """Return TRL's trainer with policy, reference and rows in place, ready to train."""
    from datasets import Dataset
    from trl import KTOConfig

    from cai.train.kto_trainer import SoftKTOCollator, SoftKTORun

    arguments = KTOConfig(
        **training_arguments(config, len(rows), checkpoint_folder(out), seed),
        beta=config.beta,
        max_length=None,  # too long rows are already out
    )
    trainer = SoftKTORun(
        model=load_policy(config, start, seed),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=SoftKTOCollator(pad_token_id=tokenizer.pad_token_id, max_length=config.max_length),
    )
    float_trained_weights(trainer.model)
    set_reference(trainer.model, reference)
    return trainer
