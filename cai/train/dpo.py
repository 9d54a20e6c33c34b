"""Direct preference optimization (arXiv 2305.18290) from the SFT adapter, with that adapter as the reference.

Departures from the paper: labels are probabilities and examples have weights (see `cai.train.losses`); policy and reference share one
base model and differ in their adapters only, so two models fit in the memory of one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cai.recipe import ModelSpec, PolicyConfig
from cai.records import Preference
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.cards import CardFacts, preference_sources, write_card
from cai.train.checkpoints import TrainResult, checkpoint_folder, finished_result
from cai.train.encode import dpo_rows
from cai.train.running import OnLog, finish, float_trained_weights, forget, prepare, quiet_training, train_and_save, training_fingerprint


def train_dpo(
    config: PolicyConfig,
    model: ModelSpec,
    sft_adapter: Path | None,
    preferences: Sequence[Preference],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
) -> TrainResult:
    """Train the policy on preferences, and save its adapter in `out` with tokenizer, model card and log.

    Resumes and repeats as `train_sft` does.

    Args:
        config: the recipe's `policy` block. `config.lora` is without effect where there is an SFT adapter: the policy has its shape.
        model: the base model; its own adapter, if any, is not used.
        sft_adapter: where the policy starts, and its reference; None starts a new adapter, with the bare base as the reference.
        preferences: judged pairs; at least one that fits `config.max_length`.
        out: folder for the adapter.
        seed: decides the order, and a new adapter's initial weights.
        on_log: called after each step, with `rewards/margins`, `rewards/accuracies`, `rewards/chosen`, `rewards/rejected`, `loss`.

    Raises:
        TrainingError: no pair is left, the policy doesn't start at its reference, or training diverges.
        ModelError: the model or the adapter can't be loaded.
    """
    from cai.models.loading import load_tokenizer, model_fingerprint

    start = replace(model, adapter=None if sft_adapter is None else str(sft_adapter), precision=config.precision)
    tokenizer = load_tokenizer(start)
    rows, dropped = dpo_rows(tokenizer, preferences, config.max_length)
    fingerprint = training_fingerprint("policy", config, replace(model, adapter=None), rows, seed, model_fingerprint(start))
    if (done := finished_result(out, fingerprint)) is not None:
        forget(out)
        return done
    prepare(out)
    with quiet_training():
        trainer = dpo_trainer(config, start, tokenizer, rows, out, seed)
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=on_log, dropped=dropped)
    reference = "the bare base model" if sft_adapter is None else "the SFT adapter that it started from"
    facts = CardFacts("policy", model.path, f"DPO, reference: {reference}", preference_sources(preferences), config, result, seed)
    write_card(out, facts)
    finish(out, fingerprint, result)
    return result


def dpo_trainer(config: PolicyConfig, start: ModelSpec, tokenizer: Any, rows: list[dict[str, Any]], out: Path, seed: int) -> Any:
    """Return TRL's trainer with policy, reference and rows in place, ready to train."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import set_seed
    from trl import DPOConfig as DPOArguments

    from cai.models.loading import load_causal_lm
    from cai.train.trainers import SoftDPOCollator, SoftDPORun

    set_seed(seed)  # a new adapter's initial weights
    base = load_causal_lm(replace(start, adapter=None), trainable=True)
    if start.adapter is None:
        policy = with_new_adapter(base, config.lora)
    else:  # without is_trainable nothing would train, and nothing complain
        policy = PeftModel.from_pretrained(base, start.adapter, is_trainable=True)
    arguments = DPOArguments(
        **training_arguments(config, len(rows), checkpoint_folder(out), seed),
        beta=config.beta,
        loss_type=["sigmoid"],
        max_length=None,  # too long rows are already out
    )
    trainer = SoftDPORun(
        model=policy,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=SoftDPOCollator(pad_token_id=tokenizer.pad_token_id),
    )
    float_trained_weights(trainer.model)
    _copy_reference(trainer.model)
    return trainer


def _copy_reference(policy: Any) -> None:
    """Start the policy at exactly the reference's weights: over a 4-bit base TRL rounds the policy's to bfloat16, and those only."""
    for name, parameter in policy.named_parameters():
        if ".default." in name and "ref" in policy.peft_config:
            parameter.data.copy_(policy.get_parameter(name.replace(".default.", ".ref.")).data)
