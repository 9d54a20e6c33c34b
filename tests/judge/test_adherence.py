"""One response under the constitution, on a scripted judge."""

import asyncio
import math

import pytest

from cai.errors import ConstitutionError
from cai.judge.adherence import adherence, principles_for
from cai.judge.protocol import ProtocolContext
from cai.models.base import TextModel
from cai.models.requests import Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.recipe import FeedbackConfig
from cai.records import Constitution, Message, Prompt
from tests.judge.judging import CONSTITUTION, TEMPLATES, log_odds_reply, principle


def prompt(number: int = 0) -> Prompt:
    return Prompt(f"p{number}", "helpful", (Message("user", f"Question {number}?"),), "test")


def by_principle(request: Request) -> Reply:
    """Says Yes with a habit of 3, and on top +1 for kind, +2 for true, −1 for brief, turned round where the question is."""
    content = request.messages[-1].content
    found = next(v for name, v in {"kind": 1.0, "true": 2.0, "brief": -1.0}.items() if name in content.replace("UN", ""))
    return log_odds_reply(3.0 + (-found if "UN" in content else found))


def ask(config: FeedbackConfig) -> float:
    model = TextModel(ScriptedEngine(by_principle, name="test"), CallStore(None), "policy")
    return asyncio.run(adherence(prompt(), "An answer.", CONSTITUTION, ProtocolContext(model, TEMPLATES, config, 0)))


def test_the_habit_of_yes_cancels_and_weights_count() -> None:
    kind, true, brief = (1 / (1 + math.exp(-x)) for x in (1.0, 2.0, -1.0))
    weighted = (1.0 * kind + 2.0 * true + 0.5 * brief) / 3.5
    assert ask(FeedbackConfig(principles="ensemble")) == pytest.approx(math.log(weighted / (1 - weighted)), abs=1e-6)
    plain = (kind + true + brief) / 3
    drawn = ask(FeedbackConfig(principles="sample", per_label=3))
    assert drawn == pytest.approx(math.log(plain / (1 - plain)), abs=1e-6), "a drawn principle had its weight in the draw"


def test_all_responses_to_a_prompt_are_asked_about_the_same_principles() -> None:
    config = FeedbackConfig(principles="sample", per_label=1)
    drawn = [principles_for(prompt(i), CONSTITUTION, config, 0)[0].id for i in range(50)]
    assert set(drawn) == {"kind", "true", "brief"}
    assert drawn == [principles_for(prompt(i), CONSTITUTION, config, 0)[0].id for i in range(50)]


def test_a_kind_without_principles_is_an_error() -> None:
    only_harmful = Constitution("test", "Test", "", (principle("kind", applies_to=("harmful",)),))
    with pytest.raises(ConstitutionError, match="no principle applies to helpful prompts such as p0"):
        principles_for(prompt(), only_harmful, FeedbackConfig(), 0)
