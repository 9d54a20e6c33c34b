"""How much probability a judge's choices hold, and the form in which it would write them."""

import asyncio
import math

import pytest

from cai.core.console import Reporter
from cai.judge.choices import Reading, mass_warning, read_choices
from cai.models.base import TextModel
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.recipe import FeedbackConfig, Recipe
from cai.records import Constitution, Message, Principle, Provenance, ResponsePair
from tests.sessions import ScriptedSession, prompts

ASK = (Message("user", "A or B?"),)


def read(
    probabilities: dict[str, float], *, spaced: bool = False, every_form: bool = False, prefill: str = ""
) -> tuple[Reading, list[tuple[str, ...]]]:
    """Return the reading of a judge that writes these words next, and the choices that it was asked."""
    asked: list[tuple[str, ...]] = []

    def script(request: Request) -> Reply:
        assert isinstance(request, ChoicesRequest)
        asked.append(request.choices)
        return ChoiceLogprobs(tuple(math.log(probabilities.get(choice, 1e-6)) for choice in request.choices), 1, every_form)

    with CallStore(None) as store:
        model = TextModel(ScriptedEngine(script), store, "test")
        return asyncio.run(read_choices(model, ASK, ("A", "B"), prefill, spaced=spaced)), asked


def test_the_form_that_holds_the_probability_decides() -> None:
    reading, asked = read({"A": 0.0004, "B": 0.0003, " A": 0.2, " B": 0.61})
    assert asked == [("A", "B"), (" A", " B")]
    assert reading.log_odds == pytest.approx(math.log(0.2004 / 0.6103))
    assert reading.mass == pytest.approx(0.8107)


def test_one_call_is_enough_where_the_first_form_holds_it() -> None:
    reading, asked = read({"A": 0.6, "B": 0.3})
    assert asked == [("A", "B")]
    assert (reading.log_odds, reading.mass) == (pytest.approx(math.log(2)), pytest.approx(0.9))
    assert read({" A": 0.6, " B": 0.3}, spaced=True)[1] == [(" A", " B")]


@pytest.mark.parametrize(
    ("form", "calls"), [("({}", 3), ("**{}", 4), ("**({}", 5), ('"{}', 6), (" ({}", 3), (" **{}", 4)], ids=lambda x: str(x)
)
def test_a_form_with_an_opening_is_found_and_no_more_are_asked(form: str, calls: int) -> None:
    space = " " * form.startswith(" ")
    reading, asked = read({f"{space}A": 0.001, f"{space}B": 0.0005, form.format("A"): 0.2, form.format("B"): 0.7})
    assert len(asked) == calls and asked[-1] == (form.format("A"), form.format("B"))
    assert reading.log_odds == pytest.approx(math.log(0.2 / 0.7), abs=0.01) and reading.mass == pytest.approx(0.9, abs=0.01)


def test_no_opening_is_asked_after_one() -> None:
    assert read({"A": 0.01, "B": 0.02}, prefill="The answer is: (")[1] == [("A", "B"), (" A", " B")]


def test_a_reply_that_counts_every_form_is_not_asked_again() -> None:
    assert read({"A": 0.01, "B": 0.02}, every_form=True)[1] == [("A", "B")]


def test_little_probability_is_warned_about() -> None:
    assert "only 3.00% of the probability" in mass_warning(0.03, "pairwise")
    assert mass_warning(0.6, "pairwise") == mass_warning(None, "likelihood") == ""


@pytest.mark.parametrize(("language", "choices"), [("de", ("Ja", "Nein")), ("zh", ("是", "否"))])
def test_a_judge_is_asked_and_answers_in_the_templates_language(language: str, choices: tuple[str, str]) -> None:
    def script(request: Request) -> Reply:
        assert isinstance(request, ChoicesRequest) and request.choices == choices
        return ChoiceLogprobs((math.log(0.7), math.log(0.2)), 1)

    recipe = Recipe(name="t", templates=f"prompts/templates/{language}", feedback=FeedbackConfig(protocol="pointwise"))
    session = ScriptedSession(script, recipe=recipe)
    pair = ResponsePair(prompts(1)[0], "Kurz.", "Sehr lang.", "sampled", Provenance("m"))
    judgment = session.ask(lambda s: s.judge(Constitution("c", "C", "D", (Principle("kurz", "Fass dich kurz."),)))(pair))
    assert judgment.failure is None and judgment.p_a == pytest.approx(0.5)
    assert all("Fass dich kurz." in r.messages[-1].content for r in session.asked)


def test_a_session_says_that_its_judge_would_not_write_the_choices() -> None:
    class Kept(Reporter):
        warnings: tuple[str, ...] = ()

        def warn(self, text: str) -> None:
            self.warnings += (text,)

    for yes, warned in ((0.001, True), (0.6, False)):
        session, reporter = ScriptedSession(lambda request, p=yes: ChoiceLogprobs((math.log(p), math.log(p / 2)), 1)), Kept()
        session.reporter = reporter
        session.run(lambda s: read_choices(s.judge_model, ASK, ("Yes", "No")), "ask")
        assert bool(reporter.warnings) == warned and all("0.15%" in text or "hardly write" in text for text in reporter.warnings)
