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

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from cai.recipe import PolicyConfig
from cai.records import Message, Prompt
from cai.train.arguments import training_arguments
from cai.train.cards import CardFacts
from cai.train.checkpoints import TrainResult, checkpoint_folder
from cai.train.dpo import add_reference, load_policy
from cai.train.encode import encoder_of
from cai.train.live_policy import shared_limit_warning
from cai.train.rl.grpo import in_order, prompt_rows
from cai.train.running import (
    PolicyJob,
    begin,
    finish,
    float_trained_weights,
    is_first_process,
    process_count,
    quiet_training,
    train_and_save,
)


def train_self_distilled(job: PolicyJob, prompts: Sequence[Prompt], told: Mapping[str, Sequence[Message]]) -> TrainResult:
    """Train the policy on its own answers towards the told model, and save its adapter with tokenizer, model card and log.

    Resumes after a kill, and returns the result of a finished training, as `train_sft` does.

    Args:
        job: its start is the teacher too. Its `on_log` gets `loss` (nats per token), `completions/mean_length` and others.
        prompts: prompts to answer; at least enough for one step.
        told: for each prompt's id, the same conversation with the principles in it.

    Raises:
        TrainingError: too few prompts fit, or training diverges.
    """
    from cai.models.local.fingerprint import model_fingerprint
    from cai.models.local.loading import load_tokenizer

    config, out = job.config, job.out
    tokenizer = load_tokenizer(job.start)
    rows, dropped = prompt_rows(tokenizer, prompts, config, answers_per_step(config), told)
    fingerprint = job.fingerprint(rows, model_fingerprint(job.start))
    if (done := begin(out, fingerprint)) is not None:
        return done
    if is_first_process() and (warning := shared_limit_warning(tokenizer, config.online, "online")):
        job.warn(warning)
    with quiet_training():
        trainer = self_distill_trainer(job, tokenizer, rows)
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=job.on_log, dropped=dropped)
    method = f"on-policy self-distillation; teacher: {job.start_name}, with the principles in context"
    finish(out, fingerprint, CardFacts("policy", job.model.path, method, {"own answers": result.examples}, config, result, job.seed))
    return result


def answers_per_step(config: PolicyConfig) -> int:
    """Return the number of answers per optimizer step, over all processes."""
    return config.batch_size * config.gradient_accumulation * process_count()


def self_distill_trainer(job: PolicyJob, tokenizer: Any, rows: list[dict[str, Any]]) -> Any:
    """Return TRL's trainer with policy, teacher and prompts, ready to train. Call it where warnings are hidden: TRL's is experimental."""
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig

    from cai.models.local.engine import stop_ids
    from cai.train.rl.self_distill_trainer import LengthGuard, SelfDistillRun

    config, per_step = job.config, answers_per_step(job.config)
    steps = min(config.distill.max_steps, ceil(config.epochs * len(rows) / per_step))
    arguments = {
        **training_arguments(config, len(rows), checkpoint_folder(job.out), job.seed),
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
    policy = load_policy(job)
    if job.sft_adapter is not None:
        add_reference(policy)
    trainer = SelfDistillRun(
        model=policy,
        args=SDFTConfig(**arguments),
        train_dataset=Dataset.from_list(in_order(rows, steps * per_step, job.seed)),
        processing_class=tokenizer,
        callbacks=[LengthGuard(job.warn)],
    )
    trainer.thinking_tokens = config.online.thinking_tokens
    trainer.eos_token_ids = sorted(stop_ids(policy.get_base_model(), encoder_of(tokenizer)))  # templates end turns with other tokens
    float_trained_weights(trainer.model)
    return trainer
