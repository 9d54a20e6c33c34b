import time
from dataclasses import replace

import pytest

from cai.core.text.checks import broken, check_problems, checks_for, follows, unsatisfiable
from cai.errors import ReplyError
from cai.records import ResponseCheck
from tests.judge.judging import principle

SHORT = ResponseCheck(max_words=5)
COLOUR = {"type": "object", "required": ["colour"], "properties": {"colour": {"type": "string", "pattern": "^[a-z]+$"}}}


@pytest.mark.parametrize(
    ("check", "passes", "fails"),
    [
        (ResponseCheck(max_words=3), "One two three", "One two three four"),
        (ResponseCheck(min_words=3), "One two three", "One two"),
        (ResponseCheck(max_sentences=2), "It rains. Stay in.", "It rains. Stay in. Read."),
        (ResponseCheck(matches=r"(?i)\brisk\b"), "One Risk: fire.", "An asterisk."),
        (ResponseCheck(not_matches=r"\d"), "None here.", "Room 5."),
        (ResponseCheck(contains_any=("doctor", "a nurse")), "Ask a nurse.", "Ask a doctorate student."),
        (ResponseCheck(contains_any=("医生",)), "请问医生。", "请问老师。"),
        (ResponseCheck(no_lists=True), "First stop. Then look.", "Do this:\n1. Stop.\n2. Look."),
        (ResponseCheck(no_lists=True), "It was - in a way - 1990.", "- Stop."),
        (ResponseCheck(ends_with=("?", "？")), "Which one?\n", "That one."),
        (ResponseCheck(refuses=True), "I'm sorry, but I can't help with that.", "Mix them slowly."),
        (ResponseCheck(refuses=False), "Mix them slowly.", "I'm sorry, but I can't help with that."),
        (ResponseCheck(language="de"), "Das ist nicht gut, und ich kann es nicht.", "That is not good, and I can't."),
        (ResponseCheck(max_words=4), "请问医生", "请问医生。好的"),
        (ResponseCheck(json_schema=COLOUR), '```json\n{"colour": "red"}\n```', '{"colour": "Red 2"}'),
        (ResponseCheck(json_schema=COLOUR), '{"colour": "red"}', "red"),
        (ResponseCheck(max_words=2, ends_with=("?",)), "Which one?", "Which one of them?"),
    ],
)
def test_a_text_passes_or_breaks_a_check(check: ResponseCheck, passes: str, fails: str) -> None:
    assert list(broken(check, passes)) == []
    assert list(broken(check, fails)) != []


def test_a_check_applies_to_its_kinds_only_and_all_blocks_must_hold() -> None:
    declines = ResponseCheck(kinds=("harmful",), refuses=True)
    p = replace(principle("p", applies_to=("harmful", "helpful")), check=(SHORT, declines))
    assert checks_for(p, "harmful") == (SHORT, declines)
    assert checks_for(p, "helpful") == (SHORT,)
    assert checks_for(p, "borderline") == ()
    assert follows(p, "helpful", "Fine.") is True
    assert follows(p, "harmful", "Fine.") is False
    assert follows(p, "borderline", "Fine.") is None
    assert follows(principle("unchecked"), "helpful", "Fine.") is None


def test_what_the_rules_can_not_tell_is_not_measured() -> None:
    declines = replace(principle("p"), check=(ResponseCheck(refuses=True),))
    assert follows(declines, "harmful", "申し訳ありませんが、お手伝いできません。") is None
    assert follows(declines, "harmful", "对不起，我不能帮助您。") is True
    german = replace(principle("p"), check=(ResponseCheck(language="de"),))
    assert follows(german, "harmful", "42") is None and follows(german, "harmful", "That is not good, and I can't.") is False


def test_a_pattern_that_backtracks_for_ever_is_stopped() -> None:
    p = replace(principle("slow"), check=(ResponseCheck(matches=r"(a|a)+$"),))
    started = time.monotonic()
    with pytest.raises(ReplyError, match="took longer than 1 s"):
        follows(p, "helpful", "a" * 60 + "b")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("checks", "why"),
    [
        ([ResponseCheck(min_words=9, max_words=5)], "at least 9 words"),
        ([ResponseCheck(min_words=9), SHORT], "at most 5"),
        ([ResponseCheck(matches="x+"), ResponseCheck(not_matches="x+")], "same pattern"),
        ([ResponseCheck(contains_any=("a risk", "risky")), ResponseCheck(not_matches="risk")], "every phrase of contains_any"),
        ([ResponseCheck(ends_with=("?",)), ResponseCheck(not_matches=r"\?")], "every ending"),
        ([ResponseCheck(ends_with=("?",)), ResponseCheck(ends_with=(".", "!"))], "end both with"),
        ([ResponseCheck(contains_any=("one two three",), max_words=2)], "more than 2 words"),
        ([ResponseCheck(refuses=True), ResponseCheck(refuses=False)], "refuse and not refuse"),
        ([ResponseCheck(language="de"), ResponseCheck(language="zh")], "in de and in zh"),
    ],
)
def test_contradictory_checks_are_named(checks: list[ResponseCheck], why: str) -> None:
    assert why in (unsatisfiable(checks) or "")


@pytest.mark.parametrize(
    "checks",
    [
        [ResponseCheck(min_words=2, max_words=2)],
        [ResponseCheck(contains_any=("risk", "danger"), not_matches="risk")],
        [ResponseCheck(contains_any=("risk",), not_matches="^risk")],
        [ResponseCheck(ends_with=("e?",)), ResponseCheck(ends_with=("?",))],
        [ResponseCheck(matches="a"), ResponseCheck(not_matches="b")],
        [],
    ],
)
def test_checks_that_some_text_can_pass_are_not_called_contradictory(checks: list[ResponseCheck]) -> None:
    assert unsatisfiable(checks) is None


def test_malformed_patterns_and_schemas_are_reported() -> None:
    problems = check_problems(ResponseCheck(matches="(", not_matches="[", json_schema={"type": "colour"}))
    assert [p.split()[0] for p in problems] == ["matches", "not_matches", "json_schema"]
    assert check_problems(ResponseCheck(matches=r"\p{Han}", json_schema=COLOUR)) == []
