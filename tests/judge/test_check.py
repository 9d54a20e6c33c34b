"""The protocol `check`: a principle's own check decides, and no model is asked."""

from dataclasses import replace

import pytest

from cai.errors import ConstitutionError
from cai.judge.protocols.check import CERTAINTY
from cai.records import Constitution, ResponseCheck
from tests.judge.judging import judged, pair, principle

BRIEF = replace(principle("brief"), check=(ResponseCheck(max_words=2),))
ENDS = replace(principle("ends", weight=3.0), check=(ResponseCheck(kinds=("helpful",), ends_with=("?",)),))
SLOW = replace(principle("slow"), check=(ResponseCheck(matches=r"(a|a)+$"),))


def unasked(request):
    raise AssertionError(f"a check asks no model: {request}")


def constitution(*principles):
    return Constitution("checked", "Checked", "", principles)


def test_the_response_that_follows_the_check_is_better():
    better, equal = pair("Two words.", "Three words here."), pair("One.", "Two words.")
    found = judged(unasked, "check", better, better.swapped(), equal, constitution=constitution(BRIEF, principle("kind")))
    assert [j.p_a for j in found] == [pytest.approx(CERTAINTY), pytest.approx(1 - CERTAINTY), 0.5]
    assert found[0].principle_ids == ("brief",), "only principles with a check judge"


def test_several_checks_are_weighed():
    first, second = judged(
        unasked, "check", pair("Why not?", "It is so."), pair("Now.", "It is so now, is it?"), constitution=constitution(BRIEF, ENDS)
    )
    assert first.p_a == pytest.approx(CERTAINTY)
    assert 0.5 > second.p_a > 1 - CERTAINTY, "three to one for the second answer"


def test_a_pair_without_a_check_for_its_kind_is_an_error():
    for principles in ([ENDS], [principle("kind")]):
        with pytest.raises(ConstitutionError, match="no principle that check can judge by applies to harmful prompts"):
            judged(unasked, "check", pair(kind="harmful"), constitution=constitution(*principles))


def test_a_pattern_that_runs_out_of_time_is_a_named_failure():
    (found,) = judged(unasked, "check", pair("a" * 60 + "b", "b"), constitution=constitution(SLOW))
    assert (found.p_a, found.failure) == (None, "check_timeout") and "simplify it" in found.detail
