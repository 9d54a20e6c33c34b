"""Direct preference optimization (DPO, arXiv 2305.18290) and its variants. The SFT adapter is the start and the reference.

Departures from the paper:

1. Labels are probabilities, and examples have weights (see `cai.train.losses`).
2. Policy and reference are adapters on one base model, so two models fit in the memory of one.
3. The prompt of a pair is run once for both sides (see `cai.train.packing`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cai.errors import ModelError, TrainingError
from cai.models.local.adapter import adapter_weights
from cai.recipe import ModelSpec, PolicyConfig
from cai.records import Preference
from cai.train.arguments import training_arguments, with_new_adapter
from cai.train.cards import CardFacts, sources_of
from cai.train.checkpoints import TrainResult, checkpoint_folder
from cai.train.encode import dpo_rows
from cai.train.held_out import best_point
from cai.train.monitor import MonitorSpec, best_folder, restore_best, restore_weights
from cai.train.running import (
    OnLog,
    PolicyJob,
    begin,
    finish,
    float_trained_weights,
    is_first_process,
    quiet_training,
    train_and_save,
)

Encode = Callable[[Any, Sequence[Preference]], tuple[list[dict[str, Any]], dict[str, int]]]
BETA = 0.1
"""β where the recipe has none, of KTO too (arXiv 2305.18290, appendix B)."""


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
    monitor_spec: MonitorSpec | None = None,
    held_out: Sequence[Preference] = (),
) -> TrainResult:
    """Train the policy on preferences, and save its adapter in `out` with tokenizer, model card and log.

    Resumes after a kill, and returns the result of a finished training, as `train_sft` does.

    Args:
        config: the recipe's `policy` block. `config.lora` has no effect with an SFT adapter: the policy has that adapter's shape.
        model: the base model. Its own adapter, if any, is not used.
        sft_adapter: the policy's start and its reference; None starts from a new adapter, with the base model as the reference.
        preferences: judged pairs; at least one that fits `config.max_length`.
        out: folder for the adapter.
        seed: decides the order, and the initial weights of a new adapter.
        on_log: called after each step, with `rewards/margins`, `rewards/accuracies`, `rewards/chosen`, `rewards/rejected`, `loss`.
        reference: another adapter of the same shape to use as the reference, for later rounds of online DPO.
        monitor_spec: the over-optimization monitor; None turns it off.
        held_out: pairs that are not trained on. Their loss, margin and accuracy are measured after every epoch; the epoch with the lowest
            loss is kept, unless a monitor chooses, and training stops early by `config.early_stopping`.

    Raises:
        TrainingError: no pair is left, the policy doesn't start at its reference, or training diverges.
        ModelError: the model or an adapter can't be loaded.
    """
    job = PolicyJob(config, model, sft_adapter, out, seed, on_log)
    method = PairMethod(f"DPO ({config.dpo.loss})", lambda tokenizer, pairs: dpo_rows(tokenizer, pairs, config.max_length), dpo_trainer)
    return train_policy(job, method, preferences, reference=reference, monitor_spec=monitor_spec, held_out=held_out)


@dataclass(frozen=True, slots=True)
class PairMethod:
    """What DPO, KTO and other trainings on preferences differ in."""

    name: str
    """For the model card."""
    encode: Encode
    """Returns the rows of some pairs for a tokenizer, and the number of dropped pairs by reason."""
    build: Callable[[PolicyJob, Any, list[dict[str, Any]], Path | None, int], Any]
    """Returns the trainer, as `dpo_trainer` does."""


def train_policy(
    job: PolicyJob,
    method: PairMethod,
    preferences: Sequence[Preference],
    *,
    reference: Path | None = None,
    monitor_spec: MonitorSpec | None = None,
    held_out: Sequence[Preference] = (),
) -> TrainResult:
    """Train a policy against a reference on rows made from preferences. Shared by `train_dpo` and `train_kto`.

    Args:
        preferences: see `train_dpo`, also for `reference`, `monitor_spec` and `held_out`.
    """
    from cai.models.local.fingerprint import model_fingerprint
    from cai.models.local.loading import load_tokenizer

    config, start, out = job.config, job.start, job.out
    tokenizer = load_tokenizer(start)
    rows, dropped = method.encode(tokenizer, preferences)
    apart = held_out_rows(method.encode, tokenizer, held_out, len(rows))
    identities: list[Any] = [model_fingerprint(start)]
    if reference is not None:
        identities.append(model_fingerprint(replace(start, adapter=str(reference))))
    if monitor_spec is not None:
        identities.append(monitor_spec.identity)
    if apart:
        identities.append(apart)
    fingerprint = job.fingerprint(rows, identities)
    if (done := begin(out, fingerprint)) is not None:
        return done
    with quiet_training():
        trainer = method.build(job, tokenizer, rows, reference, len(apart))
        monitor = None if monitor_spec is None else monitor_spec.load()
    if monitor_spec is not None and monitor is not None:
        from cai.train.monitor_callback import MonitorCallback

        trainer.add_callback(MonitorCallback(monitor, trainer, out, config.online, monitor_spec.warn))
    measuring = None
    if apart:
        from cai.train.held_out_callback import HeldOutCallback

        measuring = HeldOutCallback(trainer, apart, out, config.early_stopping, keep=monitor is None)
        trainer.add_callback(measuring)
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=job.on_log, dropped=dropped)
    best = restore_best(monitor, out) if monitor is not None and is_first_process() else None
    chosen = None if measuring is None else best_point(measuring.points)
    if chosen is not None and monitor is None and is_first_process():
        restore_weights(best_folder(out, chosen.step), out)
    described = f"{method.name}, reference: {job.start_name if reference is None else f'the adapter in {reference.name}'}"
    measured = {} if best is None else {"chosen by gold reward": f"step {best} of {result.steps}"}
    if measuring is not None and chosen is not None:
        shown = chosen if monitor is None else measuring.points[-1]
        values = {f"held_out_{name}": getattr(shown, name) for name in ("loss", "margin", "accuracy", "n", "step")}
        result = dataclasses.replace(result, metrics=result.metrics | values)
        why = "" if monitor is not None else f", the lowest loss of {len(measuring.points)} measurements"
        told = f"loss {shown.loss:.3f}, margin {shown.margin:.3f}, accuracy {shown.accuracy:.1%}, n = {shown.n}"
        measured["held-out preferences"] = f"{told} (step {shown.step}{why})"
    finish(out, fingerprint, CardFacts("policy", job.model.path, described, sources_of(preferences), config, result, job.seed, measured))
    return result


def held_out_rows(
    encode: Encode,
    tokenizer: Any,
    held_out: Sequence[Preference],
    trained: int,
) -> list[dict[str, Any]]:
    """Return the encoded held-out rows, numbered after the `trained` rows; none if no pair fits, which is not an error."""
    if not held_out:
        return []
    try:
        rows, _ = encode(tokenizer, held_out)
    except TrainingError:
        return []
    return [{**row, "row": trained + i, "weight": 1.0} for i, row in enumerate(rows)]


def dpo_trainer(job: PolicyJob, tokenizer: Any, rows: list[dict[str, Any]], reference: Path | None = None, held_out: int = 0) -> Any:
    """Return TRL's trainer with policy, reference and rows, ready to train. `held_out`: number of rows that are only measured."""
    from datasets import Dataset
    from trl import DPOConfig as DPOArguments

    from cai.train.packing import share_prompts
    from cai.train.trainers import DPOCollator, SoftDPORun

    config, policy = job.config, load_policy(job)
    arguments = DPOArguments(
        **training_arguments(config, len(rows), checkpoint_folder(job.out), job.seed),
        beta=config.beta_or(BETA),
        loss_type=["sigmoid"],  # unused: `SoftDPORun` computes the loss
        max_length=None,  # rows that are too long were dropped already
    )
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows)
    packed = share_prompts(policy, config.share_prompt, longest)
    trainer = SoftDPORun(
        model=policy,
        dpo=config.dpo,
        starts_at_reference=reference is None,
        held_out=held_out,
        args=arguments,
        train_dataset=Dataset.from_list([{**row, "row": i} for i, row in enumerate(rows)]),
        processing_class=tokenizer,
        data_collator=DPOCollator(tokenizer.pad_token_id, packed),
    )
    float_trained_weights(trainer.model)
    set_reference(trainer.model, reference)
    return trainer


def load_policy(job: PolicyJob) -> Any:
    """Return the base model with a trainable adapter: the SFT adapter, or a new one. Raises `ModelError`."""
    from transformers import set_seed

    from cai.models.local.adapter import with_adapter
    from cai.models.local.loading import load_causal_lm

    start = job.start
    set_seed(job.seed)  # a new adapter's initial weights
    base = load_causal_lm(replace(start, adapter=None), trainable=True)
    if start.adapter is None:
        return with_new_adapter(base, job.config.lora)
    # without is_trainable no weight would train, and no error would be raised
    return with_adapter(base, start.adapter, start.path, trainable=True)


def add_reference(policy: Any) -> None:
    """Add a frozen copy of the policy's adapter as its reference `ref`, for trainers that don't, unlike TRL's DPO and GRPO."""
    policy.add_adapter("ref", policy.peft_config["default"])
    policy.set_adapter("default")
    for name, parameter in policy.named_parameters():
        if ".ref." in name:
            parameter.requires_grad_(False)
            parameter.data.copy_(policy.get_parameter(name.replace(".ref.", ".default.")).data)


def set_reference(policy: Any, reference: Path | None) -> None:
    """Set the reference adapter, TRL's frozen copy of the policy's first adapter.

    With `reference`, its weights are copied into the reference adapter. Otherwise the policy is set to exactly the weights of the copy,
    because over a 4-bit base TRL rounds the policy's weights to bfloat16, but not the copy's.
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
    """Return an adapter's saved weights by their names in the model. Raises `ModelError` if their shapes differ from the policy's."""
    weights = adapter_weights(folder)
    wanted = {n.replace(".default.", "."): p.shape for n, p in policy.named_parameters() if ".default." in n}
    if {n: w.shape for n, w in weights.items()} != wanted:
        raise ModelError(
            f"{folder}: this adapter's layers or rank differ from the policy's, so it can't be its reference.\n"
            "Fix: name the adapter that the policy was first trained from"
        )
    return weights
