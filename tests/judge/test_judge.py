"""What must hold for every protocol: the swap, the direction, and failures that stay failures."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.errors import ConstitutionError, ModelError, RecipeError, ReplyError
from cai.judge.protocol import Opinion, pool, pool_log_odds, probability
from cai.judge.protocols import PROTOCOLS, asking_protocols
from cai.models.requests import ChoicesRequest, CompleteRequest
from cai.recipe import FeedbackConfig
from cai.records import Constitution
from tests.judge.judging import CONSTITUTION, always_first, hashed, judge_with, judged, pair, prefers_text, principle

every_protocol = pytest.mark.parametrize("protocol", asking_protocols())
two_option = pytest.mark.parametrize("protocol", ["pairwise", "pairwise-cot"])


def test_every_protocol_of_the_recipe_is_there():
    assert PROTOCOLS.names() == ("check", "likelihood", "pairwise", "pairwise-cot", "pointwise", "pointwise-contrast", "probe", "rubric")
    assert tuple(protocol.name for protocol in PROTOCOLS.all()) == PROTOCOLS.names()


@every_protocol
@pytest.mark.parametrize("principles", ["sample", "ensemble"])
@pytest.mark.parametrize("script", [hashed, prefers_text, always_first])
def test_a_swapped_pair_gets_exactly_the_opposite_label(protocol, principles, script):
    for number in range(12):
        p = pair(f"GOOD one {number}", f"other {number * 7}", number)
        kept, swapped = judged(script, protocol, p, p.swapped(), principles=principles)
        assert kept.failure is None and swapped.failure is None
        assert swapped.p_a == 1 - kept.p_a
        assert kept.p_a == 1 - swapped.p_a
        assert swapped.principle_ids == kept.principle_ids
        if kept.p_a_first is not None:
            assert (swapped.p_a_first, swapped.p_a_second) == (1 - kept.p_a_second, 1 - kept.p_a_first)


@every_protocol
def test_a_swapped_pair_gets_the_opposite_label_from_a_fresh_store(protocol):
    p = pair("One answer.", "Quite another.")
    assert judged(hashed, protocol, p)[0].p_a == 1 - judged(hashed, protocol, p.swapped())[0].p_a


@settings(max_examples=60, deadline=None)
@given(a=st.text(min_size=1, max_size=60), b=st.text(min_size=1, max_size=60), protocol=st.sampled_from(asking_protocols()))
def test_no_text_breaks_the_symmetry(a, b, protocol):
    p = pair(a, b)
    kept, swapped = judged(hashed, protocol, p, p.swapped())
    assert kept.failure == swapped.failure
    if kept.p_a is not None:
        assert kept.p_a + swapped.p_a == 1


@every_protocol
def test_a_judge_that_prefers_one_text_is_reported_wherever_it_stands(protocol):
    p = pair("GOOD answer here.", "Another answer here.")
    kept, swapped = judged(prefers_text, protocol, p, p.swapped())
    assert kept.p_a > 0.55 and swapped.p_a < 0.45


@every_protocol
def test_a_judge_that_always_says_the_same_gives_one_half(protocol):
    judgment = judged(always_first, protocol, pair())[0]
    assert judgment.p_a == pytest.approx(0.5) if protocol == "likelihood" else judgment.p_a == 0.5


@two_option
def test_position_bias_is_seen_in_the_two_orders(protocol):
    judgment = judged(always_first, protocol, pair(), cot_clamp=None)[0]
    assert judgment.p_a_first == pytest.approx(1 / (1 + math.exp(-4)), abs=1e-9)
    assert judgment.p_a_second == pytest.approx(1 / (1 + math.exp(4)), abs=1e-9)


@pytest.mark.parametrize("protocol", ["pointwise", "pointwise-contrast", "likelihood", "rubric"])
def test_protocols_that_show_one_response_have_no_order(protocol):
    judgment = judged(prefers_text, protocol, pair())[0]
    assert judgment.p_a_first is None and judgment.p_a_second is None


@pytest.mark.parametrize(
    ("protocol", "log_odds"),
    [("pairwise", 2.0), ("pointwise", 4.0), ("pointwise-contrast", 4.0), ("likelihood", 2.0), ("rubric", math.log(19))],
)
def test_log_odds_derived_by_hand(protocol, log_odds):
    judgment = judged(prefers_text, protocol, pair("GOOD answer here.", "Another answer here."))[0]
    assert judgment.p_a == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-9)


def test_one_saturated_principle_does_not_outvote_nine():
    """Linear opinion pool: (1 + 9 * 0.1192) / 10 = 0.2073. The mean of the log-odds, +0.2, would prefer the other response."""
    opinions = [Opinion(20.0, 20.0, 20.0), *[Opinion(-2.0, -1.0, -3.0)] * 9]
    pooled = pool(opinions, [1.0] * 10)
    assert probability(pooled.log_odds) == pytest.approx((1 + 9 / (1 + math.exp(2))) / 10, abs=1e-6)
    assert probability(pooled.first) == pytest.approx((1 + 9 / (1 + math.exp(1))) / 10, abs=1e-6)
    swapped = pool([Opinion(-o.log_odds, -o.second, -o.first) for o in opinions], [1.0] * 10)
    assert (swapped.log_odds, swapped.first) == (-pooled.log_odds, -pooled.second)
    assert pool(opinions[:1], [0.3]).log_odds == 20.0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0.01, 100)), min_size=1, max_size=12), st.data())
def test_a_principle_moves_a_label_by_no_more_than_its_share_of_the_weights(said, data):
    values, weights = [x for x, _ in said], [w for _, w in said]
    at = data.draw(st.integers(0, len(said) - 1))
    other = values.copy()
    other[at] = data.draw(st.floats(-20, 20))
    moved = probability(pool_log_odds(other, weights)) - probability(pool_log_odds(values, weights))
    assert abs(moved) <= weights[at] / sum(weights) + 1e-9
    assert pool_log_odds([-x for x in values], weights) == -pool_log_odds(values, weights)


def test_the_mean_of_both_orders_is_in_log_odds():
    """A first: 2.0 + 0.7; A second: 2.0 - 0.7. Their mean in log-odds is the signal, 2.0; as probabilities it would be less."""
    judgment = judged(prefers_text, "pairwise", pair())[0]
    assert judgment.p_a_first == pytest.approx(1 / (1 + math.exp(-2.7)), abs=1e-9)
    assert judgment.p_a_second == pytest.approx(1 / (1 + math.exp(-1.3)), abs=1e-9)
    assert judgment.p_a > (judgment.p_a_first + judgment.p_a_second) / 2


def by_principle(request):
    """Log-odds for A by the question: kind 1, true -2, brief 4."""
    from tests.judge.judging import log_odds_reply, shown_first

    content = request.messages[-1].content
    signal = next(x for word, x in (("kind", 1.0), ("true", -2.0), ("brief", 4.0)) if f"more {word}" in content)
    return log_odds_reply(signal if "GOOD" in shown_first(content) else -signal)


def test_an_ensemble_is_the_weighted_mean_of_probabilities():
    """Weights 1, 2, 0.5: (1 * 0.731 + 2 * 0.119 + 0.5 * 0.982) / 3.5 = 0.417."""
    judgment = judged(by_principle, "pairwise", pair())[0]
    assert judgment.principle_ids == ("kind", "true", "brief")
    kind, true, brief = (1 / (1 + math.exp(-x)) for x in (1.0, -2.0, 4.0))
    assert judgment.p_a == pytest.approx((kind + 2 * true + 0.5 * brief) / 3.5, abs=1e-9)


def test_drawn_principles_are_recorded_and_stay_when_another_is_added():
    pairs = [pair(number=i) for i in range(60)]
    before = [j.principle_ids for j in judged(hashed, "pairwise", *pairs, principles="sample", per_label=2)]
    more = Constitution("test", "Test", "", (*CONSTITUTION.principles, principle("calm", 0.3)))
    after = [j.principle_ids for j in judged(hashed, "pairwise", *pairs, principles="sample", per_label=2, constitution=more)]
    assert all(len(set(ids)) == 2 for ids in before)
    assert {i for ids in before for i in ids} == {"kind", "true", "brief"}
    changed = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    assert 0 < len(changed) < 30 and all("calm" in a for _, a in changed)


def test_only_principles_that_apply_are_asked():
    mixed = Constitution("test", "Test", "", (principle("kind", applies_to=("harmful",)), principle("true")))
    harmful, helpful = judged(hashed, "pairwise", pair(kind="harmful"), pair(kind="helpful"), constitution=mixed)
    assert harmful.principle_ids == ("kind", "true") and helpful.principle_ids == ("true",)
    only_harmful = Constitution("test", "Test", "", (principle("kind", applies_to=("harmful",)),))
    with pytest.raises(ConstitutionError, match="no principle applies to helpful"):
        judged(hashed, "pairwise", pair(kind="helpful"), constitution=only_harmful)


@every_protocol
def test_one_failed_question_fails_the_judgment_and_never_becomes_a_label(protocol):
    asked = []

    def fails_once(request):
        asked.append(request)
        if len(asked) == 2:
            raise ReplyError("too_long", "9,000 tokens")
        return prefers_text(request)

    judgment = judged(fails_once, protocol, pair())[0]
    assert (judgment.p_a, judgment.p_a_first, judgment.p_a_second) == (None, None, None)
    assert judgment.failure == "too_long" and judgment.detail == "9,000 tokens"


@every_protocol
def test_a_model_that_cannot_go_on_stops_the_judge(protocol):
    def broken(request):
        raise ModelError("out of memory")

    with pytest.raises(ModelError, match="out of memory"):
        judged(broken, protocol, pair())


def test_choices_without_any_probability_are_a_failure():
    def impossible(request):
        from cai.models.requests import ChoiceLogprobs

        return ChoiceLogprobs((-math.inf, -math.inf), 3)

    assert judged(impossible, "pointwise", pair())[0].failure == "no_probability"


def test_one_impossible_choice_is_certain_but_bounded():
    def certain(request):
        from cai.models.requests import ChoiceLogprobs
        from tests.judge.judging import shown_first

        good = "GOOD" in shown_first(request.messages[-1].content)
        return ChoiceLogprobs((0.0, -math.inf) if good else (-math.inf, 0.0), 3)

    judgment = judged(certain, "pairwise", pair())[0]
    assert 1 - 1e-8 < judgment.p_a < 1


@pytest.mark.parametrize("clamp", [(0.4, 0.7), (0.6, 0.4), (0.0, 0.5)])
def test_a_clamp_that_would_break_the_symmetry_is_refused(clamp):
    with pytest.raises(RecipeError, match=r"feedback\.cot_clamp"):
        judge_with(hashed, "pairwise-cot", cot_clamp=clamp)


@every_protocol
def test_the_judgment_says_where_it_came_from(protocol):
    p = pair()
    judge = judge_with(prefers_text, protocol, run_seed=5)
    judgment = asyncio.run(judge(p))
    assert judgment.pair_id == p.id and judgment.protocol == protocol
    assert judgment.provenance.model == "scripted:prefers_text" and judgment.provenance.seed == 5
    assert judgment.provenance.principle_ids == judgment.principle_ids and judgment.provenance.template_hash


@every_protocol
def test_the_number_of_calls_is_what_a_plan_counts_on(protocol):
    judge = judge_with(prefers_text, protocol)
    asyncio.run(judge(pair("GOOD answer here.", "Another answer.")))
    expected = {"pairwise": 2, "pairwise-cot": 4, "pointwise": 2, "pointwise-contrast": 4, "likelihood": 4, "rubric": 2}[protocol]
    assert judge.model.usage.made == expected * len(CONSTITUTION.principles)


def test_reasoning_is_seeded_by_the_texts_and_not_by_their_order():
    seeds = {}

    def watch(request):
        if isinstance(request, CompleteRequest):
            seeds.setdefault(request.messages[-1].content, set()).add(request.seed)
        return prefers_text(request)

    p = pair()
    judged(watch, "pairwise-cot", p, p.swapped())
    assert all(len(found) == 1 for found in seeds.values())
    assert len({next(iter(found)) for found in seeds.values()}) == len(seeds) == 2 * len(CONSTITUTION.principles)


def test_default_config_is_what_the_recipe_says():
    assert FeedbackConfig().protocol in PROTOCOLS.names()


def test_questions_about_one_response_share_their_beginning():
    contents = []

    def watch(request):
        assert isinstance(request, ChoicesRequest)
        contents.append(request.messages[-1].content)
        return prefers_text(request)

    judged(watch, "pointwise-contrast", pair("GOOD " + "word " * 50, "Another " + "thing " * 50))
    for text in ("GOOD", "Another"):
        mine = [c for c in contents if text in c]
        assert len(mine) == 6 and len({c[: c.index("Principle:")] for c in mine}) == 1
        assert {c[c.index("Principle:") :].split("\n")[0] for c in mine} == {
            "Principle: Be kind.",
            "Principle: Be true.",
            "Principle: Be brief.",
        }
