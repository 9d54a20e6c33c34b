"""Direct preference optimization (arXiv 2305.18290) from the SFT adapter, with that adapter as the reference, and its family.

Departures from the paper: labels are probabilities and examples have weights (see `cai.train.losses`); policy and reference share one
base model and differ in their adapters only, so two models fit in the memory of one; the prompt of a pair runs once for both sides
(see `cai.train.packing`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cai.errors import ModelError
from cai.recipe import ModelSpec, PolicyConfig
from cai.records import Preference
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.cards import CardFacts, preference_sources, write_card
from cai.train.checkpoints import TrainResult, checkpoint_folder, finished_result
from cai.train.encode import dpo_rows
from cai.train.rl.monitor import MonitorSpec, restore_best
from cai.train.running import (
    OnLog,
    finish,
    float_trained_weights,
    forget,
    is_first_process,
    prepare,
    quiet_training,
    train_and_save,
    training_fingerprint,
)


def train_dpo(
    config: PolicyConfig,
    model: ModelSpec,
    sft_adapter: Path | None,
    preferences: Sequence[Preference],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
    *,
    reference: Path | None = None,
    watching: MonitorSpec | None = None,
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
        reference: another adapter of the same shape as the reference, for later rounds of online DPO.
        watching: looks for over-optimisation as it trains; None looks for nothing.

    Raises:
        TrainingError: no pair is left, the policy doesn't start at its reference, or training diverges.
        ModelError: the model or an adapter can't be loaded.
    """
    return train_policy(
        config,
        model,
        sft_adapter,
        preferences,
        out,
        seed,
        on_log,
        name=f"DPO ({config.dpo.loss})",
        encode=lambda tokenizer: dpo_rows(tokenizer, preferences, config.max_length),
        build=dpo_trainer,
        reference=reference,
        watching=watching,
    )


def train_policy(
    config: PolicyConfig,
    model: ModelSpec,
    sft_adapter: Path | None,
    preferences: Sequence[Preference],
    out: Path,
    seed: int,
    on_log: OnLog | None,
    *,
    name: str,
    encode: Callable[[Any], tuple[list[dict[str, Any]], dict[str, int]]],
    build: Callable[..., Any],
    reference: Path | None = None,
    watching: MonitorSpec | None = None,
) -> TrainResult:
    """Train a policy against a reference on rows made from preferences: what `train_dpo` and `train_kto` share.

    Args:
        config: as for `train_dpo`, and so are `model`, `sft_adapter`, `preferences`, `out`, `seed`, `on_log`, `reference` and `watching`.
        name: of the method, for the card.
        encode: from the tokenizer to rows, and how many pairs were left out and why.
        build: makes the trainer, as `dpo_trainer` does.
    """
    from cai.models.local.loading import load_tokenizer, model_fingerprint

    start = replace(model, adapter=None if sft_adapter is None else str(sft_adapter), precision=config.precision)
    tokenizer = load_tokenizer(start)
    rows, dropped = encode(tokenizer)
    starts: list[Any] = [model_fingerprint(start)]
    if reference is not None:
        starts.append(model_fingerprint(replace(start, adapter=str(reference))))
    if watching is not None:
        starts.append(watching.by)
    fingerprint = training_fingerprint("policy", config, replace(model, adapter=None), rows, seed, starts)
    if (done := finished_result(out, fingerprint)) is not None:
        forget(out)
        return done
    prepare(out)
    with quiet_training():
        trainer = build(config, start, tokenizer, rows, out, seed, reference)
        watch = None if watching is None else watching.load()
    if watching is not None and watch is not None:
        from cai.train.rl.trainers import WatchCallback

        trainer.add_callback(WatchCallback(watch, trainer, out, watching.max_tokens, watching.warn))
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=on_log, dropped=dropped)
    chosen = restore_best(watch, out) if watch is not None and is_first_process() else None
    of = "the bare base model" if sft_adapter is None else "the SFT adapter that it started from"
    method = f"{name}, reference: {of if reference is None else f'the adapter in {reference.name}'}"
    measured = {} if chosen is None else {"chosen by gold reward": f"step {chosen} of {result.steps}"}
    write_card(out, CardFacts("policy", model.path, method, preference_sources(preferences), config, result, seed, measured))
    finish(out, fingerprint, result)
    return result


def dpo_trainer(
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
    from trl import DPOConfig as DPOArguments

    from cai.train.packing import share_prompts
    from cai.train.trainers import DPOCollator, SoftDPORun

    policy = load_policy(config, start, seed)
    arguments = DPOArguments(
        **training_arguments(config, len(rows), checkpoint_folder(out), seed),
        beta=config.beta,
        loss_type=["sigmoid"],  # which loss it is, is ours to see to
        max_length=None,  # too long rows are already out
    )
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows)
    packed = share_prompts(policy, config.share_prompt, longest)
    trainer = SoftDPORun(
        model=policy,
        dpo=config.dpo,
        starts_at_reference=reference is None,
        args=arguments,
        train_dataset=Dataset.from_list([{**row, "row": i} for i, row in enumerate(rows)]),
        processing_class=tokenizer,
        data_collator=DPOCollator(tokenizer.pad_token_id, packed),
    )
    float_trained_weights(trainer.model)
    set_reference(trainer.model, reference)
    return trainer


def load_policy(config: PolicyConfig, start: ModelSpec, seed: int) -> Any:
    """Return the base with the adapter that training goes on from, or with a new one. Raises `ModelError`."""
    from peft import PeftModel
    from transformers import set_seed

    from cai.models.local.loading import load_causal_lm

    set_seed(seed)  # a new adapter's initial weights
    base = load_causal_lm(replace(start, adapter=None), trainable=True)
    if start.adapter is None:
        return with_new_adapter(base, config.lora)
    # without is_trainable nothing would train, and nothing complain
    return PeftModel.from_pretrained(base, start.adapter, is_trainable=True)


def set_reference(policy: Any, reference: Path | None) -> None:
    """Set the frozen copy that TRL made of the policy's first adapter.

    To another adapter where one is named; else the policy starts at exactly the copy's weights: over a 4-bit base TRL rounds the
    policy's to bfloat16, and those only.

    Raises:
        ModelError: the other adapter has not the policy's shape.
    """
    if "ref" not in policy.peft_config:
        return
    other = None if reference is None else _adapter_weights(policy, reference)
    for name, parameter in policy.named_parameters():
        if ".default." not in name:
            continue
        copy = policy.get_parameter(name.replace(".default.", ".ref."))
        if other is None:
            parameter.data.copy_(copy.data)
        else:
            copy.data.copy_(other[name.replace(".default.", ".")])


def _adapter_weights(policy: Any, folder: Path) -> dict[str, Any]:
    """Return an adapter's saved weights by their names in the model, after checking that they are the policy's adapter's in shape."""
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    wanted = {n.replace(".default.", "."): p.shape for n, p in policy.named_parameters() if ".default." in n}
    if {n: w.shape for n, w in weights.items()} != wanted:
        raise ModelError(
            f"{folder}: this adapter has other layers or another rank than the policy's, so it can't be its reference.\n"
            "Fix: name the adapter that the policy was first trained from"
        )
    return weights
