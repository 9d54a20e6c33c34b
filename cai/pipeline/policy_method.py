"""What a policy method declares: how it trains, what it reads, what decides it, what it costs, and what can be wrong with its settings."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.judge.probe import NO_PROBE
from cai.pipeline.context import Context
from cai.pipeline.costs import Costs, StagePlan
from cai.pipeline.reward_models import gold_model, reward_models
from cai.recipe import ModelSpec, OnlineConfig, PPOSpec, Recipe, Section
from cai.records import Constitution
from cai.train.rl.terms import TERMS
from cai.train.running import process_count

SAMPLES = "samples"
"""Folder in `models/policy` with the records of a method that samples first and then trains."""


@dataclass(frozen=True)
class PolicyMethod:
    """A way to train the policy from the SFT adapter."""

    name: str
    """As in a recipe's `policy.method`."""
    run: Callable[[Context], Awaitable[dict[str, int]] | dict[str, int]]
    """Trains `models/policy`, and returns counts. With several processes, every one of them calls it."""
    reads: Callable[[Recipe], tuple[str, ...]]
    """Files and folders of the run directory."""
    settings: Callable[[Recipe], Any]
    """What of the recipe decides the policy, besides its own settings: with another value the stage runs again."""
    work: Callable[[Costs], StagePlan]
    """Calls, tokens, steps and seconds, for `cai plan`. Raises what `cai plan` shows."""
    models: Callable[[Recipe], Sequence[ModelSpec]] = lambda recipe: (recipe.trained,)
    """What it trains and asks."""
    sources: Callable[[Recipe], Sequence[str]] = lambda recipe: ()
    """Workspace files that it reads."""
    problems: Callable[[Recipe], Sequence[str]] = lambda recipe: ()
    """What is wrong with its settings, a sentence each: told before anything runs."""
    watch: bool = True
    """Whether a gold reward model can watch it for over-optimization."""
    rounds: bool = False
    """Whether it keeps rounds, in `models/policy/round-N`."""
    samples: bool = False
    """Whether it keeps what it sampled, in `models/policy/samples`."""
    own_settings: type[Section] | None = None
    """Type of the settings that a recipe gives as `policy.settings`; None if it has none. `cai.recipe.own_settings` reads them."""


def ensemble_settings(recipe: Recipe) -> Any:
    """Return the settings by which the reward models' scores become one."""
    return recipe.reward.aggregate, recipe.reward.uncertainty_penalty


def reads_of_pairs(recipe: Recipe) -> tuple[str, ...]:
    """Return what a method that trains on the run's preferences reads, and what watches it."""
    looks = ("data/eval_prompts.jsonl", *reward_models(recipe), *gold_model(recipe)) if recipe.wants_watch else ()
    return ("data/preferences.jsonl", "data/preferences_heldout.jsonl", "models/sft", *looks)


def settings_of_pairs(recipe: Recipe) -> Any:
    """Return what decides such a method."""
    return recipe.policy, ensemble_settings(recipe) if recipe.wants_watch else None, None


def reads_of_samples(recipe: Recipe) -> tuple[str, ...]:
    """Return what a method reads that trains on samples of its own, scored by the run's reward models."""
    return ("data/prompts.jsonl", "data/eval_prompts.jsonl", "models/sft", *reward_models(recipe), *gold_model(recipe))


def with_judge(recipe: Recipe) -> tuple[ModelSpec, ...]:
    """Return the trained model and the judge."""
    return recipe.trained, recipe.judge


def judge_sources(recipe: Recipe) -> list[str]:
    """Return the workspace files that affect the judge, besides its model and the constitution."""
    return [path for path in (recipe.feedback.calibration, recipe.feedback.probe) if path is not None]


def term_sources(recipe: Recipe) -> list[str]:
    """Return the workspace files that the recipe's reward terms read: its probe, where one needs it."""
    probe = recipe.feedback.probe
    return [] if probe is None or not needs_scorer(recipe, "probe") else [probe]


def needs_scorer(recipe: Recipe, scorer: str) -> bool:
    """Whether a reward term scores with `ensemble`, `judge`, `constitution` or `probe`. Raises `RecipeError` for an unknown term."""
    return any(scorer in TERMS.get(term.term).needs for term in recipe.policy.online.rewards)


def no_room(recipe: Recipe, key: str, settings: OnlineConfig | PPOSpec) -> list[str]:
    """Refuse responses so long that `policy.max_length` has no room for a prompt."""
    tokens = settings.most_tokens
    if tokens < recipe.policy.max_length:
        return []
    key += " + thinking_tokens" if settings.thinking_tokens else ""
    return [f"policy.{key}: {tokens} tokens leave a prompt no room in policy.max_length ({recipe.policy.max_length}). Raise that"]


def online_problems(recipe: Recipe) -> list[str]:
    """Say what is wrong with the settings of a method that compares completions of one prompt by the recipe's reward terms."""
    problems = no_room(recipe, "online.max_tokens", recipe.policy.online)
    if group := recipe.policy.group_problem(process_count()):
        problems.append(group)
    return problems


def term_problems(recipe: Recipe, constitution: Constitution) -> list[str]:
    """Say what is wrong with the recipe's reward terms. Raises `RecipeError` for one that can't be loaded."""
    terms = [TERMS.get(name) for name in dict.fromkeys(term.term for term in recipe.policy.online.rewards)]
    problems = [NO_PROBE] if recipe.feedback.probe is None and any("probe" in term.needs for term in terms) else []
    return problems + [problem for term in terms for problem in term.problems(recipe, constitution)]
