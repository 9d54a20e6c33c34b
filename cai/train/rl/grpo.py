"""GRPO (arXiv 2402.03300) and RLOO (arXiv 2402.14740) with the recipe's rewards. The SFT adapter is the start and the reference.

An `OnlineMethod` has what the two differ in. They are declared in `cai.pipeline.methods`, and a package may declare another.

Uses TRL's trainers. Departures from their defaults and from the papers:

1. The KL to the reference is on (off by default in TRL's GRPO): in the loss for GRPO, in the reward for RLOO.
2. There is one update per batch of samples, so training is on-policy, and no ratio is clipped.
3. Samples come from `cai`'s decode loop, each with its own seed, and the order of the prompts is fixed before training. So a resumed
   training samples the same completions as an uninterrupted one.
4. `missing_eos_penalty` is subtracted from the reward of a completion that was cut at the token limit or ends inside its reasoning, as in
   PPO: a cut answer is not rewarded as a finished one. A reasoning has its own limit (`thinking_tokens`) and is not rewarded.
5. A step in which no prompt's completions differ in reward gives a warning; several in a row end the training.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

from cai.errors import ReplyError, TrainingError
from cai.ids import derive_seed
from cai.recipe import PolicyConfig
from cai.records import Message, Prompt
from cai.train.arguments import training_arguments
from cai.train.cards import CardFacts
from cai.train.checkpoints import TrainResult, checkpoint_folder
from cai.train.dpo import load_policy, set_reference
from cai.train.encode import encoder_of
from cai.train.live_policy import shared_limit_warning
from cai.train.monitor import Monitor, restore_best
from cai.train.rl.online_method import OnlineMethod
from cai.train.rl.rewards import RewardFunction
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


def train_online(
    method: OnlineMethod,
    job: PolicyJob,
    prompts: Sequence[Prompt],
    load_reward_function: Callable[[], RewardFunction],
    reward_identity: Any,
    *,
    load_monitor: Callable[[RewardFunction], Monitor] | None = None,
) -> TrainResult:
    """Train the policy on its own samples, and save its adapter with tokenizer, model card and log.

    Resumes after a kill, with the monitor's observations, and returns the result of a finished training, as `train_sft` does.

    Args:
        method: `cai.GRPO`, `cai.RLOO` or another.
        job: its `on_log` gets `reward`, `reward_std`, `kl` (nats per token), `completions/mean_length`, `terms/…`.
        prompts: prompts to sample from; at least enough for one step.
        load_reward_function: returns the reward function. Called after all checks, because it may load models.
        reward_identity: any JSON value that identifies the reward function: with another one, a training begins anew instead of resuming.
        load_monitor: returns the over-optimization monitor for a reward function; None turns it off.

    Raises:
        TrainingError: too few prompts fit, groups don't fill the batch, the policy doesn't start at its reference, all completions have
            equal rewards for too long, or training diverges.
    """
    from cai.models.local.fingerprint import model_fingerprint
    from cai.models.local.loading import load_tokenizer

    config, out = job.config, job.out
    if problem := config.group_problem(process_count()):
        raise TrainingError(problem)
    tokenizer = load_tokenizer(job.start)
    rows, dropped = prompt_rows(tokenizer, prompts, config, prompts_per_step(config))
    fingerprint = job.fingerprint(rows, (model_fingerprint(job.start), reward_identity))
    if (done := begin(out, fingerprint)) is not None:
        return done
    if is_first_process() and (warning := shared_limit_warning(tokenizer, config.online, "online")):
        job.warn(warning)
    rewards = load_reward_function()
    with quiet_training():
        trainer = online_trainer(method, job, tokenizer, rows, prompts, rewards)
    monitor = None if load_monitor is None else load_monitor(rewards)
    if monitor is not None:
        from cai.train.monitor_callback import MonitorCallback

        trainer.add_callback(MonitorCallback(monitor, trainer, out, config.online, job.warn))
    result = train_and_save(trainer, tokenizer, out, fingerprint=fingerprint, on_log=job.on_log, dropped=dropped)
    best = restore_best(monitor, out) if monitor is not None and is_first_process() else None
    described = f"{method.description}; reference: {job.start_name}"
    measured = {} if best is None else {"chosen by gold reward": f"step {best} of {result.steps}"}
    terms = {f"rewarded by {t.term}, weight {t.weight:g}": 1 for t in config.online.rewards}
    finish(out, fingerprint, CardFacts("policy", job.model.path, described, terms, config, result, job.seed, measured))
    return result


def prompt_rows(
    tokenizer: Any, prompts: Sequence[Prompt], config: PolicyConfig, needed: int, told: Mapping[str, Sequence[Message]] | None = None
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return TRL's rows for the prompts that fit, and the number of dropped prompts by reason.

    Args:
        told: for each prompt's id, the same conversation with more in it, for a teacher; it has to fit too, and becomes a column.
    """
    encoder, dropped = encoder_of(tokenizer), Counter[str]()
    rows = []
    for prompt in prompts:
        try:
            longest = prompt.messages if told is None else told[prompt.id]
            ids, _ = encoder.prompt(longest)
        except ReplyError as e:
            dropped[e.reason] += 1
            continue
        if len(ids) + config.online.most_tokens > config.max_length:
            dropped["too_long"] += 1
        else:
            columns = {"prompt": prompt.messages} | ({} if told is None else {"privileged_context": longest})
            turns = {name: [{"role": m.role, "content": m.content} for m in messages] for name, messages in columns.items()}
            rows.append({**turns, "id": prompt.id})
    if len(rows) < needed:
        left_out = "".join(f", {n} {reason.replace('_', ' ')}" for reason, n in dropped.items())
        raise TrainingError(
            f"a step needs {needed} prompts, but only {len(rows)} of {len(prompts)} fit{left_out} "
            f"(policy.max_length is {config.max_length} tokens, of which {config.online.most_tokens} are for the completion).\n"
            "Fix: add prompts, raise max_length, or use a smaller batch"
        )
    return rows, dict(dropped)


def prompts_per_step(config: PolicyConfig) -> int:
    """Return the number of prompts per optimizer step, over all processes."""
    return config.batch_size * config.gradient_accumulation * process_count() // config.online.num_generations


def in_order(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of a whole training in order: passes over all rows, each in its own random order, up to `count` rows."""
    passes = ceil(count / len(rows))
    ordered = [row for i in range(passes) for row in sorted(rows, key=lambda r: derive_seed(seed, "order", i, r["id"]))]
    return ordered[:count]


def online_trainer(
    method: OnlineMethod,
    job: PolicyJob,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    prompts: Sequence[Prompt],
    rewards: RewardFunction,
) -> Any:
    """Return TRL's trainer with policy, reference, rewards and prompts, ready to train."""
    from datasets import Dataset

    from cai.models.local.engine import stop_ids
    from cai.train.rl.trainers import RewardAlarm, reward_function

    config = job.config
    steps = ceil(config.epochs * len(rows) / prompts_per_step(config))
    arguments: dict[str, Any] = {
        **training_arguments(config, len(rows), checkpoint_folder(job.out), job.seed),
        "num_train_epochs": 1,
        "shuffle_dataset": False,  # TRL would restart with its first shuffle when a training is resumed in a later epoch
        "warmup_steps": int(config.warmup_fraction * steps),
        "beta": config.beta_or(method.beta),
        "num_generations": config.online.num_generations,
        "max_completion_length": config.online.most_tokens,
        "temperature": config.online.temperature,
        "disable_dropout": True,  # dropout would differ between sampling and training, like a change of the policy
        **method.arguments(config.online),
    }
    run_class, arguments_class = method.classes()
    policy, encoder = load_policy(job), encoder_of(tokenizer)
    stops = stop_ids(policy.get_base_model(), encoder)
    trainer = run_class(
        model=policy,
        reward_funcs=[reward_function(rewards, prompts, encoder, stops, config.online.missing_eos_penalty)],
        args=arguments_class(**arguments),
        train_dataset=Dataset.from_list(in_order(rows, steps * prompts_per_step(config), job.seed)),
        processing_class=tokenizer,
        callbacks=[RewardAlarm(config.online.patience, job.warn)],
    )
    trainer.thinking_tokens = config.online.thinking_tokens
    trainer.eos_token_ids = sorted(stops)  # TRL knows only `eos_token`; templates end turns with other tokens
    float_trained_weights(trainer.model)
    set_reference(trainer.model, None)
    return trainer
