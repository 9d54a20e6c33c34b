import asyncio
from dataclasses import replace

import pytest

from cai.errors import ConstitutionError, ReplyError
from cai.generate.critique import Writer, critique_and_revise, principles_in_turn, respond, sft_examples
from cai.models.base import TextModel
from cai.models.requests import Completion
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.recipe import CritiqueConfig, SamplingSpec
from cai.records import PROMPT_KINDS, Constitution, Judgment, Message, Prompt, Provenance, Response, ResponseCheck
from tests.judge.judging import CONSTITUTION, TEMPLATES, principle

PROMPT = Prompt("p1", "helpful", (Message("user", "How do I stop a quarrel with my neighbour?"),), "test")
RESPONSE = Response(PROMPT, "Shout louder than she does.", False, Provenance("m"))
CRITIQUE = "Shouting makes it worse."
KEPT_CRITIQUE = f"{TEMPLATES.critique.sections[-1].text} {CRITIQUE}"  # with what the template makes it start with
REVISIONS = ("Invite her for coffee and listen.", "Bring cake, then say sorry.", "Mend the fence together on a Sunday.")


def talking(revisions=REVISIONS, critique=CRITIQUE, truncated=False, seen=None):
    """A model that critiques, and revises in turn."""
    given = iter(revisions)

    def script(request):
        if seen is not None:
            seen.append(request)
        if "\n\nHow is it not" in request.messages[-1].content:
            return Completion(critique, False, 10, 5)
        return Completion(next(given), truncated, 10, 5)

    return TextModel(ScriptedEngine(script), CallStore(None), "critique")


def revise(model, *, response=RESPONSE, constitution=CONSTITUTION, judge=None, run_seed=0, **config):
    config = CritiqueConfig(**{"kinds": PROMPT_KINDS, **config})
    work = critique_and_revise(response, constitution, Writer(model, TEMPLATES, run_seed, "h"), config, judge)
    return asyncio.run(work)


def judge_saying(p_a, failure=None):
    pairs = []

    async def judge(pair):
        pairs.append(pair)
        return Judgment(pair.id, ("kind",), "pairwise", p_a, None, None, failure, Provenance("judge"))

    return judge, pairs


def test_a_response_is_stripped_cut_to_whole_sentences_and_traced():
    def script(request):
        return Completion("  Tides follow the moon. They rise twi", True, 3, 9)

    model = TextModel(ScriptedEngine(script), CallStore(None), "respond")
    response = asyncio.run(respond(PROMPT, Writer(model, TEMPLATES, 7, "h"), SamplingSpec()))
    assert (response.text, response.truncated) == ("Tides follow the moon.", True)
    assert response.provenance == Provenance("scripted:scripted", (), TEMPLATES.respond.hash, response.provenance.seed, "h")
    again = asyncio.run(respond(replace(PROMPT, id="p2"), Writer(model, TEMPLATES, 7), SamplingSpec()))
    assert again.provenance.seed != response.provenance.seed


def test_an_empty_response_is_a_failure():
    model = TextModel(ScriptedEngine(lambda request: Completion(" \n", False, 3, 1)), CallStore(None), "respond")
    with pytest.raises(ReplyError, match="empty"):
        asyncio.run(respond(PROMPT, Writer(model, TEMPLATES, 0), SamplingSpec()))


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_every_round_has_its_own_principle_and_builds_on_the_last_text(rounds):
    seen = []
    trace = revise(talking(seen=seen), rounds=rounds)
    assert trace.dropped is None and trace.p_revised is None
    ids = [r.critique.principle_id for r in trace.rounds]
    assert len(set(ids)) == rounds and ids == [r.revision.principle_id for r in trace.rounds]
    assert [r.revision.text for r in trace.rounds] == list(REVISIONS[:rounds]) and trace.final == REVISIONS[rounds - 1]
    assert all(r.critique.text == KEPT_CRITIQUE for r in trace.rounds)
    assert trace.provenance.principle_ids == tuple(ids)
    assert TEMPLATES.critique.sections[-1].role is None  # a prefill
    shown = [request.messages[-2].content for request in seen[::2]]
    assert shown == [RESPONSE.text, *REVISIONS[: rounds - 1]]
    assert len({request.seed for request in seen}) == 2 * rounds
    for request, pid in zip(seen[::2], ids, strict=True):
        assert CONSTITUTION.principle(pid).critique in request.messages[-1].content


def test_more_rounds_than_principles_begin_again():
    one = Constitution("one", "One", "", (principle("kind"),))
    assert [p.id for p in principles_in_turn(PROMPT, one, 0, 3)] == ["kind"] * 3


def test_principles_stay_when_another_is_added_and_move_with_the_seed():
    prompts = [replace(PROMPT, id=f"p{i}") for i in range(200)]
    more = replace(CONSTITUTION, principles=(*CONSTITUTION.principles, principle("calm")))
    before = [principles_in_turn(p, CONSTITUTION, 0, 1)[0].id for p in prompts]
    after = [principles_in_turn(p, more, 0, 1)[0].id for p in prompts]
    assert all(b == a or a == "calm" for b, a in zip(before, after, strict=True)) and "calm" in after
    assert before.count("true") > before.count("kind") > before.count("brief") > 0
    assert before != [principles_in_turn(p, CONSTITUTION, 1, 1)[0].id for p in prompts]


def test_only_principles_that_apply_are_used():
    mixed = replace(CONSTITUTION, principles=(principle("kind", applies_to=("harmful",)), principle("true")))
    assert all(principles_in_turn(replace(PROMPT, id=f"p{i}"), mixed, 0, 1)[0].id == "true" for i in range(20))
    with pytest.raises(ConstitutionError, match="no principle applies to helpful"):
        revise(talking(), constitution=replace(mixed, principles=mixed.principles[:1]))


def test_the_revision_sees_text_critique_and_request_and_answers_the_prompt():
    seen = []
    trace = revise(talking(seen=seen))
    request = seen[1]
    told = request.messages[0]
    wanted = CONSTITUTION.principle(trace.rounds[0].critique.principle_id)
    assert told.role == "system" and request.messages[1:] == PROMPT.messages
    for text in (RESPONSE.text, KEPT_CRITIQUE, wanted.revision, wanted.statement):
        assert text in told.content


def test_a_kind_that_is_not_critiqued_keeps_its_response():
    trace = revise(talking(), kinds=("harmful",))
    assert trace.rounds == () and trace.dropped is None and trace.final == RESPONSE.text
    (example,) = sft_examples(trace, CritiqueConfig())
    assert (example.completion, example.source, example.principle_ids) == (RESPONSE.text, "response", ())


@pytest.mark.parametrize(
    ("revision", "dropped"),
    [
        ("", "empty"),
        ("Revised response:", "empty"),
        ("I'm sorry, but I can't help with that.", "over_refusal"),
        ("I can't rewrite the response.", "refused_request"),
        ("I have revised the response to be kinder.", "leaked_meta"),
    ],
)
def test_drop_rules_are_named_and_the_texts_kept(revision, dropped):
    trace = revise(talking([revision]))
    assert trace.dropped == dropped
    assert len(trace.rounds) == 1 and trace.rounds[0].critique.text == KEPT_CRITIQUE
    assert sft_examples(trace, CritiqueConfig()) == []


def test_where_a_revision_changes_nothing_the_response_stands():
    trace = revise(talking(["shout louder than she does"]))
    (example,) = sft_examples(trace, CritiqueConfig())
    assert (trace.dropped, trace.stands, example.completion, example.source) == ("unchanged", True, RESPONSE.text, "response")


@pytest.mark.parametrize("drop", [True, False])
def test_a_needless_refusal_that_nothing_changed_does_not_stand(drop):
    refusal = replace(RESPONSE, text="I'm sorry, but I can't help with that.")
    trace = revise(talking([refusal.text]), response=refusal, drop_refusals=drop)
    assert trace.stands is not drop and bool(sft_examples(trace, CritiqueConfig())) is not drop


@pytest.mark.parametrize(("limit", "dropped", "imitated"), [(3, "breaks_check", []), (5, "worse_by_check", [RESPONSE.text])])
def test_a_revision_that_breaks_a_check_which_the_response_followed_leaves_it_standing(limit, dropped, imitated):
    brief = Constitution("c", "C", "", (replace(principle("brief"), check=(ResponseCheck(max_words=limit),)),))
    trace = revise(talking(["Invite her for a cup of tea and talk it over."]), constitution=brief)
    assert trace.dropped == dropped and [e.completion for e in sft_examples(trace, CritiqueConfig())] == imitated


def test_a_later_revision_that_is_worse_by_check_leaves_the_one_before_it_standing():
    brief = Constitution("c", "C", "", (replace(principle("brief"), check=(ResponseCheck(max_words=5),)),))
    trace = revise(talking(["Invite her for tea.", "Invite her for a cup of tea and talk it over."]), constitution=brief, rounds=2)
    (example,) = sft_examples(trace, CritiqueConfig())
    assert (trace.dropped, example.completion, example.source) == ("worse_by_check", "Invite her for tea.", "revision")


def test_a_heading_is_taken_off():
    trace = revise(talking(["Here is the revised response:\n\nInvite her."]))
    assert trace.final == "Invite her." and trace.dropped is None


@pytest.mark.parametrize(
    ("text", "dropped", "final"), [("Invite her. And th", None, "Invite her."), ("Invite her for a", "truncated", None)]
)
def test_a_cut_off_revision_ends_with_a_whole_sentence_or_is_dropped(text, dropped, final):
    trace = revise(talking([text], truncated=True))
    assert trace.dropped == dropped and (final is None or trace.final == final)


@pytest.mark.parametrize(("min_share", "dropped"), [(0.0, None), (0.5, None), (1.0, "breaks_check")])
@pytest.mark.parametrize("kinds", [PROMPT_KINDS, ("harmful",)])
def test_a_final_text_must_follow_enough_of_all_checks(min_share, dropped, kinds):
    brief = replace(principle("brief"), check=(ResponseCheck(max_words=9),))
    police = replace(principle("police"), check=(ResponseCheck(contains_any=("police",)),))
    constitution = Constitution("c", "C", "", (brief, police))
    seed = next(s for s in range(9) if principles_in_turn(PROMPT, constitution, s, 1) == [brief])
    trace = revise(talking(), constitution=constitution, min_share=min_share, kinds=kinds, run_seed=seed)
    assert trace.dropped == dropped


def test_rounds_end_where_a_rule_is_broken():
    trace = revise(talking([REVISIONS[0], ""]), rounds=3)
    assert len(trace.rounds) == 2 and trace.dropped == "empty"


@pytest.mark.parametrize(("p_a", "dropped"), [(0.3, None), (0.5, None), (0.7, "worse_by_judge")])
def test_the_judge_decides_whether_a_revision_is_better(p_a, dropped):
    judge, pairs = judge_saying(p_a)
    trace = revise(talking(), judge=judge, min_p_revised=0.5)
    assert trace.p_revised == pytest.approx(1 - p_a) and trace.dropped == dropped
    assert pairs == [trace.pair]
    assert (pairs[0].response_a, pairs[0].response_b, pairs[0].source, pairs[0].p_a) == (RESPONSE.text, REVISIONS[0], "revision", None)


def test_a_judgement_that_failed_is_a_failure_and_no_default():
    judge, _ = judge_saying(None, "off_menu")
    with pytest.raises(ReplyError, match="unjudged: off_menu"):
        revise(talking(), judge=judge)


def test_what_is_dropped_already_is_not_judged():
    judge, pairs = judge_saying(0.1)
    revise(talking([""]), judge=judge)
    revise(talking(), judge=judge, kinds=("harmful",))
    assert pairs == []


def test_final_or_every_revision_is_imitated():
    trace = revise(talking(), rounds=3)
    ids = trace.provenance.principle_ids
    (final,) = sft_examples(trace, CritiqueConfig(train_on="final"))
    assert (final.completion, final.principle_ids, final.source, final.prompt) == (REVISIONS[2], ids, "revision", PROMPT)
    every = sft_examples(trace, CritiqueConfig(train_on="every"))
    assert [e.completion for e in every] == list(REVISIONS)
    assert [e.principle_ids for e in every] == [ids[:1], ids[:2], ids]


def test_the_default_is_the_papers_every_revision_and_helpful_responses_as_they_are():
    """Bai et al. 2022, §3.1: "the revisions (from all revisional steps)", and sampled responses to helpful prompts."""
    config = CritiqueConfig()
    trace = revise(talking(), rounds=3)
    assert len(sft_examples(trace, config)) == 3
    plain = revise(talking(), kinds=config.kinds)
    (example,) = sft_examples(plain, config)
    assert (example.completion, example.source, plain.rounds) == (RESPONSE.text, "response", ())
    refusing = replace(RESPONSE, text="I'm sorry, but I can't help with that.")
    assert revise(talking(), response=refusing, kinds=config.kinds).dropped == "over_refusal"
    assert revise(talking(), response=refusing, kinds=config.kinds, drop_refusals=False).dropped is None


def test_the_same_trace_comes_again():
    assert revise(talking(), rounds=2) == revise(talking(), rounds=2)
