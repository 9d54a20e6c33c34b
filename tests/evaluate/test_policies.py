"""Rates, win rates, lengths and repetition, on answers whose numbers are worked out by hand."""

import doctest
import math
from dataclasses import replace

import pytest

import cai.core.text.repetition
from cai.core.text.repetition import repeated_fraction
from cai.errors import DataError
from cai.evaluate.lengths import length_stats, ratio_of_means, repetition
from cai.evaluate.paired import by_prompt
from cai.evaluate.policies import Verdicts, corrected, evaluate_policies
from cai.evaluate.refusal_rates import harmful_compliance, harmful_compliance_by_judge, over_refusal
from cai.evaluate.rewards import member_accuracy, reward_means
from cai.evaluate.win_rate import length_control, outcomes_by_judge, outcomes_by_reward, win_rates
from cai.records import EvalResult, Message, Prompt, PromptKind, Provenance, Response
from cai.stats import change
from cai.train.reward.metrics import measure_margins

REFUSAL = "I'm sorry, but I can't help with that."
KINDS: tuple[PromptKind, ...] = ("harmful", "harmful", "borderline", "helpful")


def answer(index: int, text: str, kind: PromptKind | None = None, truncated: bool = False) -> Response:
    prompt = Prompt(f"p{index}", kind or KINDS[index % 4], (Message("user", f"Question {index}?"),), "test")
    return Response(prompt, text, truncated, Provenance("test"))


def answers(*texts: str) -> dict[str, Response]:
    return by_prompt(answer(i, text) for i, text in enumerate(texts))


def named(results: list[EvalResult], name: str) -> EvalResult:
    found = [r for r in results if r.name == name]
    assert len(found) == 1, f"{name}: {[r.name for r in results]}"
    return found[0]


def test_two_answers_to_one_prompt_are_an_error_and_never_a_choice() -> None:
    with pytest.raises(DataError, match="p0 has two responses"):
        by_prompt([answer(0, "a"), answer(0, "b")])


def test_doctests_hold() -> None:
    tried = doctest.testmod(cai.core.text.repetition)
    assert tried.attempted > 0 and tried.failed == 0


def test_change_of_a_rate_is_newcombes_and_antisymmetric() -> None:
    before, after = [True] * 8 + [False] * 12, [True] * 3 + [False] * 5 + [True] * 2 + [False] * 10
    value, low, high = change(before, after)
    assert value == pytest.approx(-3 / 20)
    back, back_low, back_high = change(after, before)
    assert (back, back_low, back_high) == pytest.approx((-value, -high, -low))
    assert low < value < high


def test_change_stays_uncertain_where_nothing_differed() -> None:
    value, low, high = change([False] * 5, [False] * 5)
    assert value == 0
    assert low < -0.2
    assert high > 0.2


def test_three_of_three_changes_are_not_certainty() -> None:
    value, low, high = change([True] * 3, [False] * 3)
    assert value == -1
    assert low == -1
    assert high > -0.4


def test_harmful_compliance_and_over_refusal_are_separate_rates() -> None:
    mine = answers("Sure: first you", REFUSAL, REFUSAL, "Gladly. Here is how.")
    assert named(harmful_compliance("policy", mine), "harmful_compliance").value == 0.5
    refused = over_refusal("policy", mine)
    assert (named(refused, "over_refusal").value, named(refused, "over_refusal").n) == (0.5, 2)
    assert named(refused, "over_refusal:borderline").value == 1.0
    assert named(refused, "over_refusal:helpful").value == 0.0


def test_a_model_that_refuses_all_shows_in_over_refusal() -> None:
    base = answers(*["Sure, here is the answer."] * 4)
    all_refused = answers(*[REFUSAL] * 4)
    assert named(harmful_compliance("policy", all_refused, base), "harmful_compliance_change").value == -1.0
    assert named(over_refusal("policy", all_refused, base), "over_refusal_change").value == 1.0


def test_an_empty_response_neither_complies_nor_refuses_and_is_counted() -> None:
    mine = answers("  ", "Sure.", "", "Yes.")
    complied = named(harmful_compliance("policy", mine), "harmful_compliance")
    assert complied.value == 0.5
    assert complied.note.startswith("1 empty response")
    refused = named(over_refusal("policy", mine), "over_refusal")
    assert refused.value == 0.0
    assert refused.note.startswith("1 empty response")


def test_unlabelled_prompts_count_in_neither_rate() -> None:
    mine = by_prompt([answer(0, REFUSAL, "other")])
    assert harmful_compliance("policy", mine) == []
    assert over_refusal("policy", mine) == []


def test_judged_compliance_counts_harmful_prompts_only() -> None:
    mine = answers("a", "b", "c", "d")
    found = harmful_compliance_by_judge("policy", {"p0": 0.9, "p1": 0.5, "p2": 0.9}, mine, {"p0": 0.9, "p1": 0.8})
    rate = named(found, "harmful_compliance_by_judge")
    assert (rate.value, rate.n) == (0.5, 2)
    assert named(found, "harmful_compliance_by_judge_change").value == -0.5
    with pytest.raises(DataError, match=r"outside \[0, 1\]"):
        harmful_compliance_by_judge("policy", {"p0": 1.5}, mine)


def test_wins_count_one_ties_half_and_equal_texts_tie() -> None:
    base, mine = answers("a", "b", "same", "d"), answers("w", "x", "same", "z")
    outcomes = outcomes_by_judge({"p0": 0.51, "p1": 0.2, "p2": 0.9, "p3": 0.5}, base, mine)
    assert outcomes == {"p0": 1.0, "p1": 0.0, "p2": 0.5, "p3": 0.5}
    results = win_rates("win_rate_by_judge", "policy", outcomes, mine)
    overall = named(results, "win_rate_by_judge")
    assert (overall.value, overall.n) == (0.5, 4)
    assert overall.note == "2 ties counted half"
    assert named(results, "win_rate_by_judge:harmful").n == 2
    assert named(results, "win_rate_by_judge:helpful").value == 0.5


def test_win_rate_swaps_to_its_complement() -> None:
    base, mine = answers("a", "b", "c", "d"), answers("w", "x", "y", "z")
    p = {"p0": 0.9, "p1": 0.7, "p2": 0.5, "p3": 0.1}
    there = outcomes_by_judge(p, base, mine)
    back = outcomes_by_judge({i: 1 - x for i, x in p.items()}, mine, base)
    assert {i: 1 - o for i, o in back.items()} == there


def test_reward_wins_compare_prompt_by_prompt() -> None:
    base, mine = answers("a", "b", "c"), answers("x", "y", "z")
    assert outcomes_by_reward({"p0": 1.0, "p1": -2.0, "p2": 0.0}, {"p0": 0.5, "p1": -1.0, "p2": 0.0}, base, mine) == {
        "p0": 0.0,
        "p1": 1.0,
        "p2": 0.5,
    }
    with pytest.raises(DataError, match="aren't numbers for p0"):
        outcomes_by_reward({"p0": math.nan}, {"p0": 1.0}, base, mine)
    with pytest.raises(DataError, match="p9"):
        outcomes_by_judge({"p9": 0.4}, base, mine)


def test_length_control_finds_wins_that_follow_length() -> None:
    base = answers("a b c d e", "a b c d e", "a b c d e", "a b c d e")
    mine = answers("a b c d e f g h i", "a", "v w x y z", "v w x y z u")
    outcomes = {"p0": 1.0, "p1": 0.0, "p2": 1.0, "p3": 0.0}
    results = length_control("win_rate_by_judge", "policy", outcomes, base, mine)
    longer = named(results, "longer_wins")
    assert (longer.value, longer.n) == (pytest.approx(2 / 3), 3)  # p2 is of equal length; p3's longer answer lost
    like = named(results, "win_rate_by_judge:like_length")
    assert (like.value, like.n) == (0.5, 2)


def test_lengths_against_base() -> None:
    base, mine = answers("one two", "one two", "one two"), answers("a b c d", "a b", "a b c d e f")
    mine["p1"] = answer(1, "a b", truncated=True)
    results = length_stats("policy", mine, base)
    assert named(results, "response_words").value == 4.0
    assert named(results, "response_words_ratio").value == 2.0
    assert named(results, "truncated").value == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="no responses"):
        length_stats("policy", {})


def test_what_only_one_model_answered_is_said() -> None:
    results = length_stats("policy", answers("a b"), answers("a b", "c"))
    assert named(results, "response_words_ratio").note == "1 prompt answered by only one of the two left out"


def test_ratio_interval_has_no_width_where_every_item_has_the_same_ratio() -> None:
    assert ratio_of_means([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 0) == (2.0, 2.0, 2.0)
    value, low, high = ratio_of_means([1.0, 8.0, 2.0, 9.0], [4.0, 4.0, 0.0, 4.0], 0)
    assert low < value < high


def test_repeated_fraction() -> None:
    assert repeated_fraction("") == 0.0
    assert repeated_fraction("one two three") == 0.0
    assert repeated_fraction("every word here is a new one") == 0.0
    assert repeated_fraction("No no " * 20) == pytest.approx(1 - 1 / 37)  # 37 runs of four, all the same


def test_looping_counts_responses_and_its_change() -> None:
    loop = "and so on " * 12
    results = repetition("policy", answers(loop, "a clean short answer with no repeats"), answers("fine", "also fine"))
    assert named(results, "looping").value == 0.5
    assert named(results, "looping_change").value == 0.5
    assert named(results, "repetition").value == pytest.approx((1 - 3 / 33) / 2)


def test_rewards() -> None:
    results = reward_means("policy", {"p0": 1.0, "p1": 3.0}, {"p0": 0.5, "p1": 0.5})
    assert named(results, "reward").value == pytest.approx(2.0)
    assert named(results, "reward_change").value == pytest.approx(1.5)
    measured = measure_margins([1.0] * 30 + [-1.0] * 10, [1.0] * 40, [f"p{i // 4}" for i in range(40)])
    right = member_accuracy("reward-0", measured)
    assert (right.model, right.value, right.n, right.low, right.high) == ("reward-0", 0.75, 40, measured.low, measured.high)


def test_the_battery_gives_every_model_every_measure() -> None:
    responses = {
        "base": [answer(i, "Sure, here is a plain answer to that.") for i in range(8)],
        "sft": [answer(i, "Sure, here is another answer to that one.") for i in range(8)],
        "policy": [answer(i, REFUSAL if i % 4 < 2 else "Gladly: here is an answer.") for i in range(8)],
    }
    rewards = {m: {f"p{i}": float(k) for i in range(8)} for k, m in enumerate(responses)}
    results = evaluate_policies(responses, Verdicts({"policy": {f"p{i}": 0.8 for i in range(8)}}, rewards, {"base": {"p0": 0.9}}))
    by_model = {m: {r.name for r in results if r.model == m} for m in responses}
    assert by_model["base"] == {
        "harmful_compliance",
        "harmful_compliance_by_judge",
        "over_refusal",
        "over_refusal:borderline",
        "over_refusal:helpful",
        "response_words",
        "truncated",
        "repetition",
        "looping",
        "reward",
    }
    assert {"win_rate_by_judge", "win_rate_by_reward", "harmful_compliance_change", "longer_wins"} <= by_model["policy"]
    assert "win_rate_by_judge" not in by_model["sft"]
    policy = {r.name: r for r in results if r.model == "policy"}
    assert policy["harmful_compliance_change"].value == -1.0
    assert policy["over_refusal_change"].value == 0.0
    assert policy["win_rate_by_reward"].value == 1.0
    assert all(r.low - 1e-9 <= r.value <= r.high + 1e-9 and r.n > 0 for r in results)
    assert results == evaluate_policies(responses, Verdicts({"policy": {f"p{i}": 0.8 for i in range(8)}}, rewards, {"base": {"p0": 0.9}}))


def test_verdicts_about_a_model_that_answered_nothing_are_an_error() -> None:
    with pytest.raises(DataError, match="about ppo"):
        evaluate_policies({"base": [answer(0, "a")]}, Verdicts(rewards={"ppo": {"p0": 1.0}}))


def test_harmful_compliance_is_told_by_category_where_there_are_enough() -> None:
    def asked(i: int, category: str) -> Prompt:
        return replace(answer(i, "x", "harmful").prompt, category=category)

    categories = ["fraud"] * 4 + ["drugs"] * 3 + ["rare"] * 2
    mine = {f"p{i}": replace(answer(i, REFUSAL if i < 2 else "Here is how."), prompt=asked(i, c)) for i, c in enumerate(categories)}
    found = {r.name: (r.value, r.n) for r in harmful_compliance("policy", mine)}
    assert found == {"harmful_compliance": (7 / 9, 9), "harmful_compliance:fraud": (0.5, 4), "harmful_compliance:drugs": (1.0, 3)}


def test_changes_are_tested_and_corrected_model_by_model() -> None:
    rows = (("a", "policy", 0.01), ("b", "policy", 0.04), ("a", "sft", 0.04))
    tested = [EvalResult(name, model, 0, 9, 0, 0, p=p) for name, model, p in rows]
    plain = EvalResult("c", "policy", 0, 9, 0, 0)
    assert [r.p_adjusted for r in corrected([*tested, plain])] == [0.02, 0.04, 0.04, None]
    base = [answer(i, "Here is how.", "harmful") for i in range(10)]
    policy = [replace(r, text=REFUSAL) if i < 7 else r for i, r in enumerate(base)]
    found = {r.name: r for r in evaluate_policies({"base": base, "policy": policy}, Verdicts({"policy": {f"p{i}": 0.9 for i in range(8)}}))}
    assert found["harmful_compliance_change"].p == pytest.approx(2 / 2**7)
    assert found["win_rate_by_judge"].p == pytest.approx(2 / 2**7)  # the eighth answer is the same text, a tie
