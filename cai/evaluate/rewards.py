"""Rewards of each model's responses, the disagreement of the reward models, and their accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from cai.evaluate.paired import shared_ids, unpaired_note
from cai.records import EvalResult
from cai.stats import paired_bootstrap, two_sided
from cai.train.reward.metrics import HeldOutMetrics


def reward_means(
    model: str, scores: Mapping[str, float], base_scores: Mapping[str, float] | None = None, seed: int = 0
) -> list[EvalResult]:
    """Return the mean reward (`reward`) and its mean change per prompt from the base model (`reward_change`).

    Args:
        scores: prompt id to reward, on any scale; only differences are meaningful.
    """
    if not scores:
        return []
    mean, low, high = paired_bootstrap(list(scores.values()), seed)
    results = [EvalResult("reward", model, mean, len(scores), low, high)]
    ids = [] if base_scores is None else shared_ids(base_scores, scores)
    if base_scores is not None and ids:
        differences = [scores[i] - base_scores[i] for i in ids]
        mean, low, high = paired_bootstrap(differences, seed)
        note = unpaired_note(base_scores, scores)
        results.append(EvalResult("reward_change", model, mean, len(ids), low, high, note, two_sided(differences, seed)))
    return results


def reward_disagreement(
    model: str, stds: Mapping[str, float], base_stds: Mapping[str, float] | None = None, seed: int = 0
) -> list[EvalResult]:
    """Return the reward models' mean disagreement on a model's responses, and its mean change per prompt from the base model.

    Disagreement rises when a policy leaves the distribution that the reward models were trained on.

    Args:
        stds: prompt id to the standard deviation of the members' scores; empty with one reward model.
    """
    names = {"reward": "reward_disagreement", "reward_change": "reward_disagreement_change"}
    return [replace(r, name=names[r.name]) for r in reward_means(model, stds, base_stds, seed)]


def folder_accuracies(folders: Sequence[Path]) -> list[EvalResult]:
    """Return the accuracies that were measured when the reward models were trained; models without a measurement are left out."""
    from cai.train.reward.train import METRICS

    found = [(folder.name, folder / METRICS) for folder in folders if (folder / METRICS).exists()]
    return [member_accuracy(name, msgspec.json.decode(path.read_bytes(), type=HeldOutMetrics)) for name, path in found]


def member_accuracy(model: str, metrics: HeldOutMetrics) -> EvalResult:
    """Return a reward model's accuracy with the interval that was measured over conversations."""
    return EvalResult("reward_accuracy", model, metrics.accuracy, metrics.n, metrics.low, metrics.high, "held-out preferences")
