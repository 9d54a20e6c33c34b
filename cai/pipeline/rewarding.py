"""Builds a run's reward functions and its over-optimization monitor."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from cai.core.flow import together
from cai.data.prompts import split_monitored
from cai.errors import RecipeError, ReplyError
from cai.judge.adherence import adherence
from cai.judge.probe import NO_PROBE, check_probe, probe_of, probe_score
from cai.judge.protocol import ProtocolContext
from cai.models.base import TextModel
from cai.pipeline.context import Context
from cai.pipeline.methods import METHODS, is_watched
from cai.pipeline.policy_method import needs_scorer
from cai.pipeline.reward_models import load_gold, load_rewards
from cai.recipe import GOLD, RewardTerm
from cai.records import Failure, MonitorPoint, Prompt
from cai.train.checkpoints import TrainResult
from cai.train.monitor import FRONTIER, Items, Monitor, MonitorSpec
from cai.train.rl.online_method import OnlineMethod
from cai.train.rl.rewards import RewardFunction, proxy_of
from cai.train.rl.term import Answers, TermScorer
from cai.train.running import PolicyJob

TRACKED_FIELDS = ("proxy", "gold", "gold_low", "gold_high", "kl", "disagreement", "words", "refusal_rate", "repetition", "distinct")
"""Fields of an observation that are sent to the tracker."""


def train_rewarded(c: Context, method: OnlineMethod, job: PolicyJob) -> TrainResult:
    """Train the policy on its own samples from the SFT adapter, with the recipe's reward functions and monitor."""
    from cai.train.rl.grpo import train_online

    warn_if_unmonitored(c)
    with asyncio.Runner() as runner:  # the judge's event loop; training runs outside it, so that Ctrl-C stops it at once
        try:
            judge = open_asked(c, runner)
            return train_online(
                method,
                job,
                list(c.read("prompts", Prompt)),
                lambda: load_reward_function(c, judge, runner),
                reward_identity(c, judge),
                load_monitor=(lambda rewarding: load_monitor(c, rewarding)) if is_watched(c.recipe) else None,
            )
        finally:
            runner.run(c.session.close_models())


def open_asked(c: Context, runner: asyncio.Runner) -> TextModel | None:
    """Open the judge's model if a reward term asks it or reads its hidden states; else None."""
    asks = needs_scorer(c.recipe, "judge") or needs_scorer(c.recipe, "probe")
    return runner.run(c.session.open_model(c.recipe.judge)) if asks else None


def warn_if_unmonitored(c: Context) -> None:
    """Warn if no over-optimization monitor observes the run's policy."""
    if not is_watched(c.recipe):
        why = "see `gold` and `policy.watch`" if METHODS.get(c.recipe.policy.method).watch else f"{c.recipe.policy.method} has no watch"
        c.reporter.say(f"no gold reward model watches this policy, so over-optimization would not be seen ({why})", "yellow")


def reward_identity(c: Context, judge: TextModel | None) -> Any:
    """Return what identifies the run's reward functions and monitor, for the fingerprint of the training."""
    models = c.recipe.reward.member_names if needs_scorer(c.recipe, "ensemble") else ()
    watched = [GOLD] if is_watched(c.recipe) else []
    return (
        run_scorers(c, (*models, *watched)),
        (c.recipe.reward.aggregate, c.recipe.reward.uncertainty_penalty),
        c.constitution.hash if needs_scorer(c.recipe, "constitution") else None,
        None if judge is None else (judge.fingerprint, c.recipe.feedback, c.constitution.hash, c.session.judge_templates.hash),
        [p.id for p in monitor_prompts(c)] if watched else [],
    )


def run_scorers(c: Context, names: Sequence[str]) -> list[tuple[str, float]]:
    """Return what determines the scores of the run's reward models of these names."""
    from cai.train.reward.ensemble import scorer_fingerprints

    return scorer_fingerprints([c.run.model(name) for name in names], c.recipe.trained)


def load_reward_function(c: Context, judge: TextModel | None, runner: asyncio.Runner) -> RewardFunction:
    """Return the weighted sum of the recipe's reward terms, with their models loaded.

    Args:
        judge: from `open_asked`.
        runner: runner of the judge's event loop.
    """
    ensemble = load_rewards(c.recipe, c.run).score if needs_scorer(c.recipe, "ensemble") else None
    judging = _judging(c, judge, runner) if judge is not None and needs_scorer(c.recipe, "judge") else None
    probing = _probing(c, judge, runner) if judge is not None and needs_scorer(c.recipe, "probe") else None
    return RewardFunction(c.recipe.policy.online.rewards, ensemble, judging, c.constitution, probing)


def watching(c: Context) -> MonitorSpec | None:
    """Return the monitor of a policy that trains on pairs. Its proxy reward is the run's reward models, trained on the same pairs."""
    if not is_watched(c.recipe):
        return None
    reward = c.recipe.reward
    by = (
        run_scorers(c, (*reward.member_names, GOLD)),
        (reward.aggregate, reward.uncertainty_penalty),
        [p.id for p in monitor_prompts(c)],
    )

    def load() -> Monitor:
        return load_monitor(c, RewardFunction((RewardTerm(),), load_rewards(c.recipe, c.run).score))

    return MonitorSpec(load, by, c.reporter.warn)


def load_monitor(c: Context, rewarding: RewardFunction) -> Monitor:
    """Load the monitor: its held-out prompts, the proxy reward and the gold reward model."""
    gold, prompts = load_gold(c.recipe, c.run), monitor_prompts(c)

    def score(items: Items) -> Sequence[float]:
        return [s.value for s in gold.score(items)]

    return Monitor(
        prompts, c.recipe.policy.watch, proxy_of(rewarding, prompts), score, c.run.model("policy") / FRONTIER, partial(log_monitor_point, c)
    )


def log_monitor_point(c: Context, point: MonitorPoint) -> None:
    """Send an observation to the tracker."""
    c.tracking.log(c.stage, {f"watch/{name}": value for name in TRACKED_FIELDS if (value := getattr(point, name)) is not None}, point.step)


def monitor_prompts(c: Context) -> list[Prompt]:
    """Return the monitor's held-out prompts, which `evaluate` leaves out."""
    return split_monitored(list(c.read("eval_prompts", Prompt)), c.recipe.policy.watch.prompts, c.recipe.seed)[0]


def _judging(c: Context, judge: TextModel, runner: asyncio.Runner) -> TermScorer:
    """Return the judge as a reward term. A failed call is a counted failure and gives None."""
    asking = ProtocolContext(judge, c.session.judge_templates, c.recipe.feedback, c.recipe.seed)
    return _each(c, lambda prompt, text: adherence(prompt, text, c.constitution, asking), runner)


def _probing(c: Context, judge: TextModel, runner: asyncio.Runner) -> TermScorer:
    """Return the recipe's probe as a reward term. A text that can't be read is a counted failure and gives None."""
    probe = probe_of(c.recipe.feedback, c.root)
    if probe is None:
        raise RecipeError(NO_PROBE)
    check_probe(probe, judge.fingerprint)
    return _each(c, lambda prompt, text: probe_score(probe, judge, prompt.messages, text), runner)


def _each(c: Context, score: Callable[[Prompt, str], Awaitable[float]], runner: asyncio.Runner) -> TermScorer:
    async def one(prompt: Prompt, text: str) -> float | None:
        try:
            return await score(prompt, text)
        except ReplyError as e:
            c.failures.append(Failure(c.stage, prompt.id, e.reason, e.detail))
            return None

    async def every(answers: Answers) -> list[float | None]:
        waiting: list[Awaitable[float | None]] = [one(prompt, text) for prompt, text in answers]
        return await together(waiting)

    return lambda answers: runner.run(every(answers))
