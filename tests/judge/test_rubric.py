"""Grades from 1 to 5: how two distributions become a label, and what a judge without log-probabilities gets."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.errors import NoLogprobsError
from cai.judge.choices import Distribution
from cai.judge.protocol import MAX_LOG_ODDS, probability
from cai.judge.protocols.rubric import GRADES, better_log_odds, mean_grade, read_grade
from cai.models.base import TextModel
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from tests.judge.judging import CONSTITUTION, TEMPLATES, graded, judge_with, judged, pair, prefers_text

KIND = CONSTITUTION.principles[0]


def grade(script: Any) -> Distribution:
    with CallStore(None) as store:
        model = TextModel(ScriptedEngine(script), store, "test")
        return asyncio.run(read_grade(pair().prompt, "GOOD answer.", KIND, model, TEMPLATES))


def test_two_distributions_by_hand() -> None:
    """A: 4 or 5 with 0.2 and 0.8; B: 1 or 4 with a half each. P(A > B) = 0.5 + 0.5 · 0.8, P(equal) = 0.5 · 0.2, so p = 0.9 + 0.05."""
    a, b = (0.0, 0.0, 0.0, 0.2, 0.8), (0.5, 0.0, 0.0, 0.5, 0.0)
    assert probability(better_log_odds(a, b)) == pytest.approx(0.95, abs=1e-9)
    judgment = judged(prefers_text, "rubric", pair())[0]
    assert judgment.p_a == pytest.approx(0.95, abs=1e-9) and judgment.mass == pytest.approx(0.9)
    assert "kind: grade of A 4.80, of B 2.50" in judgment.detail


def test_one_mode_and_two_means_are_a_preference() -> None:
    """P(A > B) = 0.6 · 0.3 + 0.3 · (0.3 + 0.6) = 0.45, P(equal) = 0.1 · 0.3 + 0.6 · 0.6 + 0.3 · 0.1 = 0.42."""
    a, b = (0.0, 0.0, 0.1, 0.6, 0.3), (0.0, 0.0, 0.3, 0.6, 0.1)
    assert probability(better_log_odds(a, b)) == pytest.approx(0.45 + 0.21, abs=1e-9)


grades = st.lists(st.floats(0, 1), min_size=5, max_size=5).filter(lambda p: math.fsum(p) > 0)


@given(grades, grades)
def test_a_swap_gives_exactly_the_opposite(a: list[float], b: list[float]) -> None:
    a, b = ([x / math.fsum(p) for x in p] for p in (a, b))
    assert better_log_odds(a, b) == -better_log_odds(b, a)
    assert better_log_odds(a, a) == 0.0


def test_grades_without_overlap_are_certain_but_bounded() -> None:
    assert better_log_odds((0, 0, 0, 0, 1), (1, 0, 0, 0, 0)) == MAX_LOG_ODDS == -better_log_odds((1, 0, 0, 0, 0), (0, 0, 0, 0, 1))


def test_one_response_has_a_grade_by_the_stated_levels() -> None:
    asked: list[ChoicesRequest] = []

    def script(request: Request) -> Reply:
        assert isinstance(request, ChoicesRequest)
        asked.append(request)
        return graded(0.1, 0.0, 0.0, 0.4, 0.5)

    found = grade(script)
    assert found.probabilities == pytest.approx((0.1, 0.0, 0.0, 0.4, 0.5)) and found.mass == pytest.approx(0.9)
    assert mean_grade(found) == pytest.approx(0.1 + 1.6 + 2.5)
    content = asked[0].messages[-1].content
    assert asked[0].choices == GRADES and all(f"\n{number} = it " in content for number in GRADES) and "Be kind." in content


def test_grades_in_another_form_are_added_where_the_first_holds_little() -> None:
    def script(request: Request) -> Reply:
        assert isinstance(request, ChoicesRequest)
        p = 0.19 if request.choices[0] == " 1" else 0.01
        return ChoiceLogprobs(tuple(math.log(p) for _ in request.choices), 1)

    assert grade(script).mass == pytest.approx(1.0)


def test_grades_without_any_probability_are_a_failure() -> None:
    def impossible(request: Request) -> Reply:
        return ChoiceLogprobs((-math.inf,) * 5, 3)

    judgment = judged(impossible, "rubric", pair())[0]
    assert judgment.failure == "no_probability" and judgment.p_a is None


def test_a_server_without_log_probabilities_gives_no_grades() -> None:
    def without(request: Request) -> Reply:
        raise NoLogprobsError("the server gives no log-probabilities")

    with pytest.raises(NoLogprobsError, match="no log-probabilities"):
        asyncio.run(judge_with(without, "rubric")(pair()))
