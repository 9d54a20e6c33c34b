import math

import pytest

from cai.errors import NoLogprobsError, ReplyError
from cai.judge.protocols.pairwise_cot import find_verdict
from cai.models.requests import ChoicesRequest, CompleteRequest, Completion
from tests.judge.judging import judged, log_odds_reply, pair, prefers_text


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Answer: A", "A"),
        ("Answer: (B)", "B"),
        ("**Answer: B**", "B"),
        ("Answer: **A**.", "A"),
        ("The answer is (A).", "A"),
        ("The answer is: B", "B"),
        ("the final answer is B, since it is kinder", "B"),
        ("Verdict: Response A", "A"),
        ("Answer: option B", "B"),
        ("Answer: A? Or rather not.\nAnswer: B", "B"),
        ("Answer: B is tempting at first.\n\nAnswer: A\n", "A"),
        ("The answer is A because it is honest.", "A"),
        ('Answer: "B"', "B"),
        ("Reasons.\nANSWER: A", "A"),
        ("Answer：B", "B"),
    ],
)
def test_the_last_verdict_counts(reply, verdict):
    found, at = find_verdict(reply)
    assert found == verdict and reply[at] == verdict


@pytest.mark.parametrize(
    "reply",
    [
        *(
            "Answer: C",
            "Answer: both",
            "Answer: A or B",
            "Answer: A/B",
            "Answer: A and B are equal",
            "Answer: neither",
            "Answer:",
            "Answer: 1",
        ),
        *("Answer: A good response would be kinder.", "Answer: a", "Answer: A\nOn reflection: Answer: C", "The answer is unclear."),
    ],
)
def test_a_verdict_off_the_menu_is_a_failure(reply):
    with pytest.raises(ReplyError) as caught:
        find_verdict(reply)
    assert caught.value.reason == "off_menu"


@pytest.mark.parametrize("reply", ["", "I like the first one.", "A", "(B)", "Both answers are fine.", "A is better than B."])
def test_words_without_a_verdict_have_none(reply):
    assert find_verdict(reply) is None


def test_a_verdict_that_was_forgotten_is_asked_for():
    prefills = []

    def script(request):
        if isinstance(request, ChoicesRequest):
            prefills.append(request.prefill)
            return log_odds_reply(2.0 if "GOOD" in request.messages[-1].content.split("(B)")[0] else -2.0)
        return Completion("Hard to say. ", True, 1, 1)

    judgment = judged(script, "pairwise-cot", pair(), cot_clamp=None)[0]
    assert judgment.p_a == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert set(prefills) == {"Let's think step by step. Hard to say.\nAnswer:"}
    assert "[no verdict; read after 'Answer:']" in judgment.detail


def test_an_unreadable_reply_is_recorded_with_the_models_words():
    words = "Answer: C"

    def script(request):
        return Completion(words, False, 1, 1) if isinstance(request, CompleteRequest) else log_odds_reply(1.0)

    judgment = judged(script, "pairwise-cot", pair())[0]
    assert judgment.failure == "off_menu" and judgment.p_a is None and words in judgment.detail


def test_the_probability_is_read_where_the_verdict_stood():
    prefills, forms = [], set()

    def script(request):
        if isinstance(request, ChoicesRequest):
            prefills.append(request.prefill)
            forms.add(request.choices)
        return prefers_text(request)

    judgment = judged(script, "pairwise-cot", pair(), cot_clamp=None)[0]
    assert judgment.p_a > 0.8
    assert len(prefills) == 6
    assert forms == {(" A", " B")}, "as the model wrote it, after a space"
    assert all(p.startswith("Let's think") and p.endswith("But one is clearer.\nAnswer:") for p in prefills)
    assert "[A first]" in judgment.detail and "[B first]" in judgment.detail


@pytest.mark.parametrize(("clamp", "expected"), [((0.4, 0.6), 0.6), ((0.2, 0.8), 0.8), ((0.5, 0.5), 0.5)])
def test_the_clamp_of_the_paper(clamp, expected):
    def certain(request):
        if isinstance(request, ChoicesRequest):
            return log_odds_reply(9.0 if "GOOD" in request.messages[-1].content.split("(B)")[0] else -9.0)
        return prefers_text(request)

    judgment = judged(certain, "pairwise-cot", pair(), cot_clamp=clamp)[0]
    assert judgment.p_a == pytest.approx(expected, abs=1e-9)


def test_a_judge_without_log_probabilities_is_taken_at_its_word():
    def silent(request):
        if isinstance(request, ChoicesRequest):
            raise NoLogprobsError("gives no log-probabilities")
        return prefers_text(request)

    def mute(request):
        return Completion("Hard to say.", False, 1, 1) if isinstance(request, CompleteRequest) else silent(request)

    assert judged(silent, "pairwise-cot", pair())[0].p_a == pytest.approx(0.6), "certain in both orders, and clamped as in the paper"
    assert judged(silent, "pairwise-cot", pair(), cot_clamp=None)[0].p_a > 0.999
    assert judged(mute, "pairwise-cot", pair())[0].failure == "no_verdict"
