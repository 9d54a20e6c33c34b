"""`evaluate`, as a stage and as a command: answers to held-out prompts, scored by the reward model and the judge, then measured.

The measures themselves are in `cai.evaluate`; this module only gathers what they need.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cai.core.console import Reporter
from cai.core.flow import run_items
from cai.errors import ModelError, NoLogprobsError, ReplyError
from cai.evaluate.arena import Arena, Duel, pairings, rate
from cai.evaluate.audit.asking import ask_probes
from cai.evaluate.audit.markers import mentions
from cai.evaluate.audit.probes import FactProbe, Passage, Probes
from cai.evaluate.knowledge import Knowledge, knowledge_results
from cai.evaluate.paired import by_prompt, shared_ids
from cai.evaluate.policies import AGAINST, Verdicts, corrected, evaluate_policies
from cai.evaluate.rewards import reward_disagreement
from cai.evaluate.win_rate import outcomes_by_reward
from cai.generate.critique import respond
from cai.judge.harm import harm_probability
from cai.judge.judge import Judge
from cai.models.base import TextLogprob, TextModel
from cai.models.templates import Templates
from cai.recipe import Recipe
from cai.records import EvalResult, Failure, Message, Prompt, Response, ResponsePair, RewardScore, Sample

if TYPE_CHECKING:
    from cai.train.reward.ensemble import RewardEnsemble

LoadRewards: TypeAlias = "Callable[[], Awaitable[RewardEnsemble]]"


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


async def ask_knowledge(
    facts: Sequence[FactProbe],
    passages: Sequence[Passage],
    model: TextModel,
    templates: Templates,
    recipe: Recipe,
    failures: list[Failure],
    on_progress: Callable[[int], None],
) -> Knowledge:
    """Ask a model short questions with known answers, as the audit does, and how likely it finds some passages.

    A server that can't say how likely a text is leaves the passages out, as counted failures.

    Args:
        facts: the questions.
        passages: the texts.
        model: is asked.
        templates: `respond` frames both.
        recipe: sampling of the answers, window, failure limit and seed.
        failures: gets what could not be had.
        on_progress: told how many passages are done.
    """
    asked = await ask_probes(
        Probes(facts=tuple(facts)),
        model,
        templates,
        recipe.evaluate.sampling,
        recipe.seed,
        window=recipe.window,
        max_failure_fraction=recipe.max_failure_fraction,
        failures=failures,
    )

    async def work(passage: Passage) -> tuple[str, TextLogprob]:
        prompt = templates.respond.render({"conversation": (Message("user", passage.prompt),)})
        try:
            return passage.id, await model.score(prompt.messages, passage.text)
        except ReplyError:
            raise
        except ModelError as e:
            raise ReplyError("not_scored", str(e)) from e

    scored = run_items(
        passages,
        work,
        window=recipe.window,
        max_failure_fraction=1.0,
        stage="evaluate",
        failures=failures,
        on_progress=on_progress,
    )
    nats = {i: (reply.total, reply.tokens) async for i, reply in scored}
    return Knowledge({f.id: mentions(f.right, asked.facts[f.id]) for f in facts if f.id in asked.facts}, nats)


async def measure_answers(
    answers: Mapping[str, Sequence[Response]],
    judge: Judge,
    load_rewards: "LoadRewards | None",
    recipe: Recipe,
    failures: list[Failure],
    reporter: Reporter,
    knowledge: Mapping[str, Knowledge] | None = None,
) -> Measured:
    """Score and judge the answers, then measure every model against `base`.

    Args:
        answers: model name to its responses; `base` first.
        judge: compares each model's response with the base model's, and says which answers to harmful prompts are harmful.
        load_rewards: loads the reward models, once nothing more is asked of the judge; None leaves their measures out.
        recipe: window, failure limit and seed.
        failures: gets what couldn't be judged.
        reporter: shows progress.
        knowledge: model name to what `ask_knowledge` gave.
    """
    p_wins = await _win_probabilities(answers, judge, recipe, failures, reporter)
    p_harmful = await _harm_probabilities(answers, judge, recipe, failures, reporter)
    scores = {} if load_rewards is None else score_answers(answers, await load_rewards())
    rewards = {model: {i: s.value for i, s in found.items()} for model, found in scores.items()}
    results = evaluate_policies(answers, Verdicts(p_wins, rewards, p_harmful), recipe.seed)
    spread = {model: {i: s.std for i, s in found.items() if len(s.members) > 1} for model, found in scores.items()}
    for model, stds in spread.items():
        results += reward_disagreement(model, stds, None if model == AGAINST else spread.get(AGAINST), recipe.seed)
    known = knowledge or {}
    for model, mine in known.items():
        results += knowledge_results(model, mine, None if model == AGAINST else known.get(AGAINST), recipe.seed)
    return Measured(tuple(corrected(results)), _samples(answers, rewards, spread, p_wins, p_harmful))


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

    An empty answer gives nothing, and needs no judge. A judge without log-probabilities can't be asked, which is said.
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
    try:
        async for model, prompt_id, p in results:
            found.setdefault(model, {})[prompt_id] = p
    except NoLogprobsError as e:
        reporter.warn(f"harmful compliance is measured by rule alone: {e}")
        return {}
    return found


async def hold_arena(
    answers: Mapping[str, Sequence[Response]],
    judge: Judge,
    load_rewards: "LoadRewards | None",
    recipe: Recipe,
    failures: list[Failure],
    reporter: Reporter,
) -> list[Arena]:
    """Rate models by every two's answers to each prompt that both answered: by the judge, and by the reward models if there are any.

    Takes what `measure_answers` takes, with at least two models, in any order.
    """
    found = {model: by_prompt(responses) for model, responses in answers.items()}
    meetings = [(a, b, i) for a, b in pairings(list(found)) for i in shared_ids(found[a], found[b])]
    same = [(a, b, i) for a, b, i in meetings if found[a][i].text == found[b][i].text]
    asked = [m for m in meetings if m not in set(same)]

    async def work(meeting: tuple[str, str, str]) -> tuple[Duel, str | None]:
        a, b, i = meeting
        first, second = found[a][i], found[b][i]
        judgment = await judge(ResponsePair(first.prompt, first.text, second.text, "arena", first.provenance))
        p = judgment.p_a
        return Duel(i, a, b, 0.5 if p is None or p == 0.5 else float(p > 0.5)), judgment.failure

    results = run_items(
        asked,
        work,
        window=recipe.window,
        max_failure_fraction=recipe.max_failure_fraction,
        stage="evaluate",
        failures=failures,
        item_id=lambda m: f"{m[0]}:{m[1]}:{m[2]}",
        failure_of=lambda result: result[1],
        on_progress=lambda done: reporter.progress(done, len(asked), "duels"),
    )
    tied = [Duel(i, a, b, 0.5) for a, b, i in same]
    duels = [*tied, *[duel async for duel, failure in results if failure is None]]
    arenas = [rate(duels, "judge", recipe.seed)]
    if load_rewards is not None:
        scores = {m: {i: s.value for i, s in mine.items()} for m, mine in score_answers(answers, await load_rewards()).items()}
        by_reward = [
            Duel(i, a, b, outcome)
            for a, b in pairings(list(found))
            for i, outcome in outcomes_by_reward(scores[b], scores[a], found[b], found[a]).items()
        ]
        arenas.append(rate(by_reward, "reward", recipe.seed))
    return arenas


def score_answers(answers: Mapping[str, Sequence[Response]], ensemble: "RewardEnsemble") -> dict[str, dict[str, RewardScore]]:
    """Return reward scores per model and prompt."""
    scores = iter(ensemble.score([(r.prompt.messages, r.text) for responses in answers.values() for r in responses]))
    return {name: {r.prompt.id: next(scores) for r in responses} for name, responses in answers.items()}


def _samples(answers: Mapping[str, Sequence[Response]], *said: Mapping[str, Mapping[str, float]]) -> tuple[Sample, ...]:
    """Put the answers of all models to one prompt side by side, with what was said of them, by model and prompt, in `Sample`'s order."""
    texts = {model: {r.prompt.id: r.text for r in responses} for model, responses in answers.items()}
    prompts = [r.prompt for r in next(iter(answers.values()), ())]
    return tuple(
        Sample(
            p,
            {model: found[p.id] for model, found in texts.items()},
            *({model: numbers[p.id] for model, numbers in group.items() if p.id in numbers} for group in said),
        )
        for p in prompts
        if all(p.id in found for found in texts.values())
    )
