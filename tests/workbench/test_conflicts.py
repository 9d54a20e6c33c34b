"""Which principles a model finds contradictory."""

import math

import pytest

from cai.errors import ReplyError
from cai.models.base import ChoiceLogprobs, ChoicesRequest, Reply, Request
from cai.records import Constitution, Principle
from cai.workbench.conflicts import find_conflicts
from tests.sessions import ScriptedSession

PRINCIPLES = (
    Principle("brief", "Be brief."),
    Principle("long", "Explain at length.", applies_to=("helpful",)),
    Principle("kind", "Be kind."),
    Principle("refuse", "Refuse.", applies_to=("harmful",)),
)
CONSTITUTION = Constitution("c", "C", "D", PRINCIPLES)


def test_the_likeliest_conflict_comes_first_and_the_order_of_two_rules_cancels() -> None:
    def script(request: Request) -> Reply:
        assert isinstance(request, ChoicesRequest) and request.choices == ("Yes", "No")
        text = request.messages[-1].content
        yes = 0.8 if "brief" in text and "length" in text else 0.3
        yes += 0.1 if "Rule 1: Be" in text else 0.0  # a bias for one order
        return ChoiceLogprobs((math.log(yes), math.log(1 - yes)), 1)

    session = ScriptedSession(script)
    found, unanswered = session.ask(lambda s: find_conflicts(s, CONSTITUTION))
    assert (found[0].first, found[0].second, found[0].kinds) == ("brief", "long", ("helpful",)) and found[0].p > 0.5
    assert ("long", "refuse") not in {(c.first, c.second) for c in found}, "no prompt draws both"
    assert len(found) == 5 and unanswered == 0 and all(c.p < 0.5 for c in found[1:])
    assert len(session.asked) == 10


def test_a_model_without_an_answer_is_an_error_and_one_pair_is_not() -> None:
    def silent(request: Request) -> Reply:
        raise ReplyError("refused", "no")

    with pytest.raises(ReplyError):
        ScriptedSession(silent).ask(lambda s: find_conflicts(s, CONSTITUTION))

    def shy(request: Request) -> Reply:
        assert isinstance(request, ChoicesRequest)
        if "length" in request.messages[-1].content:
            raise ReplyError("refused", "no")
        return ChoiceLogprobs((math.log(0.1), math.log(0.9)), 1)

    found, unanswered = ScriptedSession(shy).ask(lambda s: find_conflicts(s, CONSTITUTION))
    assert (len(found), unanswered) == (3, 2)
