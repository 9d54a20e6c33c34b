"""On-policy self-distillation (SDFT, arXiv 2601.19897): the policy learns what it would say itself if it were told the principles.

The policy answers prompts without the principles. The teacher is the SFT adapter it started from, which stays as it is and has the
principles in its context: it says how likely it finds each next token of the policy's own answer. The loss is the divergence of the two at
every token.

Uses TRL's `SDFTTrainer`. Departures from its defaults and from the paper:

1. The teacher is the start, not a moving average of the policy.
2. One answer per prompt and step, and one update per answer. Answers come from `cai`'s decode loop, each with its own seed, and the order
   of the prompts is fixed before training, so a resumed training is the same as an uninterrupted one.
3. Tokens beyond the `top_k` count as one more token in the divergence, instead of being left out.
4. Training ends early, with a warning, where answers become much shorter or longer, or no longer end (`LengthGuard`).
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cai.recipe import ModelSpec, PolicyConfig
from cai.records import Message, Prompt
from cai.train.arguments import training_arguments
from cai.train.cards import CardFacts
from cai.train.checkpoints import TrainResult, checkpoint_folder
from cai.train.dpo import add_reference, load_policy
from cai.train.encode import encoder_of
from cai.train.rl.grpo import in_order, prompt_rows
from cai.train.rl.live_policy import shared_limit_warning
from cai.train.running import (
    OnLog,
    begin,
    finish,
    float_trained_weights,
    is_first_process,
    name_of_start,
    process_count,
    quiet_training,
    start_of,
    train_and_save,
    training_fingerprint,
)


def train_self_distilled(
    config: PolicyConfig,
    model: ModelSpec,
    sft_adapter: Path | None,
    prompts: Sequence[Prompt],
    told: Mapping[str, Sequence[Message]],
    out: Path,
    seed: int,
    on_log: OnLog | None = None,
    *,
    warn: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train the policy on its own answers towards the told model, and save its adapter in `out` with tokenizer, model card and log.

    Resumes after a kill, and returns the result of a finished training, as `train_sft` does.

    Args:
        model: see `train_dpo`.
        sft_adapter: the policy's start, and the teacher; None starts from a new adapter, with the base model as the teacher.
        prompts: prompts to answer; at least enough for one step.
        told: for each prompt's id, the same conversation with the principles in it.
        seed: decides the order, the samples, and the initial weights of a new adapter.
        on_log: called after each step, with `loss` (nats per token), `completions/mean_length` and others.
    """
    from cai.models.local.fingerprint import model_fingerprint
    from cai.models.local.loading import load_tokenizer

    start = start_of(config, model, sft_adapter)
    tokenizer = load_tokenizer(start)
    rows, dropped = prompt_rows(tokenizer, prompts, config, answers_per_step(config), told)
    fingerprint = training_fingerprint("policy", config, replace(model, adapter=None), rows, seed, model_fingerprint(start))
    if (done := begin(out, fingerprint)) is not None:
        return done
    if is_first_process() and (warning := shared_limit_warning(tokenizer, config.online, "online")):
        warn(warning)
    with quiet_training():
        trainer = self_distill_trainer(config, start, tokenizer, rows, out, seed, warn)
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=on_log, dropped=dropped)
    method = f"on-policy self-distillation; teacher: {name_of_start(sft_adapter)}, with the principles in context"
    finish(out, fingerprint, CardFacts("policy", model.path, method, {"own answers": result.examples}, config, result, seed))
    return result


def answers_per_step(config: PolicyConfig) -> int:
    """Return the number of answers per optimizer step, over all processes."""
    return config.batch_size * config.gradient_accumulation * process_count()


def self_distill_trainer(
    config: PolicyConfig,
    start: ModelSpec,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    out: Path,
    seed: int,
    warn: Callable[[str], None],
) -> Any:
    """Return TRL's trainer with policy, teacher and prompts, ready to train. Call it where warnings are hidden: TRL's is experimental."""
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig

    from cai.models.local.engine import stop_ids
    from cai.train.rl.self_distill_trainer import LengthGuard, SelfDistillRun

    per_step = answers_per_step(config)
    steps = min(config.distill.max_steps, ceil(config.epochs * len(rows) / per_step))
    arguments = {
        **training_arguments(config, len(rows), checkpoint_folder(out), seed),
        "num_train_epochs": 1,
        "shuffle_dataset": False,  # the rows are in order already, whatever a resumed training starts with
        "warmup_steps": int(config.warmup_fraction * steps),
        "num_generations": 1,
        "max_completion_length": config.online.most_tokens,
        "max_prompt_length": None,  # rows that are too long were dropped already
        "temperature": config.online.temperature,
        "teacher_model_kind": "base",
        "distillation_alpha": config.distill.alpha,
        "distillation_topk": config.distill.top_k,
        "distillation_add_tail": True,
    }
    policy = load_policy(config, start, seed)
    if start.adapter is not None:
        add_reference(policy)
    trainer = SelfDistillRun(
        model=policy,
        args=SDFTConfig(**arguments),
        train_dataset=Dataset.from_list(in_order(rows, steps * per_step, seed)),
        processing_class=tokenizer,
        callbacks=[LengthGuard(warn)],
    )
    trainer.thinking_tokens = config.online.thinking_tokens
    trainer.eos_token_ids = sorted(stop_ids(policy.get_base_model(), encoder_of(tokenizer)))  # templates end turns with other tokens
    float_trained_weights(trainer.model)
    return trainer
