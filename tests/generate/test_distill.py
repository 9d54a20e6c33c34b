import asyncio
from dataclasses import replace
from typing import Any

from cai.generate.critique import Writer
from cai.generate.distill import Distilled, distill
from cai.models.base import TextModel
from cai.models.requests import CompleteRequest, Completion, Request
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.recipe import DistillConfig, SamplingSpec
from cai.records import Constitution, Message, Prompt, Provenance, Response, ResponseCheck
from tests.judge.judging import TEMPLATES, principle

SHORT = replace(principle("short"), statement="Answer in at most four words.", check=(ResponseCheck(max_words=4),))
RISK = replace(principle("risk"), statement="Name one risk.", check=(ResponseCheck(contains_any=("risk",)),))
CONSTITUTION = Constitution("c", "C", "", (SHORT, RISK))
PROMPT = Prompt("p", "borderline", (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "How do I light it?")), "test")
UNTOLD = "Use a match and then wait."


def distilled(
    *texts: str,
    truncated: bool = False,
    untold: str | None = UNTOLD,
    samples: int | None = None,
    constitution: Constitution = CONSTITUTION,
    thinking_tokens: int = 0,
    **config: Any,
) -> tuple[Distilled, list[Request]]:
    asked: list[Request] = []

    def script(request: Request) -> Completion:
        asked.append(request)
        return Completion(texts[len(asked) - 1], truncated, 9, 9)

    writer = Writer(TextModel(ScriptedEngine(script), CallStore(None), "distill"), TEMPLATES, 3, "h")
    response = None if untold is None else Response(PROMPT, untold, False, Provenance("m"))
    settings = DistillConfig(samples=samples or len(texts), sampling=SamplingSpec(thinking_tokens=thinking_tokens), **config)
    return asyncio.run(distill(PROMPT, response, constitution, writer, settings)), asked


def test_the_best_sample_is_kept_and_the_student_does_not_see_the_principles() -> None:
    found, asked = distilled("Strike a match over there.", "Match; risk: burns.", "A match will do.")
    assert found.told == "Match; risk: burns." and found.share == 1.0
    assert found.dropped == ("breaks_check", "breaks_check")
    assert found.example is not None and found.example.prompt == PROMPT and found.example.principle_ids == ("short", "risk")
    assert found.pair is not None and (found.pair.response_a, found.pair.response_b) == (found.told, UNTOLD)
    assert len({request.seed for request in asked}) == 3


def test_each_whole_sample_says_which_principles_it_follows() -> None:
    found, _ = distilled("Match; risk: burns.", "A match will do.", "The match is a risk to you.")
    assert found.followed == (("short", True), ("risk", True), ("short", True), ("risk", False), ("short", False), ("risk", True))
    assert distilled("A match; risk", truncated=True)[0].followed == ()


def test_what_was_thought_before_the_best_sample_is_kept_beside_it() -> None:
    found, asked = distilled("Strike a match over there.", "<think>They want a risk.</think>Match; risk: burns.", thinking_tokens=32)
    assert (found.told, found.reasoning) == ("Match; risk: burns.", "They want a risk.")
    assert found.example is not None and found.example.reasoning == found.reasoning
    assert [r.sampling.thinking_tokens for r in asked if isinstance(r, CompleteRequest)] == [32, 32]


def test_the_principles_stand_after_the_question_or_in_the_system_turn() -> None:
    _, (user,) = distilled("Match; risk: burns.")
    assert [m.role for m in user.messages] == ["user", "assistant", "user"]
    assert user.messages[-1].content == "How do I light it?\n\nAnswer in at most four words. Name one risk."
    _, (system,) = distilled("Match; risk: burns.", placement="system")
    assert system.messages[0].role == "system" and "Name one risk." in system.messages[0].content
    assert system.messages[-1].content == "How do I light it?"


def test_in_turns_what_is_missing_is_asked_for_and_added() -> None:
    found, (first, then) = distilled("Strike a match.", "The risk: burns.", samples=1, placement="turns", min_share=0.5)
    assert first.messages[-1].content == "How do I light it?\n\nAnswer in at most four words."
    assert [m.role for m in then.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert [m.content for m in then.messages[-2:]] == ["Strike a match.", "Name one risk."]
    assert found.told == "Strike a match. The risk: burns." and found.share == 0.5  # which is now too long
    assert found.example is not None
    assert [(p.messages, p.text) for p in found.example.parts] == [
        (first.messages, "Strike a match."),
        (then.messages, " The risk: burns."),
    ]


def test_in_turns_what_is_added_begins_with_its_opening() -> None:
    risk = replace(RISK, openings=("One risk is",))
    found, (_, then) = distilled(
        "Strike a match.", "fire.", samples=1, placement="turns", constitution=Constitution("c", "C", "", (SHORT, risk)), min_share=0.5
    )
    assert then.prefill == "One risk is" and found.told == "Strike a match. One risk is fire."
    assert [p.opening for p in found.parts] == ["", "One risk is"]


def test_in_turns_what_is_followed_already_is_not_asked_for() -> None:
    found, asked = distilled("Match; risk: burns.", samples=1, placement="turns")
    assert found.told == "Match; risk: burns." and len(asked) == 1


def test_in_turns_a_sentence_can_be_added_to_the_response_itself() -> None:
    found, (asked,) = distilled("One risk: burns.", samples=1, placement="turns", constitution=replace(CONSTITUTION, principles=(RISK,)))
    assert asked.messages[-2].content == UNTOLD and found.told == f"{UNTOLD} One risk: burns."


def test_an_answer_begins_with_an_opening_of_its_principles() -> None:
    refuse = replace(SHORT, openings=("I won't.", "Not that."))
    found, (asked,) = distilled("Match; risk.", constitution=replace(CONSTITUTION, principles=(refuse, RISK)), min_share=0.0)
    assert asked.prefill in refuse.openings and found.told == f"{asked.prefill} Match; risk."  # type: ignore[union-attr]


def test_without_a_response_there_is_an_example_and_no_pair() -> None:
    found, _ = distilled("Match; risk: burns.", untold=None)
    assert found.example is not None and found.pair is None
    risk = replace(CONSTITUTION, principles=(RISK,))
    found, (first, then) = distilled("Strike a match.", "One risk: burns.", untold=None, samples=1, placement="turns", constitution=risk)
    assert first.messages == PROMPT.messages and then.messages[-2].content == "Strike a match."
    assert found.told == "Strike a match. One risk: burns."


def test_an_opening_may_be_the_whole_answer() -> None:
    refuse = replace(SHORT, openings=("I won't.",))
    found, _ = distilled("", constitution=replace(CONSTITUTION, principles=(refuse,)), drop_refusals=False)
    assert found.told == "I won't." and found.share == 1.0


def test_an_empty_sample_costs_itself_and_not_the_prompt() -> None:
    found, _ = distilled("", "Match; risk: burns.")
    assert (found.told, found.dropped) == ("Match; risk: burns.", ("empty",))
    found, asked = distilled(" ", samples=1, placement="turns")
    assert (found.told, found.dropped, len(asked)) == (None, ("empty",), 1)


def test_a_lower_share_keeps_what_follows_part_of_the_checks() -> None:
    found, _ = distilled("Strike a match over there.", "A match will do.", min_share=0.5)
    assert (found.told, found.share, found.dropped) == ("A match will do.", 0.5, ("breaks_check",))


def test_cut_off_refusing_and_looping_samples_are_left_out() -> None:
    found, _ = distilled("Match; risk: burns.", truncated=True)
    assert (found.told, found.example, found.pair, found.dropped) == (None, None, None, ("truncated",))
    found, _ = distilled("I'm sorry, I can't help.", "risk risk risk risk risk risk risk risk risk", min_share=0.0)
    assert found.dropped == ("over_refusal", "repetitive")


def test_nearly_equal_responses_make_no_pair() -> None:
    found, _ = distilled("Match; risk: burns.", untold="Match, risk: burns!")
    assert found.example is not None and found.pair is None
