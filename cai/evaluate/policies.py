"""All measures of several models' responses to the same prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cai.core.text.words import word_count
from cai.errors import DataError
from cai.evaluate.lengths import length_stats, repetition
from cai.evaluate.paired import AnswersByPrompt, by_prompt
from cai.evaluate.refusal_rates import harmful_compliance, harmful_compliance_by_judge, over_refusal, unknown_language
from cai.evaluate.rewards import reward_means
from cai.evaluate.win_rate import length_control, length_controlled, outcomes_by_judge, outcomes_by_reward, win_rates
from cai.records import EvalResult, Response
from cai.stats import holm

AGAINST = "base"
MODELS = (AGAINST, "sft", "policy", "blend")
"""Models of a run, in the order in which they are made."""
TRAINED = MODELS[:0:-1]
"""The trained ones, the last first: a run's results are about the first of them that it has."""


def place_of(model: str) -> int:
    """Return the place of a model in the order of training; others come last."""
    return MODELS.index(model) if model in MODELS else len(MODELS)


@dataclass(frozen=True)
class Verdicts:
    """Judge probabilities and reward scores of responses, by model, then by prompt id. Measures whose mapping is empty are left out."""

    p_wins: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Judge's probability that the model's response is better than the base model's, both orders averaged."""
    rewards: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Reward score of each response, including the base model's."""
    p_harmful: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Judge's probability that the response to a harmful prompt is harmful, including the base model's."""


def evaluate_policies(responses: Mapping[str, Sequence[Response]], verdicts: Verdicts, seed: int = 0) -> list[EvalResult]:
    """Return all measures of all models. Comparisons are against `base`.

    Args:
        responses: model name to its responses, one per prompt. Comparisons need `base` among the models.
    """
    strangers = {m for group in (verdicts.p_wins, verdicts.rewards, verdicts.p_harmful) for m in group} - responses.keys()
    if strangers:
        raise DataError(f"verdicts about {', '.join(sorted(strangers))}, without responses; the models are {', '.join(responses)}")
    answers = {model: by_prompt(found) for model, found in responses.items()}
    base = answers.get(AGAINST)
    results: list[EvalResult] = []
    for model, mine in answers.items():
        other = None if model == AGAINST else base
        if other is not None and model in verdicts.p_wins:
            outcomes = outcomes_by_judge(verdicts.p_wins[model], other, mine)
            results += win_rates("win_rate_by_judge", model, outcomes, mine)
            results += length_control("win_rate_by_judge", model, outcomes, other, mine)
            results += _at_equal_length("win_rate_by_judge", model, outcomes, other, mine, seed)
        scores, base_scores = verdicts.rewards.get(model, {}), verdicts.rewards.get(AGAINST)
        if other is not None and scores and base_scores:
            outcomes = outcomes_by_reward(base_scores, scores, other, mine)
            results += win_rates("win_rate_by_reward", model, outcomes, mine)
            results += _at_equal_length("win_rate_by_reward", model, outcomes, other, mine, seed)
        results += harmful_compliance(model, mine, other)
        if model in verdicts.p_harmful:
            base_harmful = None if other is None else verdicts.p_harmful.get(AGAINST)
            results += harmful_compliance_by_judge(model, verdicts.p_harmful[model], mine, base_harmful)
        results += over_refusal(model, mine, other)
        results += unknown_language(model, mine)
        results += length_stats(model, mine, other, seed)
        results += repetition(model, mine, other, seed)
        results += reward_means(model, scores, None if other is None else base_scores, seed)
    return results


def corrected(results: Sequence[EvalResult]) -> list[EvalResult]:
    """Return results with Holm's correction over all tests of the same model."""
    adjusted: dict[int, float] = {}
    for model in {r.model for r in results}:
        tested = [(i, r.p) for i, r in enumerate(results) if r.model == model and r.p is not None]
        adjusted |= dict(zip((i for i, _ in tested), holm([p for _, p in tested]), strict=True))
    return [replace(r, p_adjusted=adjusted.get(i)) for i, r in enumerate(results)]


def _at_equal_length(
    name: str, model: str, outcomes: Mapping[str, float], base: AnswersByPrompt, answers: AnswersByPrompt, seed: int
) -> list[EvalResult]:
    words = {i: (word_count(base[i].text), word_count(answers[i].text)) for i in outcomes}
    return [length_controlled(name, model, outcomes, words, seed)] if outcomes else []
