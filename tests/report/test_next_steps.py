"""What a report advises to do next, and what it says about costs."""

from dataclasses import replace
from pathlib import Path

import pytest

from cai.core.manifest import JudgeCard, Manifest, StageEntry
from cai.records import EvalResult
from cai.report.adherence import adherence_views
from cai.report.collect import ReportData, collect_report
from cai.report.next_steps import MOST_STEPS, costs_in_words, next_steps
from tests.report.run_directory import write_run


@pytest.fixture
def data(tmp_path: Path) -> ReportData:
    found = collect_report(write_run(tmp_path / "run"))
    manifest = Manifest("run", judge=JudgeCard("check", False, by_rule=True), stages=[StageEntry("respond", "done", "f")])
    return replace(found, manifest=manifest, audit=())


def principle(name: str, base: float, change: float, p: float, told: float | None = None, group: str = "adherence") -> list[EvalResult]:
    found = [EvalResult(f"{group}:{name}", m, v, 50, v, v) for m, v in (("base", base), ("policy", base + change))]
    found.append(EvalResult(f"{group}:{name}_change", "policy", change, 50, change - 0.1, change + 0.1, p_adjusted=p))
    if told is not None:
        found.append(EvalResult(f"{group}:{name}", "told", base + told, 50, base, base))
        found.append(EvalResult(f"{group}:{name}_change", "told", told, 50, told - 0.1, told + 0.1))
    return found


def texts(data: ReportData, *results: list[EvalResult]) -> str:
    return "\n".join(f"{s.text} {s.command}" for s in next_steps(replace(data, evaluation=tuple(r for part in results for r in part))))


def test_each_verdict_has_its_advice(data: ReportData) -> None:
    told = texts(
        data,
        principle("brief", 0.1, 0.8, 0.001),
        principle("frank", 0.9, -0.4, 0.001),
        principle("calm", 0.9, -0.2, 0.09),
        principle("kind", 0.1, 0.0, 1.0, told=0.5),
        principle("wise", 0.1, 0.0, 1.0, told=0.0),
    )
    assert "frank and calm are followed less often than before training" in told
    assert "kind is followed by the base model when it is told, but training did not teach it" in told
    assert "does not follow wise even when it is told" in told and "cai constitution flip" in told
    assert "to see whether brief is learned each time" in told and "seeds=[0, 1, 2]" in told


def test_a_control_that_changed_is_pointed_out(data: ReportData) -> None:
    colour = principle("colour", 0.2, 0.5, 0.001, group="control")
    assert "Answers changed where they should not have: colour" in texts(data, principle("brief", 0.1, 0.8, 0.001), colour)
    for change, p, verdict in ((0.0, 1.0, "unchanged, as it should be"), (-0.2, 0.3, "perhaps changed"), (0.5, 0.001, "changed")):
        shown = adherence_views(replace(data, evaluation=tuple(principle("colour", 0.2, change, p, group="control"))))
        assert [view.verdict for view in shown] == [verdict]
    assert "although" not in texts(data, principle("brief", 0.1, 0.8, 0.001), principle("colour", 0.2, 0.0, 1.0, group="control"))


def test_without_adherence_it_says_what_is_missing(data: ReportData) -> None:
    told = texts(data, [EvalResult("harmful_compliance", "policy", 0.5, 12, 0.2, 0.8)])
    assert "No principle was measured" in told and "12 can show only large changes" in told


def test_a_run_that_stopped_is_resumed_first(data: ReportData) -> None:
    stages = [StageEntry("respond", "done", "f"), StageEntry("sft", "failed", "f", message="out of memory")]
    stopped = replace(data, manifest=Manifest("run", stages=stages), evaluation=None)
    first = next_steps(stopped)[0]
    assert first.text.startswith("The sft stage failed: out of memory.") and first.command == "cai run runs/run/recipe.yaml"


def test_at_most_five_steps_are_advised(data: ReportData) -> None:
    weak = replace(data, manifest=Manifest("run", judge=JudgeCard("pairwise", True, note="It does not agree.")))
    parts = [principle("a", 0.9, -0.4, 0.001), principle("b", 0.1, 0.0, 1.0, 0.5), principle("c", 0.1, 0.0, 1.0, 0.0)]
    results = (*parts[0], *parts[1], *parts[2], *principle("d", 0.1, 0.5, 0.001))
    found = next_steps(replace(weak, evaluation=results))
    assert len(found) == MOST_STEPS and "judge that was not shown to agree with people" in found[0].text


def test_costs_are_summed_and_the_longest_stage_named(data: ReportData) -> None:
    stages = [
        StageEntry("respond", "done", "f", seconds=30.0, calls_made=5, calls_reused=2, completion_tokens=1200, cost=0.25),
        StageEntry("sft", "done", "f", seconds=90.0, calls_made=1),
    ]
    told = costs_in_words(replace(data, manifest=Manifest("run", stages=stages)))
    assert told == (
        "2 min 0 s, 6 model calls, 2 more reused, 1,200 tokens written, 0.25 US dollars. The longest stage was sft (75% of the time)."
    )
    assert costs_in_words(replace(data, manifest=Manifest("run"))) == ""
