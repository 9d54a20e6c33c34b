"""Answers gathered, judged against the base model's, and put side by side. The measures are tested in evaluate/."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.constitution.load import load_constitution
from cai.errors import NoLogprobsError, RecipeError, ReplyError
from cai.evaluate.rewards import folder_accuracies
from cai.evaluate.run import EvaluationAnswers, Measured, Questions, answer, hold_arena, judge_answers, measure, score_answers
from cai.judge.bench import chosen_protocols
from cai.judge.protocols import PROTOCOLS
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Reply, Request
from cai.models.scripted import ScriptedEngine, default_script
from cai.recipe import FeedbackConfig, ModelSpec, Recipe
from cai.records import Failure, Message, Prompt, Provenance, Response
from cai.session import Session
from tests.sessions import ScriptedSession
from tests.workspaces import ROOT

PROMPTS = [Prompt(f"p{i}", "harmful", (Message("user", f"Question {i}?"),), "test") for i in range(6)]
CONSTITUTION = load_constitution(ROOT / "constitution" / "general.yaml")
RECIPE = Recipe(name="evaluate", max_failure_fraction=0.5, feedback=FeedbackConfig(principles="sample"))


def response(prompt: Prompt, text: str) -> Response:
    return Response(prompt, text, False, Provenance("test"))


def measured(
    answers: dict[str, list[Response]], failures: list[Failure], script: Callable[[Request], Reply] = default_script, rewards: Any = None
) -> Measured:
    session = ScriptedSession(script, recipe=RECIPE)

    async def work(opened: Session) -> Measured:
        verdicts = await judge_answers(opened, answers, opened.judge(CONSTITUTION))
        scores = None if rewards is None else score_answers(answers, rewards)
        return measure(EvaluationAnswers(answers), verdicts, scores, RECIPE.seed)

    found = session.ask(work)
    failures += session.failures
    return found


def test_the_same_answers_win_half_without_a_judgement() -> None:
    base = [response(p, "The same.") for p in PROMPTS]
    failures: list[Failure] = []
    found = measured({"base": base, "policy": list(base)}, failures)
    rates = [r for r in found.results if r.name == "win_rate_by_judge"]
    assert [(r.model, r.value, r.n) for r in rates] == [("policy", 0.5, 6)] and failures == []


def test_samples_hold_what_every_model_answered() -> None:
    base = [response(p, "One answer.") for p in PROMPTS]
    policy = [response(p, f"Another answer {p.id}.") for p in PROMPTS[1:]]
    found = measured({"base": base, "policy": policy}, [])
    assert [s.prompt.id for s in found.samples] == ["p1", "p2", "p3", "p4", "p5"]
    assert found.samples[0].responses == {"base": "One answer.", "policy": "Another answer p1."} and found.samples[0].scores == {}
    assert {r.n for r in found.results if r.name == "win_rate_by_judge"} == {5}


def test_several_reward_models_score_as_one_and_their_disagreement_is_kept(tiny_model_dir: Path, tmp_path: Path) -> None:
    from cai.train.reward.ensemble import load_ensemble
    from cai.train.reward.train import train_members
    from tests.train.builders import model_at, preferences, reward_config

    model, names = model_at(tiny_model_dir), ("reward-0", "reward-1")
    train_members(reward_config(members=2), model, preferences(4), preferences(8)[4:], tmp_path, 0)
    folders = [tmp_path / name for name in names]
    answers = {m: [response(p, f"{m} {p.id}.") for p in PROMPTS] for m in ("base", "policy")}
    found = measured(answers, [], rewards=load_ensemble(folders, model, "min"))
    alone = [load_ensemble([f], model).score([(p.messages, f"policy {p.id}.") for p in PROMPTS]) for f in folders]
    for sample, *scores in zip(found.samples, *alone, strict=True):
        assert sample.scores["policy"] == pytest.approx(min(s.value for s in scores), abs=1e-4)
        assert sample.disagreement["policy"] > 0
    spread = {r.model: r for r in found.results if r.name == "reward_disagreement"}
    assert spread["policy"].value == pytest.approx(sum(s.disagreement["policy"] for s in found.samples) / 6)
    assert [(r.model, r.n) for r in found.results if r.name == "reward_disagreement_change"] == [("policy", 6)]
    assert [(r.name, r.model, r.n) for r in folder_accuracies(folders)] == [("reward_accuracy", name, 4) for name in names]
    single = measured(answers, [], rewards=load_ensemble(folders[:1], model))
    assert not any("disagreement" in r.name for r in single.results) and single.samples[0].disagreement == {}


def test_one_model_alone_is_measured_without_wins() -> None:
    found = measured({"model": [response(p, "I can't help with that.") for p in PROMPTS]}, [])
    assert {r.model for r in found.results} == {"model"}
    assert not any(r.name.startswith("win_rate") for r in found.results)


def by_words(request: Request) -> Reply:
    """A judge that finds an answer harmful by one word in it, and says Yes a little too readily to everything."""
    if isinstance(request, ChoicesRequest):
        text = request.messages[-1].content
        harmful, asks_harm = "STEP ONE" in text, "give help with something harmful" in text
        asks_safe = "avoid helping with anything harmful" in text
        if asks_harm or asks_safe:
            return ChoiceLogprobs((0.0, -1.0) if harmful == asks_harm else (-1.0, -1.5), 9)
    return default_script(request)


def test_the_judge_is_asked_about_every_answer_to_a_harmful_prompt() -> None:
    helpful = Prompt("h", "helpful", (Message("user", "A cake, please?"),), "test")
    base = [*(response(p, "STEP ONE: …") for p in PROMPTS), response(helpful, "STEP ONE: flour.")]
    policy = [*(response(p, "STEP ONE: …" if i == 0 else "Let me help in another way.") for i, p in enumerate(PROMPTS[:5]))]
    policy += [response(PROMPTS[5], " "), response(helpful, "STEP ONE: eggs.")]
    failures: list[Failure] = []
    found = measured({"base": base, "policy": policy}, failures, by_words)
    rates = {(r.name, r.model): (r.value, r.n) for r in found.results if r.name.startswith("harmful_compliance_by_judge")}
    assert rates == {
        ("harmful_compliance_by_judge", "base"): (1.0, 6),
        ("harmful_compliance_by_judge", "policy"): (pytest.approx(1 / 6), 6),
        ("harmful_compliance_by_judge_change", "policy"): (pytest.approx(-5 / 6), 6),
    }
    assert failures == []


def test_an_answer_that_the_judge_cannot_look_at_is_counted_and_left_out() -> None:
    def sometimes(request: Request) -> Reply:
        if (
            isinstance(request, ChoicesRequest)
            and "anything harmful" in request.messages[-1].content
            and "Question 3" in request.messages[-1].content
        ):
            raise ReplyError("no_probability")
        return default_script(request)

    failures: list[Failure] = []
    found = measured({"model": [response(p, f"Answer to {p.id}.") for p in PROMPTS]}, failures, sometimes)
    assert [r.n for r in found.results if r.name == "harmful_compliance_by_judge"] == [5]
    assert [(f.stage, f.item_id, f.reason) for f in failures] == [("evaluate", "model:p3:harm", "no_probability")]


def test_a_judge_without_log_probabilities_leaves_harm_to_the_rule() -> None:
    def silent(request: Request) -> Reply:
        if isinstance(request, ChoicesRequest) and "harmful" in request.messages[-1].content:
            raise NoLogprobsError("the server gives no log-probabilities")
        return default_script(request)

    failures: list[Failure] = []
    found = measured({"model": [response(p, "An answer.") for p in PROMPTS]}, failures, silent)
    names = {r.name for r in found.results}
    assert "harmful_compliance" in names and "harmful_compliance_by_judge" not in names and failures == []


def test_prompts_without_an_answer_are_counted() -> None:
    def sometimes(request: Request) -> Reply:
        if isinstance(request, CompleteRequest) and "Question 3" in request.messages[-1].content:
            raise ReplyError("refused")
        return default_script(request)

    session = ScriptedSession(sometimes, recipe=RECIPE)
    said = session.ask(lambda opened: answer(opened, {"base": ModelSpec(path="scripted")}, Questions(PROMPTS)))
    assert [r.prompt.id for r in said.answers["base"]] == ["p0", "p1", "p2", "p4", "p5"]
    assert [(f.stage, f.item_id, f.reason) for f in session.failures] == [("evaluate", "p3", "refused")]


def test_protocols_are_chosen_by_name_in_their_own_order() -> None:
    assert chosen_protocols("all", FeedbackConfig()) == [name for name in PROTOCOLS.names() if name not in ("check", "probe")]
    assert chosen_protocols("pairwise, likelihood", FeedbackConfig()) == ["likelihood", "pairwise"]
    for wrong in ("", ","):
        with pytest.raises(RecipeError, match="expected all, or some of check, likelihood, pairwise"):
            chosen_protocols(wrong, FeedbackConfig())
    with pytest.raises(RecipeError, match=r"no judging protocol 'pairwize'; known: check, .*Did you mean 'pairwise'\?"):
        chosen_protocols("likelihood,pairwize", FeedbackConfig())


def test_an_arena_judges_every_two_models_once_and_ties_equal_texts(tiny_model_dir: Path, tmp_path: Path) -> None:
    from cai.train.reward.ensemble import load_ensemble
    from cai.train.reward.train import train_members
    from tests.train.builders import model_at, preferences, reward_config

    model = model_at(tiny_model_dir)
    train_members(reward_config(), model, preferences(4), [], tmp_path, 0)
    texts = {"a": "Yes.", "b": "Yes.", "c": "No way."}
    answers = {name: [response(p, text) for p in PROMPTS] for name, text in texts.items()}
    asked: list[Request] = []

    def counting(request: Request) -> Reply:
        asked.append(request)
        return default_script(request)

    session = ScriptedSession(counting, recipe=RECIPE)
    by_judge, by_reward = session.ask(lambda opened: hold_arena(opened, answers, opened.judge(CONSTITUTION), [tmp_path / "reward-0"]))
    elo = {r.model: r.elo for r in by_judge.ratings}
    assert elo["a"] == pytest.approx(elo["b"], abs=1e-3) and {r.duels for r in by_judge.ratings} == {12}
    assert asked and all("No way." in str(r) or "Yes." in str(r) for r in asked)
    [score] = load_ensemble([tmp_path / "reward-0"], model).score([(PROMPTS[0].messages, "Yes.")])
    [other] = load_ensemble([tmp_path / "reward-0"], model).score([(PROMPTS[0].messages, "No way.")])
    rated = {r.model: r for r in by_reward.ratings}
    assert (rated["a"].elo > rated["c"].elo) is (score.value > other.value) and rated["a"].elo == pytest.approx(rated["b"].elo, abs=1e-3)


def test_models_are_closed_before_reward_models_load(tiny_model_dir: Path, tmp_path: Path) -> None:
    from cai.train.reward.train import train_members
    from tests.train.builders import model_at, preferences, reward_config

    train_members(reward_config(), model_at(tiny_model_dir), preferences(4), [], tmp_path, 0)
    closed: list[str] = []

    class Closing(ScriptedEngine):
        async def close(self) -> None:
            closed.append(self.name)

    async def opener(spec: ModelSpec) -> ScriptedEngine:
        return Closing(default_script, spec.path)

    async def work() -> None:
        async with Session("scripted", keep_calls=False, opener=opener) as session:
            assert closed == []
            await session.load_rewards([tmp_path / "reward-0"])
            assert closed == ["scripted"]

    asyncio.run(work())
