"""Where principles collide: which ones a model finds contradictory, and on what request."""

import math
from collections.abc import Callable

import pytest

from cai.errors import ReplyError
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, Reply, Request
from cai.records import Constitution, Principle
from cai.workbench.stress import Stress, find_collisions
from tests.sessions import ScriptedSession

PRINCIPLES = (
    Principle("brief", "Be brief."),
    Principle("long", "Explain at length.", applies_to=("helpful",)),
    Principle("kind", "Be kind."),
    Principle("refuse", "Refuse.", applies_to=("harmful",)),
)
CONSTITUTION = Constitution("c", "C", "D", PRINCIPLES)


ON = "Explain the tides at length, in three words."


def stress(session: ScriptedSession, requests: int = 10) -> Stress:
    return session.ask(lambda s: find_collisions(s, CONSTITUTION, requests))


def contradict(request: Request, yes: float) -> ChoiceLogprobs:
    assert isinstance(request, ChoicesRequest) and request.choices == ("Yes", "No")
    return ChoiceLogprobs((math.log(yes), math.log(1 - yes)), 1)


def writing(reply: str, truncated: bool = False) -> Callable[[Request], Reply]:
    """Brief and long collide; the request is this reply."""

    def script(request: Request) -> Reply:
        if isinstance(request, CompleteRequest):
            return Completion(reply, truncated, 1, 1)
        text = request.messages[-1].content
        return contradict(request, 0.8 if "brief" in text and "length" in text else 0.3)

    return script


def test_the_likeliest_collision_comes_first_and_the_order_of_two_rules_cancels() -> None:
    def script(request: Request) -> Reply:
        text = request.messages[-1].content
        if isinstance(request, CompleteRequest):
            assert "Be brief." in text and "Explain at length." in text
            return Completion(f" {ON}", False, 1, 1)
        yes = 0.8 if "brief" in text and "length" in text else 0.3
        return contradict(request, yes + (0.1 if "Rule 1: Be" in text else 0.0))  # a bias for one order

    session = ScriptedSession(script)
    found = stress(session, 1)
    first, *others = found.conflicts
    assert (first.first, first.second, first.kinds, first.request) == ("brief", "long", ("helpful",), ON) and first.p > 0.5
    assert ("long", "refuse") not in {(c.first, c.second) for c in found.conflicts}, "no prompt draws both"
    assert len(others) == 4 and found.unanswered == 0 and all(c.p < 0.5 and c.request is None for c in others)
    assert len(session.asked) == 11 and not found.failures


@pytest.mark.parametrize(
    ("reply", "cut", "reason"),
    [
        ("A request.\nRequest: And another.", False, "unparsed"),
        ("A request that has no", True, "unparsed"),
        ("A request.\nIt breaks both rules.", False, "several lines"),
        ("Hi.<|im_end|>", False, "markers of a template"),
        ("Rule 1: be kind.", False, "markers of a template"),
        ("How much is the blue coat in your window?", False, "an example of the template"),
        ("I'm sorry, but I can't help with that.", False, "a refusal"),
        ("?!", False, "no sentence"),
        ("", False, "unparsed"),
    ],
)
def test_a_reply_that_is_no_request_is_a_counted_failure(reply: str, cut: bool, reason: str) -> None:
    found = stress(ScriptedSession(writing(reply, cut)), 1)
    assert [f.reason for f in found.failures] == [reason] and all(c.request is None for c in found.conflicts)


@pytest.mark.parametrize("reply", [ON, f'"{ON}"', f"Request: {ON}", f"Sure!\nRequest: {ON}"])
def test_a_request_is_read_as_servers_and_models_write_it(reply: str) -> None:
    found = stress(ScriptedSession(writing(reply)), 1)
    assert (found.conflicts[0].request == ON) == (not reply.startswith("Sure")), "what stands before the label is not the request"


def test_requests_are_written_for_the_likeliest_pairs_only() -> None:
    session = ScriptedSession(writing(ON))
    assert stress(session, 0).conflicts[0].request is None
    assert not [r for r in session.asked if isinstance(r, CompleteRequest)]


def test_a_model_without_an_answer_is_an_error_and_one_pair_is_not() -> None:
    def silent(request: Request) -> Reply:
        raise ReplyError("refused", "no")

    with pytest.raises(ReplyError):
        stress(ScriptedSession(silent))

    def shy(request: Request) -> Reply:
        if "length" in request.messages[-1].content:
            raise ReplyError("refused", "no")
        return contradict(request, 0.1)

    found = stress(ScriptedSession(shy), 0)
    assert (len(found.conflicts), found.unanswered) == (3, 2)
