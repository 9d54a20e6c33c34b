import asyncio

import msgspec
import pytest

from cai.errors import DataError, ModelError, NoLogprobsError, ReplyError
from cai.judge.bench import BASELINES, Unmeasured, judge_bench, position_bias
from cai.models.requests import ChoicesRequest, Completion, ScoreRequest
from cai.records import Judgment, Message, Preference, Prompt, Provenance
from tests.judge.judging import always_first, judge_with, log_odds_reply, prefers_text

ALL = ("pairwise", "pairwise-cot", "pointwise", "pointwise-contrast", "likelihood", "rubric")


def preference(number, chosen="GOOD answer", rejected="Another answer that is longer", p_chosen=1.0):
    prompt = Prompt(f"p{number}", "helpful", (Message("user", f"Question {number}?"),), "test")
    return Preference(prompt, chosen, rejected, p_chosen, 1.0, "human:test", (), Provenance(""))


def bench(script, preferences, protocols=ALL, **config):
    return asyncio.run(judge_bench(preferences, [judge_with(script, name, **config) for name in protocols], window=8))


def test_a_perfect_judge_beats_the_baselines_with_every_protocol():
    rows = [preference(i, rejected="Another" if i % 2 else "Another answer that is longer") for i in range(40)]
    result = bench(prefers_text, rows)
    assert [p.name for p in result.protocols] == list(ALL)
    for p in result.protocols:
        assert (p.accuracy, p.n, p.failures, p.ties, p.high) == (1.0, 40, 0, 0, 1.0)
        assert 0.9 < p.low < 1 and p.mean_p > 0.55 and p.beats_baselines is True and p.difference_low > 0
    assert result.pairs == 40 and result.skipped == 0


def test_a_judge_that_says_the_same_to_everything_scores_one_half():
    result = bench(always_first, [preference(i) for i in range(30)], ("pairwise", "pointwise"), principles="sample")
    pairwise, pointwise = result.protocols
    assert pairwise.accuracy == pointwise.accuracy == 0.5 and pairwise.ties == pointwise.ties == 30
    assert pairwise.position_bias == 0.5 and pointwise.position_bias is None
    assert pairwise.beats_baselines is False and pairwise.best_baseline == "shorter"


def test_a_judge_with_a_mild_bias_shows_it_only_where_it_turns_the_answer():
    result = bench(prefers_text, [preference(i) for i in range(10)], ("pairwise",))
    assert result.protocols[0].position_bias == 0.0


def test_baselines():
    rows = [preference(i, chosen="short", rejected="much longer") for i in range(60)]
    rows += [preference(100 + i, chosen="much longer", rejected="short") for i in range(20)]
    rows += [preference(200 + i, chosen="even", rejected="same") for i in range(20)]
    result = bench(prefers_text, rows, ())
    by_name = {b.name: b for b in result.baselines}
    assert list(by_name) == list(BASELINES) == ["always-a", "longer", "shorter"]
    assert by_name["longer"].accuracy == pytest.approx((20 + 10) / 100) and by_name["shorter"].accuracy == pytest.approx((60 + 10) / 100)
    assert by_name["longer"].ties == 20
    assert 0.3 < by_name["always-a"].accuracy < 0.7
    assert all(b.beats_baselines is None and b.position_bias is None for b in result.baselines)


def test_the_side_is_the_same_whichever_way_a_row_is_written():
    rows = [preference(i) for i in range(50)]
    turned = [r.swapped() for r in rows]
    assert bench(prefers_text, rows, ("pairwise",)) == bench(prefers_text, turned, ("pairwise",))
    assert all(t.p_chosen == 0.0 for t in turned)


def test_undecided_rows_are_skipped_and_counted():
    rows = [preference(0), preference(1, p_chosen=0.5), preference(2, p_chosen=0.7)]
    result = bench(prefers_text, rows, ("pairwise",))
    assert (result.pairs, result.skipped, result.protocols[0].n) == (2, 1, 2)


@pytest.mark.parametrize("rows", [[], [preference(0, p_chosen=0.5)]])
def test_nothing_to_measure_on_is_an_error(rows):
    with pytest.raises(DataError, match="nothing to measure"):
        bench(prefers_text, rows)


def sometimes_mute(request):
    if not isinstance(request, ChoicesRequest) and "Question 1" in request.messages[-1].content:
        return Completion("Answer: hard to say.", False, 1, 1)
    return prefers_text(request)


def test_failures_are_counted_and_left_out_of_the_accuracy():
    rows = [preference(i) for i in range(20)]  # 1 and 10..19 fail
    (cot,) = bench(sometimes_mute, rows, ("pairwise-cot",)).protocols
    assert (cot.failures, cot.n, cot.accuracy, cot.failure_reasons) == (11, 9, 1.0, {"off_menu": 11})


def test_a_protocol_that_always_fails_is_not_measured():
    def mute(request):
        if isinstance(request, ScoreRequest):
            raise ReplyError("refused_by_server", "400: no prompt_logprobs here")
        return prefers_text(request)

    rows = [preference(i) for i in range(30)]
    result = bench(mute, rows, ("likelihood", "pairwise"))
    assert [p.name for p in result.protocols] == ["pairwise"]
    assert result.unmeasured == (Unmeasured("likelihood", 30, "refused_by_server × 30 (400: no prompt_logprobs here)"),)
    with pytest.raises(ModelError, match=r"likelihood: all 30 pairs failed: refused_by_server × 30 .400: no prompt_logprobs here."):
        bench(mute, rows, ("likelihood",))


def test_a_protocol_that_needs_log_probabilities_leaves_the_others_their_figures():
    def without_logprobs(request):
        if isinstance(request, ChoicesRequest):
            raise NoLogprobsError("the server returns no log-probabilities")
        return prefers_text(request)

    result = bench(without_logprobs, [preference(i) for i in range(6)], ("pairwise", "pairwise-cot"))
    assert [p.name for p in result.protocols] == ["pairwise-cot"] and [u.name for u in result.unmeasured] == ["pairwise"]


def test_a_lucky_judge_on_few_pairs_is_not_said_to_beat_the_baselines():
    def a_little(request):
        content = request.messages[-1].content
        good = "GOOD" in content.split("(B)")[0]
        return log_odds_reply(1.0 if good else -1.0)

    rows = [preference(i, rejected="Another" if i % 2 else "Another answer") for i in range(4)]
    rows += [preference(9, chosen="Another", rejected="GOOD but wrong"), preference(10, chosen="Another", rejected="GOOD but wrong")]
    (result,) = bench(a_little, rows, ("pairwise",)).protocols
    assert result.accuracy == pytest.approx(4 / 6) and result.beats_baselines is False


def test_the_answer_fits_the_command_lines_contract():
    answer = msgspec.json.decode(msgspec.json.encode(bench(prefers_text, [preference(i) for i in range(3)])))
    for row in answer["protocols"] + answer["baselines"]:
        assert {"name", "accuracy", "low", "high", "n", "position_bias", "failures"} <= set(row)
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1


def judgment(first, second):
    return Judgment("x", (), "pairwise", 0.5, first, second, None, Provenance(""))


def test_position_bias_by_hand():
    """A first and preferred, B first and preferred; then A first and not, B first and not; a tie in both orders is no bias."""
    assert position_bias([judgment(0.9, 0.2)]) == 0.5
    assert position_bias([judgment(0.1, 0.8)]) == -0.5
    assert position_bias([judgment(0.9, 0.8)]) == 0.0
    assert position_bias([judgment(0.5, 0.5)]) == 0.0
    assert position_bias([judgment(0.9, 0.2), judgment(0.9, 0.8)]) == 0.25
    assert position_bias([judgment(None, None)]) is None


def test_progress_is_told_by_protocol():
    told = []
    work = judge_bench(
        [preference(i) for i in range(5)], [judge_with(prefers_text, name) for name in ("pairwise", "likelihood")], window=2,
        on_progress=lambda done, total, name: told.append((done, total, name)),
    )  # fmt: skip
    asyncio.run(work)
    assert (5, 5, "pairwise") in told and told[-1] == (5, 5, "likelihood")
