"""The reward models' part of the report: members beside the ensemble, buckets, calibration, and what is disputed."""

import re
from pathlib import Path

import pytest

from cai.core.jsonl import write_records
from cai.report.collect import Curve, Dispute, collect_report
from cai.report.page import render_report
from cai.report.rewards import dispute_plots, measure_rows, reward_curves, reward_plots
from cai.train.reward.metrics import LENGTH_BUCKETS, measure_scores
from tests.report.run_directory import scored_pairs, write_run


def titles(plots: list[str]) -> list[str]:
    return [re.findall("<figcaption><b>(.*?)</b>", str(p))[0] for p in plots]


def test_members_and_ensemble_are_shown_on_every_bucket(tmp_path: Path) -> None:
    data = collect_report(write_run(tmp_path))
    plots = reward_plots(data)
    # no group of lengths has ten pairs: these are in the table only
    assert titles(plots)[:4] == [
        "Held-out accuracy of the reward model",
        "Accuracy by label source",
        "Accuracy by kind of prompt",
        "Reliability",
    ]
    rows = measure_rows(data)
    models = ("ensemble", "reward-0", "reward-1", "reward-2")
    assert [(r.model, r.n) for r in rows if r.group == "all held-out pairs"] == [(m, 30) for m in models]
    by_length = [r.n for r in rows if r.model == "ensemble" and r.group in {name for _, name in LENGTH_BUCKETS}]
    assert len(by_length) == 4 and sum(by_length) == 30
    page = render_report(data)
    assert "All models on all groups of held-out pairs" in page and "Overconfidence" in page


def test_accuracy_is_shown_by_disagreement_on_held_out_pairs_only() -> None:
    disputes = [Dispute(i / 10, i < 6, f"p{i}") for i in range(9)] + [Dispute(5.0, None, "p")]
    rows, spread = dispute_plots(disputes)
    assert "least disagreement: 100%" in rows and "middle third: 100%" in rows and "most disagreement: 0%" in rows
    assert "Over 10 preferences" in spread and "n = 3" in rows
    [only] = dispute_plots(disputes[:5])
    assert "Disagreement about pairs" in only
    assert dispute_plots([Dispute(0.0, True, "p")] * 20) == [], "one member never disagrees"


def test_a_single_model_has_no_disagreement_and_keeps_its_name(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    alone = [p for p in scored_pairs() if p.held_out]
    write_records(run / "data" / "reward_measures.jsonl", measure_scores(alone, ("reward-0",)))
    (run / "data" / "reward_scores.jsonl").unlink()
    data = collect_report(run)
    assert {r.model for r in measure_rows(data)} == {"reward-0"}
    assert not any("isagreement" in t for t in titles(reward_plots(data)))


def test_every_member_has_a_line_of_its_own(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    steps = [{"stage": "reward", "member": f"reward-{m}", "step": s, "loss": 1 / (s + m)} for m in range(2) for s in (1, 2, 3)]
    write_records(run / "metrics.jsonl", steps)
    curves = [c for c in collect_report(run).curves if c.stage == "reward"]
    assert [(c.member, c.metric, len(c.points)) for c in curves] == [("reward-0", "loss", 3), ("reward-1", "loss", 3)]
    [plot] = reward_curves(curves)
    assert "reward-0: 1 at first" in plot and "reward-1: 0.5 at first" in plot


@pytest.mark.parametrize("name", ["reward_measures", "reward_scores"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path)
    (run / "data" / f"{name}.jsonl").write_text("{}\n")
    data = collect_report(run)
    assert any(f"{name}.jsonl:1" in p for p in data.problems)
    assert reward_curves([Curve("sft", "loss", ((1.0, 2.0),))]) == []
    assert render_report(data)
