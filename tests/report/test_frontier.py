"""The over-optimization plots: what is drawn, in what units, and what is said of it."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cai.core.jsonl import write_records
from cai.recipe import MonitorConfig
from cai.records import MonitorPoint
from cai.report.collect import collect_report
from cai.report.frontier import along_the_way, frontier_plot, frontier_words
from cai.report.page import render_report
from cai.train.monitor import Items, Monitor, Scores
from tests.report.run_directory import write_run
from tests.train.builders import prompt

CURVE = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4.0, 2.0, 0.5), (9.0, 3.0, -1.0)]
"""KL, and mean change of proxy and gold."""


def observed(path: Path, disagreement: bool = True) -> list[MonitorPoint]:
    """What a watch makes of the curve: four prompts whose scores start at −1, −1, 1 and 1."""
    starts, now = (-1.0, -1.0, 1.0, 1.0), [0.0, 0.0]

    def proxy(items: Items) -> Scores:
        return Scores([x + now[0] for x in starts], [0.2] * 4 if disagreement else [])

    config = MonitorConfig(action="warn", patience=1)
    watch = Monitor([prompt(i) for i in range(4)], config, proxy, lambda items: [x + now[1] for x in starts], path)
    for step, (kl, *now[:]) in enumerate(CURVE):
        watch.observe(10 * step, kl, ["some words here"] * 4)
    return watch.points


@pytest.fixture
def points(tmp_path: Path) -> list[MonitorPoint]:
    return observed(tmp_path / "models" / "policy" / "frontier.jsonl")


def test_rewards_are_drawn_as_changes_over_the_root_of_kl(points: list[MonitorPoint]) -> None:
    figure = frontier_plot({"": points})
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.S).group())  # type: ignore[union-attr]  # noqa: S314
    lines = [e.get("points", "") for e in svg.iter() if e.tag == "polyline"]
    assert [[float(p.split(",")[0]) for p in line.split()] for line in lines] == [pytest.approx([0, 100 / 3, 200 / 3, 100], abs=0.01)] * 2
    proxy, gold = ([float(p.split(",")[1]) for p in line.split()] for line in lines)
    assert proxy[0] == gold[0] and proxy == sorted(proxy, reverse=True) and gold[3] > gold[0] > gold[2] > gold[1], "down is up in SVG"
    assert sum(e.tag == "polygon" for e in svg.iter()) == 2
    assert "proxy: 0 at first, 3 at last; gold: 0 at first, −1 at last" in figure


def test_bands_hold_the_interval_of_the_change(tmp_path: Path) -> None:
    points = observed(tmp_path / "f.jsonl")
    figure = frontier_plot({"": points})
    edge = re.search(r'class="band policy" points="([^"]+)"', figure).group(1).split()  # type: ignore[union-attr]
    low, high = (float(p.split(",")[1]) for p in (edge[3], edge[4]))
    assert low == high, "every prompt changed alike, so nothing is uncertain"


def test_the_words_say_verdict_and_choice(points: list[MonitorPoint]) -> None:
    words = frontier_words(points)
    assert words.startswith("Over-optimized: at step 20 the monitor warned: gold changed by −0.5") and "Best by gold: step 10" in words
    assert "the monitor found no over-optimization" in frontier_words(points[:2]).lower()


def test_the_words_say_that_answers_vanished_though_gold_rose(points: list[MonitorPoint]) -> None:
    gone = replace(points[1], words=0.0, collapse="vanish", verdict="go")
    words = frontier_words([points[0], gone])
    assert words.startswith("The monitor did not warn, but at step 10 responses are almost empty: 0.0 words on average, 3.0 at the start.")
    assert "Best by gold without collapse: step 0" in words
    words = frontier_words([points[0], gone, replace(gone, step=20, verdict="stop")])
    assert words.startswith("Collapsed: at step 20 the monitor stopped training, because responses are almost empty")


def test_what_responses_are_like_is_drawn_too(points: list[MonitorPoint], tmp_path: Path) -> None:
    titles = [re.search(r"<b>(.*?)</b>", plot).group(1) for plot in along_the_way({"": points})]  # type: ignore[union-attr]
    assert titles == [
        "KL to the reference",
        "Words per response",
        "Refusals",
        "Repetition",
        "Diversity",
        "Disagreement of the reward models",
    ]
    single = observed(tmp_path / "single.jsonl", disagreement=False)
    assert len(along_the_way({"": single})) == 5
    assert len(along_the_way({"one": single, "several": points})) == 6


def test_the_report_of_a_watched_run_shows_it_and_that_of_another_does_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "Over-optimization" not in render_report(collect_report(run))
    write_records(run / "models" / "policy" / "frontier.jsonl", observed(tmp_path / "f.jsonl"))
    (run / "models" / "gold").mkdir()
    (run / "models" / "gold" / "metrics.json").write_text('{"accuracy": 0.61, "n": 100, "low": 0.51, "high": 0.7, "reliability": []}')
    page = render_report(collect_report(run))
    assert "Over-optimized: at step 20 the monitor warned" in page and "<h3>Over-optimization</h3>" in page
    assert "it ranks 61% of 100 held-out pairs as labelled (95 % interval 51% to 70%)" in page
