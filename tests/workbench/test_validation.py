"""Principles against people, with figures derived by hand."""

import math
from dataclasses import replace

import pytest

from cai.errors import ModelError, ReplyError
from cai.judge.protocol import log_odds_of, probability
from cai.judge.protocols import asking_protocols
from cai.models.requests import ChoicesRequest
from cai.recipe import FeedbackConfig, Recipe
from cai.records import Preference, Provenance
from cai.workbench.sample import Calls
from cai.workbench.validation import JudgedPair, ask_all, fit_scale, held_out_nats, measure, told_from_the_preferred_side
from tests.judge.judging import CONSTITUTION, hashed, log_odds_reply, pair, prefers_text
from tests.sessions import ScriptedSession

NONE = Calls(0, 0)


def judged(*opinions, a="short", b="a longer one"):
    """One pair per mapping of principle to log-odds for what people chose."""
    return [JudgedPair(pair(a, b, number=i), o) for i, o in enumerate(opinions)]


def measured(rows, constitution=CONSTITUTION, **options):
    return measure(rows, constitution, FeedbackConfig(), 0, **options)


def test_agreement_coverage_and_what_removal_changes():
    # weights: kind 1, true 2, brief 0.5
    rows = judged(
        {"kind": 4.0, "true": -1.0, "brief": 1.0},  # p - 1/2, twice: (.96 - 2 * .46 + .5 * .46) / 3.5 > 0; without kind < 0
        {"kind": -3.0, "true": 0.9},  # (-.91 + 2 * .42) / 3 < 0; without kind > 0
        {"kind": -1.0, "true": -1.0},  # stays wrong
        {"kind": 1.0, "true": 2.0},  # stays right
        {"kind": -5.0, "true": 0.5},  # (-.99 + 2 * .24) / 3 < 0; without kind > 0
    )
    found = measured(rows)
    results = {r.principle_id: r for r in found.principles}
    kind, brief = results["kind"], results["brief"]
    assert (kind.n, kind.applies, kind.agreement, kind.decisive) == (5, 1.0, 0.4, 3)
    assert kind.without == pytest.approx(1 / 5) and kind.without_low < 0 < kind.without_high, "two labels mended, one spoilt"
    assert kind.mean_log_odds == pytest.approx(14 / 5)
    assert (brief.n, brief.applies, brief.agreement, brief.decisive, brief.without) == (1, 0.2, 1.0, 0, 0.0)
    assert (results["true"].agreement, results["true"].decisive, results["true"].without) == (0.6, 0, 0.0)
    assert found.pooled.accuracy == 0.4 and found.pooled.n == 5
    assert [r.agreement for r in found.principles] == sorted((r.agreement for r in found.principles), reverse=True)


def test_a_principle_that_alone_judges_decides():
    found = measured(judged({"kind": 1.0}, {"kind": 2.0}))
    (kind,) = found.principles
    assert (kind.decisive, kind.without, kind.without_low) == (2, None, None)


def test_the_scale_is_laplaces_estimate_for_a_rule():
    for right, wrong in ((3, 1), (7, 0), (5, 5)):
        scores = [1.0] * right + [-1.0] * wrong
        assert probability(fit_scale(scores)) == pytest.approx((right + 1) / (right + wrong + 2), abs=1e-9)
    assert fit_scale([-1.0, -1.0, 1.0]) == 0.0, "never turned round"
    assert fit_scale([]) == fit_scale([0.0, 0.0]) == 0.0


def test_the_scale_does_not_depend_on_the_unit():
    scores = [0.3, 2.0, -0.4, 1.1, -0.2]
    assert fit_scale([10 * x for x in scores]) == pytest.approx(fit_scale(scores) / 10)
    s = fit_scale(scores)
    strength = sum(map(abs, scores)) / 5

    def likelihood(scale):
        return sum(math.log(probability(scale * x)) for x in [*scores, strength, -strength])

    assert likelihood(s) > likelihood(s * 1.01) and likelihood(s) > likelihood(s * 0.99), "it is the best one"


def test_log_likelihood_is_held_out_by_prompt():
    rows = judged(*[{"kind": 2.0}] * 40)
    nats = held_out_nats([2.0] * 40, [r.pair for r in rows])
    # each fold sees n others, all right: p = (n + 1) / (n + 2)
    assert all(0 > x > math.log(0.96) for x in nats) and len(set(nats)) > 1
    one_prompt = [replace(r.pair, prompt=rows[0].pair.prompt) for r in rows]
    assert held_out_nats([2.0] * 40, one_prompt) == pytest.approx([math.log(0.5)] * 40), "nothing else to learn from"


def test_a_perfect_constitution_explains_and_a_useless_one_does_not():
    good = measured(judged(*[{"kind": 1.0 + i / 100} for i in range(60)], a="same long", b="long same"))
    assert good.pooled.accuracy == 1.0 and good.pooled.explained > 0.9 and good.accuracy_gain_low > 0 and good.nats_gain_low > 0
    assert [r.accuracy for r in good.rules] == [0.5, 0.5] and [r.explained for r in good.rules] == pytest.approx([0, 0])
    useless = measured(judged(*[{"kind": 1.0 if i % 2 else -1.0} for i in range(60)], a="same long", b="long same"))
    assert useless.pooled.accuracy == 0.5 and useless.pooled.explained < 0.02 and useless.nats_gain_low <= 0
    assert useless.pooled.raw_nats == pytest.approx((math.log(probability(1.0)) + math.log(probability(-1.0))) / 2)


def test_the_trivial_rules_are_measured_on_the_same_pairs():
    found = measured(judged(*[{"kind": 1.0}] * 30))
    longer, shorter = found.rules
    assert (longer.name, longer.accuracy, shorter.accuracy, longer.raw_nats) == ("longer", 0.0, 1.0, None)
    assert found.accuracy_gain == 0.0 and longer.explained == pytest.approx(0.0), "a rule that is always wrong is a coin, not turned round"


@pytest.mark.parametrize("protocol", asking_protocols())
def test_telling_a_pair_from_the_preferred_side_gives_no_protocol_an_advantage(protocol):
    """The same pair, labelled either way: the log-odds for what was chosen are exactly opposite."""
    one = Preference(pair().prompt, "Good words here.", "Other words there, and more.", 1.0, 1.0, "human", (), Provenance(""))
    other = replace(one, chosen=one.rejected, rejected=one.chosen)
    session = ScriptedSession(hashed, protocol=protocol, cot_clamp=None)
    pairs = [told_from_the_preferred_side(p) for p in (one, other)]
    first, second = session.ask(lambda opened: ask_all(pairs, CONSTITUTION, opened))
    assert first.opinions == {name: -x for name, x in second.opinions.items()}
    assert told_from_the_preferred_side(one.swapped()) == pairs[0]


def test_pooling_is_the_judges_own():
    p = pair("Good words here.", "Other words.")

    async def both(opened):
        return await ask_all([p], CONSTITUTION, opened), await opened.judge(CONSTITUTION)(p)

    (asked,), judgment = ScriptedSession(hashed).ask(both)
    label = judgment.p_a
    assert asked.pooled({q.id: q.weight for q in CONSTITUTION.principles}) == pytest.approx(log_odds_of(label), abs=1e-9)


def test_a_judge_that_likes_the_right_text_agrees_under_every_principle():
    rows = [pair("GOOD answer.", "Another.", i) for i in range(12)]
    found = measured(ScriptedSession(prefers_text).ask(lambda opened: ask_all(rows, CONSTITUTION, opened)))
    assert all(r.agreement == 1.0 and r.n == 12 and r.low > 0.7 for r in found.principles) and len(found.principles) == 3


def test_pairs_that_cant_be_judged_are_counted():
    def sometimes(request):
        if isinstance(request, ChoicesRequest) and "number 3" in request.messages[-1].content:
            raise ReplyError("too_long")
        return log_odds_reply(1.0)

    session = ScriptedSession(sometimes)
    rows = session.ask(lambda opened: ask_all([pair(number=i) for i in range(20)], CONSTITUTION, opened))
    assert len(rows) == 19 and [f.reason for f in session.failures] == ["too_long"]


def test_no_principle_for_any_pair_is_an_error():
    narrow = replace(CONSTITUTION, principles=tuple(replace(p, applies_to=("harmful",)) for p in CONSTITUTION.principles))
    session = ScriptedSession(recipe=Recipe(name="t", max_failure_fraction=1.0))
    with pytest.raises(ModelError, match=r"all 3 items failed: no_principle_applies × 3 .to helpful prompts."):
        session.ask(lambda opened: ask_all([pair(number=i) for i in range(3)], narrow, opened))
