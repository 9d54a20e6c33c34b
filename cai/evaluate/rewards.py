"""What the reward model says of each model's responses, and how far the reward model itself can be believed."""

from collections.abc import Mapping

from cai.errors import DataError
from cai.evaluate.intervals import paired_bootstrap, wilson
from cai.evaluate.paired import shared_ids, unpaired_note
from cai.records import EvalResult


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
        mean, low, high = paired_bootstrap([scores[i] - base_scores[i] for i in ids], seed)
        results.append(EvalResult("reward_change", model, mean, len(ids), low, high, unpaired_note(base_scores, scores)))
    return results


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
