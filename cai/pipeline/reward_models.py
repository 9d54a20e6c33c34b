"""Trains, measures and loads a run's reward models.

`data/reward_scores.jsonl` has every member's scores of both responses of each held-out pair and, with several members, of each training
pair. `cai human queue --by disagreement` selects pairs for human labels by them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cai.core.jsonl import read_records, write_records
from cai.core.workspace import RunDirectory
from cai.evaluate.rewards import member_accuracy
from cai.ids import derive_seed
from cai.models.opening import release_memory
from cai.recipe import GOLD, GoldConfig, Recipe
from cai.records import EvalResult, Preference
from cai.train.reward.metrics import ENSEMBLE, RewardMeasure, measure_scores
from cai.train.running import OnLog

if TYPE_CHECKING:
    from cai.train.reward.ensemble import RewardEnsemble


def train_rewards(
    recipe: Recipe,
    run: RunDirectory,
    train: Sequence[Preference],
    held_out: Sequence[Preference],
    on_log: Callable[[str, int, int, dict[str, float]], None],
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Train a run's reward models, and write their scores and measures.

    Args:
        held_out: pairs to measure on; may be empty.
        on_log: called after each step with the member's name, the step, the total and the metrics.

    Returns:
        Counts, and all members' training steps for metrics.jsonl; both empty except on rank 0.
    """
    from cai.train.reward.ensemble import score_pairs
    from cai.train.reward.train import train_members
    from cai.train.running import HISTORY, is_first_process

    config = recipe.reward
    similarity = recipe.prompts.near_duplicates
    results = train_members(config, recipe.trained, train, held_out, run.path / "models", recipe.seed, on_log, similarity)
    if not is_first_process():
        return {}, []
    # From the members' log files, because members that were already trained don't log again.
    steps = [{**row, "member": name} for name in results for row in read_records(run.model(name) / HISTORY, dict[str, Any])]
    ensemble = load_rewards(recipe, run)
    scored = score_pairs(ensemble, held_out, held_out=True)
    if config.members > 1:
        scored += score_pairs(ensemble, train, held_out=False)
    del ensemble
    release_memory()
    write_records(run.data("reward_scores"), scored)
    write_records(run.data("reward_measures"), measure_scores([p for p in scored if p.held_out], config.member_names))
    dropped = sum((Counter(r.dropped) for r in results.values()), Counter[str]())
    counts = {
        **({"members": len(results)} if len(results) > 1 else {}),
        "examples": sum(r.examples for r in results.values()),
        "steps": sum(r.steps for r in results.values()),
        **{f"dropped_{k}": v for k, v in sorted(dropped.items())},
        **_truncated(sum(r.truncated for r in results.values())),
    }
    return counts, steps


def train_gold(recipe: Recipe, gold: GoldConfig, run: RunDirectory, on_log: OnLog) -> dict[str, int]:
    """Train a run's gold reward model on its own pairs, with its own seed and settings. Returns counts."""
    from cai.train.reward.train import train_reward

    train, held_out = (list(read_records(run.data(name), Preference)) for name in (GOLD, f"{GOLD}_heldout"))
    result = train_reward(gold.reward, recipe.trained, train, held_out, run.model(GOLD), derive_seed(recipe.seed, GOLD), on_log)
    dropped = {f"gold_dropped_{reason}": count for reason, count in sorted(result.dropped.items())}
    return {"gold_examples": result.examples, "gold_steps": result.steps, **dropped, **_truncated(result.truncated, "gold_")}


def _truncated(pairs: int, whose: str = "") -> dict[str, int]:
    return {f"{whose}pairs_truncated": pairs} if pairs else {}


def load_rewards(recipe: Recipe, run: RunDirectory) -> "RewardEnsemble":
    """Load a run's reward models as the ensemble of its recipe. Raises `ModelError`."""
    from cai.train.reward.ensemble import load_ensemble

    config = recipe.reward
    base = msgspec.structs.replace(recipe.trained, precision=config.precision)
    return load_ensemble([run.model(name) for name in config.member_names], base, config.aggregate, config.uncertainty_penalty)


def load_gold(recipe: Recipe, run: RunDirectory) -> "RewardEnsemble":
    """Load a run's gold reward model; call it only for recipes with one. Raises `ModelError`."""
    from cai.train.reward.ensemble import load_ensemble

    assert recipe.gold is not None
    return load_ensemble([run.model(GOLD)], msgspec.structs.replace(recipe.trained, precision=recipe.gold.precision))


def run_accuracies(run: RunDirectory) -> list[EvalResult]:
    """Return the accuracy of a run's reward models on its held-out pairs, the ensemble's first; empty without held-out pairs."""
    whole = [m for m in read_records(run.data("reward_measures"), RewardMeasure) if m.by == "all"]
    return [member_accuracy(m.model, m.metrics) for m in sorted(whole, key=lambda m: m.model != ENSEMBLE)]


def reward_models(recipe: Recipe) -> tuple[str, ...]:
    """Return the folders of the reward ensemble's members, relative to the run directory."""
    return tuple(f"models/{name}" for name in recipe.reward.member_names)


def gold_data(recipe: Recipe) -> tuple[str, ...]:
    """Return the files of the gold reward model's pairs, relative to the run directory; empty without a gold reward model."""
    return (f"data/{GOLD}.jsonl", f"data/{GOLD}_heldout.jsonl") if recipe.gold else ()


def gold_model(recipe: Recipe) -> tuple[str, ...]:
    """Return the folder of the gold reward model, relative to the run directory; empty without a gold reward model."""
    return (f"models/{GOLD}",) if recipe.gold else ()
