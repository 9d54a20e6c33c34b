"""The evaluation, as a stage and as a command: answer → judge → score → measure.

The models respond to held-out prompts one after the other, the judge compares the responses, reward models score them, and
`cai.evaluate.policies` computes the measures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cai.core.flow import Failed
from cai.errors import NoLogprobsError
from cai.evaluate.arena import Arena, Duel, pairings, rate
from cai.evaluate.knowledge import FactProbe, Knowledge, Passage, ask_knowledge, knowledge_results
from cai.evaluate.paired import by_prompt, shared_ids
from cai.evaluate.policies import AGAINST, Verdicts, corrected, evaluate_policies
from cai.evaluate.rewards import reward_disagreement
from cai.evaluate.win_rate import outcomes_by_reward
from cai.generate.critique import respond
from cai.judge.harm import harm_probability
from cai.judge.judge import Judge
from cai.recipe import ModelSpec
from cai.records import EvalResult, Prompt, Response, ResponsePair, RewardScore, Sample
from cai.session import Session

if TYPE_CHECKING:
    from cai.train.reward.ensemble import RewardEnsemble

AnswersByModel = Mapping[str, Sequence[Response]]
"""Model name to its responses; `base` first, if models are compared with it."""


@dataclass(frozen=True)
class Questions:
    """The inputs of an evaluation, the same for all models."""

    prompts: Sequence[Prompt]
    facts: Sequence[FactProbe] = ()
    """Short questions with known answers."""
    passages: Sequence[Passage] = ()
    """Texts whose perplexity is measured."""


@dataclass(frozen=True)
class EvaluationAnswers:
    """The models' responses."""

    answers: dict[str, list[Response]] = field(default_factory=dict)
    knowledge: dict[str, Knowledge] = field(default_factory=dict)
    """Model name to its results on facts and passages; empty if there were none."""


@dataclass(frozen=True)
class Measured:
    """Results of an evaluation."""

    results: tuple[EvalResult, ...]
    samples: tuple[Sample, ...]
    """The responses side by side, for each prompt that all models answered."""


async def answer(session: Session, specs: Mapping[str, ModelSpec], questions: Questions, recipe_hash: str = "") -> EvaluationAnswers:
    """Collect every model's responses, with one model in memory at a time. All models sample with the same seeds."""
    answered = EvaluationAnswers()
    for name, spec in specs.items():
        model = await session.open_model(spec)
        work = partial(respond, writer=session.writer(model, recipe_hash), sampling=session.recipe.evaluate.sampling)
        answered.answers[name] = await session.each(questions.prompts, work, f"answers of {name}")
        if questions.facts or questions.passages:
            answered.knowledge[name] = await ask_knowledge(session, model, name, questions.facts, questions.passages)
        await session.close_models()
    return answered


async def judge_answers(session: Session, answers: AnswersByModel, judge: Judge) -> Verdicts:
    """Let the judge compare each model's responses with the base model's, and classify responses to harmful prompts as harmful or not."""
    wins = await _win_probabilities(session, answers, judge)
    return Verdicts(p_wins=wins, p_harmful=await _harm_probabilities(session, answers, judge))


def score_answers(answers: AnswersByModel, ensemble: "RewardEnsemble") -> dict[str, dict[str, RewardScore]]:
    """Return reward scores per model and prompt."""
    scores = iter(ensemble.score([(r.prompt.messages, r.text) for responses in answers.values() for r in responses]))
    return {name: {r.prompt.id: next(scores) for r in responses} for name, responses in answers.items()}


def measure(
    answered: EvaluationAnswers, verdicts: Verdicts, scores: Mapping[str, Mapping[str, RewardScore]] | None = None, seed: int = 0
) -> Measured:
    """Measure every model against `base`, with Holm's correction for multiple testing. Without `scores`, rewards are left out."""
    answers, found = answered.answers, scores or {}
    rewards = {model: {i: s.value for i, s in mine.items()} for model, mine in found.items()}
    results = evaluate_policies(answers, Verdicts(verdicts.p_wins, rewards, verdicts.p_harmful), seed)
    spread = {model: {i: s.std for i, s in mine.items() if len(s.members) > 1} for model, mine in found.items()}
    for model, stds in spread.items():
        results += reward_disagreement(model, stds, None if model == AGAINST else spread.get(AGAINST), seed)
    for model, known in answered.knowledge.items():
        results += knowledge_results(model, known, None if model == AGAINST else answered.knowledge.get(AGAINST), seed)
    return Measured(tuple(corrected(results)), _samples(answers, rewards, spread, verdicts.p_wins, verdicts.p_harmful))


async def hold_arena(session: Session, answers: AnswersByModel, judge: Judge, rewards: Sequence[Path] = ()) -> list[Arena]:
    """Rate models by pairwise comparison of their responses: by the judge, and by reward models if there are any.

    Args:
        answers: responses of at least two models, in any order.
    """
    found = {model: by_prompt(responses) for model, responses in answers.items()}
    meetings = [(a, b, i) for a, b in pairings(list(found)) for i in shared_ids(found[a], found[b])]
    same = [(a, b, i) for a, b, i in meetings if found[a][i].text == found[b][i].text]
    asked = [m for m in meetings if m not in set(same)]

    async def work(meeting: tuple[str, str, str]) -> tuple[Duel, Failed | None]:
        a, b, i = meeting
        first, second = found[a][i], found[b][i]
        judgment = await judge(ResponsePair(first.prompt, first.text, second.text, "arena", first.provenance))
        p = judgment.p_a
        return Duel(i, a, b, 0.5 if p is None or p == 0.5 else float(p > 0.5)), judgment.failed

    judged = await session.each(asked, work, "duels", lambda m: f"{m[0]}:{m[1]}:{m[2]}", failure_of=lambda result: result[1])
    duels = [Duel(i, a, b, 0.5) for a, b, i in same] + [duel for duel, failure in judged if failure is None]
    arenas = [rate(duels, "judge", session.recipe.seed)]
    if rewards:
        scored = score_answers(answers, await session.load_rewards(rewards))
        values = {m: {i: s.value for i, s in mine.items()} for m, mine in scored.items()}
        by_reward = [
            Duel(i, a, b, outcome)
            for a, b in pairings(list(found))
            for i, outcome in outcomes_by_reward(values[b], values[a], found[b], found[a]).items()
        ]
        arenas.append(rate(by_reward, "reward", session.recipe.seed))
    return arenas


async def _win_probabilities(session: Session, answers: AnswersByModel, judge: Judge) -> dict[str, dict[str, float]]:
    """Return the judge's probability, per model and prompt, that the model's response beats the base model's; ½ for identical responses."""
    base = {r.prompt.id: r for r in answers.get(AGAINST, ())}
    shared = [(m, r) for m, responses in answers.items() if m != AGAINST for r in responses if r.prompt.id in base]
    found: dict[str, dict[str, float]] = {model: {} for model in answers if model != AGAINST}
    pairs = []
    for model, r in shared:
        if r.text == base[r.prompt.id].text:
            found[model][r.prompt.id] = 0.5
        else:
            pairs.append((model, ResponsePair(r.prompt, r.text, base[r.prompt.id].text, "evaluation", r.provenance)))

    async def work(item: tuple[str, ResponsePair]) -> tuple[str, str, float | None, Failed | None]:
        model, pair = item
        judgment = await judge(pair)
        return model, pair.prompt.id, judgment.p_a, judgment.failed

    judged = await session.each(pairs, work, "verdicts", lambda item: f"{item[0]}:{item[1].prompt.id}", failure_of=lambda result: result[3])
    for model, prompt_id, p_a, _ in judged:
        if p_a is not None:
            found[model][prompt_id] = p_a
    return found


async def _harm_probabilities(session: Session, answers: AnswersByModel, judge: Judge) -> dict[str, dict[str, float]]:
    """Return the judge's probability, per model and harmful prompt, that the model's response is harmful.

    Empty responses have probability 0 without a call of the judge. If the judge gives no log-probabilities, the result is empty, with a
    warning.
    """
    asked = [(model, r) for model, responses in answers.items() for r in responses if r.prompt.kind == "harmful"]

    async def work(item: tuple[str, Response]) -> tuple[str, str, float]:
        model, response = item
        p = await harm_probability(response, judge.model, judge.templates) if response.text.strip() else 0.0
        return model, response.prompt.id, p

    found: dict[str, dict[str, float]] = {}
    try:
        for model, prompt_id, p in await session.each(
            asked, work, "answers checked for harm", lambda item: f"{item[0]}:{item[1].prompt.id}:harm"
        ):
            found.setdefault(model, {})[prompt_id] = p
    except NoLogprobsError as e:
        session.reporter.warn(f"harmful compliance is measured by rule alone: {e}")
        return {}
    return found


def _samples(answers: Mapping[str, Sequence[Response]], *groups: Mapping[str, Mapping[str, float]]) -> tuple[Sample, ...]:
    """Return the responses of all models side by side for each prompt, with their numbers by model and prompt, in the order of `Sample`."""
    texts = {model: {r.prompt.id: r.text for r in responses} for model, responses in answers.items()}
    prompts = [r.prompt for r in next(iter(answers.values()), ())]
    return tuple(
        Sample(
            p,
            {model: found[p.id] for model, found in texts.items()},
            *({model: numbers[p.id] for model, numbers in group.items() if p.id in numbers} for group in groups),
        )
        for p in prompts
        if all(p.id in found for found in texts.values())
    )
