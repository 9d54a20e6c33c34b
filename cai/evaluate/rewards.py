"""What the reward model says of each model's responses, and how far the reward model itself can be believed."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from cai.errors import DataError
from cai.evaluate.paired import shared_ids, unpaired_note
from cai.records import EvalResult, ScoredPair
from cai.stats import paired_bootstrap, two_sided, wilson
from cai.train.reward.metrics import HeldOutMetrics


def reward_means(
    model: str, scores: Mapping[str, float], base_scores: Mapping[str, float] | None = None, seed: int = 0
) -> list[EvalResult]:
    """Return the mean reward (`reward`) and its mean change per prompt against the base model (`reward_change`).

    Args:
        model: whose responses were scored.
        scores: prompt id to reward; any scale, only differences mean something.
        base_scores: the same prompts answered by the base model.
        seed: of the bootstrap.
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
    """Return how far the reward models disagree on a model's responses, and how that changed per prompt against the base model.

    A policy that has left what its reward models know shows here first: they rise together on what they were taught, and apart elsewhere.

    Args:
        model: whose responses were scored.
        stds: prompt id to the standard deviation of the members' scores; empty where there is one reward model.
        base_stds: the same prompts answered by the base model.
        seed: of the bootstrap.
    """
    names = {"reward": "reward_disagreement", "reward_change": "reward_disagreement_change"}
    return [replace(r, name=names[r.name]) for r in reward_means(model, stds, base_stds, seed)]


def most_disputed(pairs: Iterable[ScoredPair], n: int) -> list[ScoredPair]:
    """Return the pairs that the reward models disagree on most, the most disputed first: those that a person should label next.

    Disagreement is that of the margins, chosen minus rejected: what members differ by on both sides alike decides nothing. Of equal ones
    the pair whose id comes first. Pairs that a person has labelled already are left out.

    Args:
        pairs: scored, by any number of reward models; one alone never disagrees.
        n: how many, at least 0.
    """
    unlabelled = (p for p in pairs if not p.source.startswith("human:") and p.disagreement > 0.0)
    return heapq.nsmallest(n, unlabelled, key=lambda p: (-p.disagreement, p.pair_id))


def reward_accuracy(correct: float, n: int, model: str = "reward-0", note: str = "held-out preferences") -> EvalResult:
    """Return how often the reward model ranks held-out preferences as they were labelled.

    Args:
        correct: pairs ranked right; a tie counts half. Between 0 and `n`.
        n: held-out pairs, at least 1.
        model: which reward model.
        note: what the pairs are: accuracy on AI labels says only that the model learned its judge.

    Raises:
        DataError: `correct` can't be out of `n`.
    """
    if n < 1 or not 0 <= correct <= n:
        raise DataError(f"reward accuracy: {correct} right out of {n} pairs is impossible; expected 0 to n, and n at least 1")
    low, high = wilson(correct, n)
    return EvalResult("reward_accuracy", model, correct / n, n, low, high, note)


def folder_accuracies(folders: Sequence[Path]) -> list[EvalResult]:
    """Return the accuracies that reward models were found to have when they were trained; none for one that was not measured."""
    from cai.train.reward.train import METRICS

    found = [(folder.name, folder / METRICS) for folder in folders if (folder / METRICS).exists()]
    return [member_accuracy(name, msgspec.json.decode(path.read_bytes(), type=HeldOutMetrics)) for name, path in found]


def member_accuracy(model: str, metrics: HeldOutMetrics) -> EvalResult:
    return reward_accuracy(metrics.accuracy * metrics.n, metrics.n, model)
