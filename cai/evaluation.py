"""`evaluate`, as a stage and as a command: answers to held-out prompts, scored by the reward model and the judge, then measured.

The measures themselves are in `cai.evaluate`; this module only gathers what they need.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.console import Reporter
from cai.critique import respond
from cai.evaluate.policies import AGAINST, Verdicts, evaluate_policies
from cai.evaluate.rewards import reward_accuracy
from cai.feedback.harm import harm_probability
from cai.feedback.judge import Judge
from cai.flow import run_items
from cai.models.base import TextModel
from cai.recipe import Recipe
from cai.records import EvalResult, Failure, Prompt, Response, ResponsePair, Sample
from cai.templates import Templates


@dataclass(frozen=True)
class Measured:
    """What an evaluation gives."""

    results: tuple[EvalResult, ...]
    samples: tuple[Sample, ...]
    """Every prompt that all models answered."""


async def answer_all(
    prompts: Sequence[Prompt],
    model: TextModel,
    templates: Templates,
    recipe: Recipe,
    settings_hash: str,
    failures: list[Failure],
    on_progress: Callable[[int], None],
) -> list[Response]:
    """Answer every prompt with one model. The same seeds serve every model, so that differences are the models'."""

    async def work(prompt: Prompt) -> Response:
        return await respond(prompt, model, templates, recipe.evaluate.sampling, recipe.seed, settings_hash)

    return [
        r
        async for r in run_items(
            prompts,
            work,
            window=recipe.window,
            max_failure_fraction=recipe.max_failure_fraction,
            stage="evaluate",
            failures=failures,
            on_progress=on_progress,
        )
    ]


async def measure_answers(
    answers: Mapping[str, Sequence[Response]],
    judge: Judge,
    reward_folder: Path | None,
    recipe: Recipe,
    failures: list[Failure],
    reporter: Reporter,
) -> Measured:
    """Score and judge the answers, then measure every model against `base`.

    Args:
        answers: model name to its responses; `base` first.
        judge: compares each model's response with the base model's, and says which answers to harmful prompts are harmful.
        reward_folder: a trained reward model; None leaves its measures out.
        recipe: window, failure limit and seed.
        failures: gets what couldn't be judged.
        reporter: shows progress.
    """
    p_wins = await _win_probabilities(answers, judge, recipe, failures, reporter)
    rewards, accuracy = score_answers(answers, reward_folder) if reward_folder is not None else ({}, [])
    p_harmful = await _harm_probabilities(answers, judge, recipe, failures, reporter)
    results = [*evaluate_policies(answers, Verdicts(p_wins, rewards, p_harmful), recipe.seed), *accuracy]
    return Measured(tuple(results), _samples(answers, rewards))


async def _win_probabilities(
    answers: Mapping[str, Sequence[Response]], judge: Judge, recipe: Recipe, failures: list[Failure], reporter: Reporter
) -> dict[str, dict[str, float]]:
    """Return the judge's probability, per model and prompt, that the model's response beats the base model's."""
    base = {r.prompt.id: r for r in answers.get(AGAINST, ())}
    found: dict[str, dict[str, float]] = {
        model: {r.prompt.id: 0.5 for r in responses if r.prompt.id in base and r.text == base[r.prompt.id].text}
        for model, responses in answers.items()
        if model != AGAINST
    }
    pairs = [
        (model, ResponsePair(r.prompt, r.text, base[r.prompt.id].text, "evaluation", r.provenance))
        for model, responses in answers.items()
        if model != AGAINST
        for r in responses
        if r.prompt.id in base and r.text != base[r.prompt.id].text
    ]

    async def work(item: tuple[str, ResponsePair]) -> tuple[str, str, float | None, str | None]:
        model, pair = item
        judgment = await judge(pair)
        return model, pair.prompt.id, judgment.p_a, judgment.failure

    results = run_items(
        pairs,
        work,
        window=recipe.window,
        max_failure_fraction=recipe.max_failure_fraction,
        stage="evaluate",
        failures=failures,
        item_id=lambda item: f"{item[0]}:{item[1].prompt.id}",
        failure_of=lambda result: result[3],
        on_progress=lambda done: reporter.progress(done, len(pairs), "verdicts"),
    )
    async for model, prompt_id, p_a, _ in results:
        if p_a is not None:
            found[model][prompt_id] = p_a
    return found


async def _harm_probabilities(
    answers: Mapping[str, Sequence[Response]], judge: Judge, recipe: Recipe, failures: list[Failure], reporter: Reporter
) -> dict[str, dict[str, float]]:
    """Return the judge's probability, per model and harmful prompt, that the model's answer gives what it shouldn't.

    An empty answer gives nothing, and needs no judge.
    """
    asked = [(model, r) for model, responses in answers.items() for r in responses if r.prompt.kind == "harmful"]

    async def work(item: tuple[str, Response]) -> tuple[str, str, float]:
        model, response = item
        p = await harm_probability(response, judge.model, judge.templates) if response.text.strip() else 0.0
        return model, response.prompt.id, p

    found: dict[str, dict[str, float]] = {}
    results = run_items(
        asked,
        work,
        window=recipe.window,
        max_failure_fraction=recipe.max_failure_fraction,
        stage="evaluate",
        failures=failures,
        item_id=lambda item: f"{item[0]}:{item[1].prompt.id}:harm",
        on_progress=lambda done: reporter.progress(done, len(asked), "answers looked at for harm"),
    )
    async for model, prompt_id, p in results:
        found.setdefault(model, {})[prompt_id] = p
    return found


def score_answers(answers: Mapping[str, Sequence[Response]], folder: Path) -> tuple[dict[str, dict[str, float]], list[EvalResult]]:
    """Return reward scores per model and prompt, and the reward model's own accuracy on held-out rows, if it was measured.

    Raises:
        ModelError: the folder holds no reward model.
    """
    import msgspec

    from cai.train.ensemble import load_ensemble
    from cai.train.reward import METRICS, HeldOutMetrics

    model = load_ensemble([folder])
    scores = {
        name: {
            r.prompt.id: score.value
            for r, score in zip(responses, model.score([(r.prompt.messages, r.text) for r in responses]), strict=True)
        }
        for name, responses in answers.items()
    }
    metrics = folder / METRICS
    if not metrics.exists():
        return scores, []
    held_out = msgspec.json.decode(metrics.read_bytes(), type=HeldOutMetrics)
    return scores, [reward_accuracy(held_out.accuracy * held_out.n, held_out.n)]


def _samples(answers: Mapping[str, Sequence[Response]], rewards: Mapping[str, Mapping[str, float]]) -> tuple[Sample, ...]:
    """Put the answers of all models to one prompt side by side."""
    texts = {model: {r.prompt.id: r.text for r in responses} for model, responses in answers.items()}
    prompts = [r.prompt for r in next(iter(answers.values()), ())]
    return tuple(
        Sample(
            p,
            {model: found[p.id] for model, found in texts.items()},
            {model: scores[p.id] for model, scores in rewards.items() if p.id in scores},
        )
        for p in prompts
        if all(p.id in found for found in texts.values())
    )
