"""Supervised fine-tuning (SFT) of a LoRA adapter on revised responses (Bai et al. 2022, §3.1). The loss covers completions only.

Distilled responses have soft targets: the distribution of the start model with the principles in its context, as in context distillation
(Askell et al. 2021, arXiv 2112.00861, §2.2). A sampled token is only one draw from it.

Uses TRL's `SFTTrainer`. Departure from the papers, which fine-tune all weights: an adapter fits a small machine, and leaves the base model
available as the reference.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cai.recipe import ModelSpec, SFTConfig
from cai.records import SFTExample
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.cards import CardFacts, sources_of
from cai.train.checkpoints import TrainResult, checkpoint_folder
from cai.train.encode import sft_rows
from cai.train.running import (
    OnLog,
    begin,
    finish,
    float_trained_weights,
    quiet_training,
    train_and_save,
    training_fingerprint,
)


def train_sft(
    config: SFTConfig,
    model: ModelSpec,
    examples: Sequence[SFTExample],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
    start: Path | None = None,
) -> TrainResult:
    """Train an adapter on the completions, and save it in `out` with tokenizer, model card and log.

    Called again after a kill, it resumes from the last complete checkpoint. Called again after it has finished, it returns the stored
    result.

    Args:
        config: the recipe's `sft` block.
        model: the model to start from, and the teacher of soft targets. If it has an adapter, that adapter is trained further, and
            `config.lora` has no effect.
        examples: at least one that fits `config.max_length`.
        out: folder for the adapter.
        seed: decides initial weights and order. The same seed on the same machine gives the same weights.
        on_log: called after each step.
        start: adapter of `model` to train further, instead of the model's own or a new one; the teacher stays `model`.

    Raises:
        TrainingError: no example is left, or training diverges.
        ModelError: the model can't be loaded.
    """
    from cai.models.local.fingerprint import model_fingerprint
    from cai.models.local.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    asked = {"soft_targets": config.soft_targets, "thinking": config.thinking}
    rows, dropped = sft_rows(tokenizer, examples, config.max_length, **asked)
    begun = None if start is None else model_fingerprint(replace(model, adapter=str(start)))
    fingerprint = training_fingerprint("sft", config, model, rows, seed, begun)
    if (done := begin(out, fingerprint)) is not None:
        return done
    with quiet_training():
        trainer = sft_trainer(config, model, tokenizer, rows, out, seed, start)
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=on_log, dropped=dropped)
    soft = sum(bool(row.get("told")) for row in rows)
    loss = "completions imitated, prompts masked" + (f"; soft targets for {soft} of {len(rows)}" if soft else "")
    finish(out, fingerprint, CardFacts("sft", model.path, loss, sources_of(examples), config, result, seed))
    return result


def sft_trainer(
    config: SFTConfig, model: ModelSpec, tokenizer: Any, rows: list[dict[str, Any]], out: Path, seed: int, start: Path | None = None
) -> Any:
    """Return TRL's trainer with model, adapter and rows, ready to train."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig as SFTArguments

    from cai.models.local.adapter import with_adapter
    from cai.models.local.loading import load_causal_lm
    from cai.train.soft_targets import SoftTargetCollator, SoftTargetSFT
    from cai.train.trainers import SFTRun

    set_seed(seed)  # the adapter's initial weights
    base = load_causal_lm(replace(model, adapter=None, precision=config.precision), trainable=True)
    adapter = model.adapter if start is None else str(start)
    policy = with_new_adapter(base, config.lora) if adapter is None else with_adapter(base, adapter, model.path, trainable=True)
    if model.adapter is not None and "told" in rows[0]:
        policy.load_adapter(model.adapter, adapter_name="ref")  # the teacher
    arguments = SFTArguments(
        **training_arguments(config, len(rows), checkpoint_folder(out), seed),
        max_length=None,  # rows that are too long were dropped already
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    given = {"model": policy, "args": arguments, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    soft = "told" in rows[0]
    trainer = SoftTargetSFT(**given, data_collator=SoftTargetCollator(tokenizer.pad_token_id)) if soft else SFTRun(**given)
    float_trained_weights(trainer.model)
    return trainer
