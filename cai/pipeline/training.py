"""The stages that train: the SFT policy, the reward models, and the policy by one of several methods.

They read and write like the others (`cai.pipeline.stages`). Where several processes were started, those that join the first run these
functions too: what is written here is written by the first alone.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from cai.core.jsonl import read_records
from cai.core.workspace import replace_stage_rows
from cai.pipeline.driver import Context
from cai.pipeline.reward_models import gold_model, reward_models, train_gold, train_rewards
from cai.recipe import GOLD, ONLINE, Recipe
from cai.records import Preference, Prompt, SFTExample
from cai.train.checkpoints import TrainResult
from cai.train.rl.monitor import FRONTIER
from cai.train.running import HISTORY, OnLog, is_first_process


def sft_stage(c: Context) -> dict[str, int]:
    """Fine-tune the model on the revisions, which gives the SL-CAI policy [§3.2]."""
    from cai.train.sft import train_sft

    examples, out = list(read_records(c.run.data("sft"), SFTExample)), c.run.model("sft")
    return trained(c, train_sft(c.recipe.sft, c.recipe.trained, examples, out, c.recipe.seed, progress_of(c)), out)


def reward_stage(c: Context) -> dict[str, int]:
    """Train the reward models (the preference model of the paper) on soft labels [§4.1], and measure them on held-out rows."""
    train, held_out = (list(read_records(c.run.data(name), Preference)) for name in ("preferences", "preferences_heldout"))

    def on_log(member: str, step: int, total: int, metrics: dict[str, float]) -> None:
        c.reporter.progress(step, total, f"steps of {'the gold reward model' if member == GOLD else member}")
        c.tracking.log(member, training_numbers(metrics), step)

    counts, steps = train_rewards(c.recipe, c.run, train, held_out, on_log)
    if steps:  # the first process alone has any
        replace_stage_rows(c.run.metrics, c.stage, [{"stage": c.stage, **row} for row in steps])
    if c.recipe.gold is not None:
        counts |= train_gold(c.recipe, c.recipe.gold, c.run, partial(on_log, GOLD))
    return counts


def policy_stage(c: Context) -> Awaitable[dict[str, int]] | dict[str, int]:
    """Train the policy from the SFT adapter by the recipe's method."""
    if c.recipe.policy.method != "online-dpo":
        from cai.pipeline.online_dpo import remove_rounds

        remove_rounds(c.run.model("policy"), beyond=0)
    if not c.recipe.watched and is_first_process():
        (c.run.model("policy") / FRONTIER).unlink(missing_ok=True)  # of an earlier policy, that was watched
    return POLICY_METHODS[c.recipe.policy.method](c)


def dpo(c: Context) -> dict[str, int]:
    """DPO on soft labels (arXiv 2305.18290), or another of its family; the SFT adapter is the reference."""
    from cai.train.dpo import train_dpo

    return train_on_pairs(c, train_dpo)


def kto(c: Context) -> dict[str, int]:
    """KTO (arXiv 2402.01306) on the two sides of the same pairs."""
    from cai.train.kto import train_kto

    return train_on_pairs(c, train_kto)


def train_on_pairs(c: Context, train: Callable[..., Any]) -> dict[str, int]:
    """Train the policy on the run's preferences; watched, where there is a gold reward model."""
    from cai.pipeline.rewarding import watching

    preferences = list(read_records(c.run.data("preferences"), Preference))
    sft, out = c.run.model("sft"), c.run.model("policy")
    result = train(c.recipe.policy, c.recipe.trained, sft, preferences, out, c.recipe.seed, progress_of(c), monitor_spec=watching(c))
    return trained(c, result, out)


def online(c: Context) -> dict[str, int]:
    """GRPO or RLOO: the policy learns from its own samples, by what the recipe rewards; watched, where there is a gold reward model."""
    from cai.pipeline.rewarding import train_rewarded

    return trained(c, train_rewarded(c, progress_of(c)), c.run.model("policy"))


def ppo(c: Context) -> dict[str, int]:
    """PPO on the training prompts against the reward ensemble [§4.2]; watched, where there is a gold reward model."""
    from cai.pipeline.rewarding import log_monitor_point, monitor_prompts, warn_if_unmonitored
    from cai.train.rl.ppo import train_ppo

    warn_if_unmonitored(c)
    result = train_ppo(
        c.recipe.policy,
        c.recipe.trained,
        c.run.model("sft"),
        [c.run.model(name) for name in c.recipe.reward.member_names],
        c.recipe.reward,
        list(read_records(c.run.data("prompts"), Prompt)),
        c.run.model("policy"),
        c.recipe.seed,
        progress_of(c),
        gold=c.run.model(GOLD) if c.recipe.gold else None,
        monitor_prompts=monitor_prompts(c) if c.recipe.gold else (),
        warn=c.reporter.warn,
        on_observation=partial(log_monitor_point, c),
    )
    return trained(c, result, c.run.model("policy"))


def online_dpo(c: Context) -> dict[str, int]:
    """DPO in rounds, each on pairs that the policy of the round before answered and the judge or the reward models labelled."""
    from cai.pipeline.online_dpo import train_rounds
    from cai.pipeline.rewarding import warn_if_unmonitored

    warn_if_unmonitored(c)
    return {"rounds": c.recipe.policy.rounds.count, **trained(c, train_rounds(c, progress_of(c)), c.run.model("policy"))}


POLICY_METHODS: dict[str, Callable[[Context], Awaitable[dict[str, int]] | dict[str, int]]] = {
    "dpo": dpo,
    "kto": kto,
    "online-dpo": online_dpo,
    "grpo": online,
    "rloo": online,
    "ppo": ppo,
}
SAMPLING = (*ONLINE, "ppo")
"""Methods that train on the policy's own samples, scored by the run's reward models."""


def policy_settings(recipe: Recipe) -> Any:
    """Return what of the recipe decides the policy: its own block, and those of the stages that its method does again."""
    method, scoring = recipe.policy.method, (recipe.reward.aggregate, recipe.reward.uncertainty_penalty)
    if method == "online-dpo":
        return recipe.policy, recipe.pairs, recipe.feedback, recipe.preferences, scoring
    return recipe.policy, scoring if method in SAMPLING or recipe.watched else None, recipe.feedback if method in ONLINE else None


def policy_reads(recipe: Recipe) -> tuple[str, ...]:
    """Return what the policy is trained on, from the run directory."""
    if recipe.policy.method == "online-dpo":
        judges = reward_models(recipe) if recipe.policy.rounds.labels == "reward" else ()
        return ("data/prompts.jsonl", "data/eval_prompts.jsonl", "models/sft", *judges)
    if recipe.policy.method not in SAMPLING:
        looks = ("data/eval_prompts.jsonl", *reward_models(recipe), *gold_model(recipe)) if recipe.watched else ()
        return ("data/preferences.jsonl", "models/sft", *looks)
    return ("data/prompts.jsonl", "data/eval_prompts.jsonl", "models/sft", *reward_models(recipe), *gold_model(recipe))


def progress_of(c: Context) -> OnLog:
    """Return a callback that shows training steps, and sends their numbers to the tracker."""

    def on_log(step: int, total: int, metrics: dict[str, float]) -> None:
        c.reporter.progress(step, total, "steps")
        c.tracking.log(c.stage, training_numbers(metrics), step)

    return on_log


def training_numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Return a training step's numbers by the names that trackers group them by."""
    return {f"train/{name}": value for name, value in metrics.items()}


def trained(c: Context, result: TrainResult, out: Path) -> dict[str, int]:
    """Return a training's counts, and put its log into metrics.jsonl: the one in its folder, which a training that was killed has whole."""
    if is_first_process():
        steps = read_records(out / HISTORY, dict[str, Any])
        replace_stage_rows(c.run.metrics, c.stage, [{"stage": c.stage, **row} for row in steps])
    return {"examples": result.examples, "steps": result.steps, **{f"dropped_{k}": v for k, v in result.dropped.items()}}
