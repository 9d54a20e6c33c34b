"""What the report claims: only what an interval shows, and loudly what the judge can't."""

from dataclasses import replace
from pathlib import Path

import pytest

from cai.core.manifest import JudgeCard
from cai.records import EvalResult
from cai.report.collect import ReportData, collect_report
from cai.report.verdict import adherence_sentence, judge_warning, reach_verdict
from tests.report.run_directory import before_after, results, write_run


@pytest.fixture
def data(tmp_path: Path) -> ReportData:
    return collect_report(write_run(tmp_path / "run"))


def judged(data: ReportData, card: JudgeCard | None) -> ReportData:
    return replace(data, manifest=replace(data.manifest, judge=card))


def with_rates(data: ReportData, compliance: tuple[float, float, float], refusal: tuple[float, float, float]) -> ReportData:
    measured = [
        *before_after("harmful_compliance", 0.5, 0.5 + compliance[0], compliance),
        *before_after("over_refusal", 0.3, 0.3 + refusal[0], refusal),
    ]
    return replace(data, evaluation=tuple(measured))


DOWN, UP, SAME = (-0.2, -0.3, -0.1), (0.2, 0.1, 0.3), (-0.1, -0.25, 0.05)


@pytest.mark.parametrize(
    ("compliance", "refusal", "headline", "tones"),
    [
        (
            DOWN,
            SAME,
            "refuses more harmful requests than the base model, with no clear change in how many fine ones it refuses.",
            "good unclear",
        ),
        (DOWN, UP, "refuses more harmful requests than the base model, but refuses more that are fine.", "good bad"),
        (DOWN, DOWN, "refuses more harmful requests than the base model, and refuses fewer that are fine.", "good good"),
        (UP, UP, "refuses fewer harmful requests than the base model, and refuses more that are fine.", "bad bad"),
        (UP, DOWN, "refuses fewer harmful requests than the base model, but refuses fewer that are fine.", "bad good"),
        (
            SAME,
            UP,
            "was not shown to refuse more harmful requests than the base model, and refuses more that are fine.",
            "unclear bad",
        ),
    ],
)
def test_the_headline_claims_what_the_intervals_show(
    data: ReportData, compliance: tuple[float, float, float], refusal: tuple[float, float, float], headline: str, tones: str
) -> None:
    verdict = reach_verdict(with_rates(data, compliance, refusal))
    assert verdict.headline == f"The trained model (policy) {headline}"
    assert [f.tone for f in verdict.findings[:2]] == tones.split()


def test_wins_that_may_be_length_alone_are_said_to_be(data: ReportData) -> None:
    text = " ".join(reach_verdict(data).sentences)
    assert "beats the base model beyond chance" in text
    assert "the wins may come from length alone" in text
    held = tuple(replace(r, low=0.55) if r.name.endswith("like_length") else r for r in results())
    assert "it also wins at similar length" in " ".join(reach_verdict(replace(data, evaluation=held)).sentences)


def test_a_judge_and_a_reward_model_that_disagree_are_no_win(data: ReportData) -> None:
    lost = (*results(), EvalResult("win_rate_by_reward", "policy", 0.3, 100, 0.2, 0.4))
    finding = reach_verdict(replace(data, evaluation=lost)).findings[2]
    assert (finding.answer, finding.tone) == ("they disagree", "unclear")


def test_loops_reach_the_headline(data: ReportData) -> None:
    looping = (*results(), *before_after("looping", 0.05, 0.25, (0.2, 0.1, 0.3)))
    verdict = reach_verdict(replace(data, evaluation=looping))
    assert verdict.headline.endswith("Its answers loop more.")
    assert verdict.findings[-1].tone == "bad"


def test_few_prompts_are_said_to_be_few(data: ReportData) -> None:
    few = tuple(replace(r, n=12) for r in results())
    assert any("only 12 prompts" in s for s in reach_verdict(replace(data, evaluation=few)).sentences)
    assert not any("only" in s for s in reach_verdict(data).sentences)


def test_a_run_without_a_policy_speaks_of_its_sft_model(data: ReportData) -> None:
    sft = tuple(replace(r, model="sft") if r.model == "policy" else r for r in results())
    assert reach_verdict(replace(data, evaluation=sft)).headline.startswith(
        "The model trained on examples (SFT; no policy has been trained yet) refuses"
    )


@pytest.mark.parametrize("evaluation", [None, (), tuple(r for r in results() if r.model == "base")])
def test_nothing_measured_is_no_verdict(data: ReportData, evaluation: tuple[EvalResult, ...] | None) -> None:
    verdict = reach_verdict(replace(data, evaluation=evaluation))
    assert verdict.findings == ()
    assert "not been evaluated" in verdict.headline or "no result" in verdict.headline


def test_a_judge_that_beats_the_baselines_needs_no_warning(data: ReportData) -> None:
    assert judge_warning(data) == ""


def test_a_judge_that_was_not_measured_or_not_shown_better_is_warned_of(data: ReportData) -> None:
    unmeasured = judge_warning(judged(data, JudgeCard("pairwise", False, note="No pairs were given.")))
    assert unmeasured == "No pairs were given."
    assert "not measured against people's labels" in judge_warning(judged(data, JudgeCard("pairwise", False)))
    weak = judge_warning(judged(data, JudgeCard("pairwise", True, "f", 0.58, 0.54, 0.63, 438, False, "the longer answer, 56%", "")))
    assert "58% of 438 pairs (95% interval 54% to 63%)" in weak
    assert "not shown to beat the best simple rule (the longer answer, 56%)" in weak


def test_ai_labels_without_any_judge_card_are_warned_of(data: ReportData) -> None:
    assert "never measured" in judge_warning(judged(data, None))
    assert data.labels is not None
    human = replace(data.labels, sources=tuple(s for s in data.labels.sources if s.source.startswith("human")))
    assert judge_warning(replace(judged(data, None), labels=human)) == ""


def test_learned_and_lost_principles_are_named() -> None:
    def change(name: str, value: float, p: float, group: str = "adherence") -> list[EvalResult]:
        rates = [EvalResult(f"{group}:{name}", m, v, 50, v, v) for m, v in (("base", 0.4), ("policy", 0.4 + value))]
        return [*rates, EvalResult(f"{group}:{name}_change", "policy", value, 50, value - 0.1, value + 0.1, p_adjusted=p)]

    results = [
        *change("brief", 0.5, 0.001),
        *change("kind", 0.3, 0.2),
        *change("frank", -0.4, 0.01),
        *change("colour", 0.5, 0.001, "control"),
    ]
    assert adherence_sentence(results) == "The trained model learned 1 of 3 measured principles: brief. It lost frank."
    assert adherence_sentence(change("kind", 0.3, 0.2)) == "The trained model learned 0 of 1 measured principle."
    assert adherence_sentence([]) == ""


def test_labels_by_rule_are_no_judge_that_can_not_be_trusted(data: ReportData) -> None:
    card = JudgeCard("check", False, note="Labels come from the principles' own checks (check).", by_rule=True)
    assert judge_warning(judged(data, card)) == ""
    assert judge_warning(judged(data, replace(card, by_rule=False))) == card.note
