"""Plots: well-formed, in proportion, described in words, and calm about odd numbers."""

import doctest
import math
import re
from xml.etree import ElementTree

import pytest

import cai.report.audit_view
import cai.report.formatting
import cai.report.sections
from cai.report.plots import PlotRow, Series, histogram, line_plot, rows_plot


def bar_widths(figure: str) -> list[float]:
    return [float(w) for w in re.findall(r'class="bar[^>]*width="([\d.]+)%', figure)]


def test_doctests_hold() -> None:
    for module in (cai.report.audit_view, cai.report.formatting, cai.report.sections):
        tried = doctest.testmod(module)
        assert tried.attempted > 0
        assert tried.failed == 0


def test_bars_are_in_proportion_and_whiskers_where_they_belong() -> None:
    figure = rows_plot("Share", [PlotRow("a", 0.25, 0.1, 0.5), PlotRow("b", 0.75)])
    assert bar_widths(figure) == [25.0, 75.0]
    assert 'x1="10%" x2="50%"' in figure
    assert "<desc>a: 25% (10% to 50%); b: 75%</desc>" in figure


def test_bars_of_both_signs_start_at_zero() -> None:
    figure = rows_plot("Reward", [PlotRow("a", -1.0), PlotRow("b", 1.0)], fraction=False)
    found = re.findall(r'class="bar[^>]*x="([\d.]+)%"[^>]*width="([\d.]+)%', figure)
    assert [(float(x), float(w)) for x, w in found] == [(0.0, 50.0), (50.0, 50.0)]


def test_histogram_is_in_proportion() -> None:
    figure = histogram("Labels", [0, 5, 10], 0, 1, "p")
    heights = [float(h) for h in re.findall(r'class="bar[^>]*height="([\d.]+)"', figure)]
    assert heights[0] == 0
    assert heights[2] == pytest.approx(2 * heights[1])


def test_axis_labels_tell_their_ticks_apart_and_steps_are_whole() -> None:
    figure = line_plot("Loss", [Series("policy", [(1, 0.69310), (2, 0.69318)])], "step")
    labels = re.findall(r'class="tick"[^>]*>([^<]+)<', figure)
    assert len(labels) == len(set(labels))
    assert labels[-2:] == ["1", "2"]


def test_an_axis_is_never_zoomed_to_the_last_digits() -> None:
    figure = line_plot("Loss", [Series("policy", [(1, 0.69312), (2, 0.69318), (3, 0.69314)])], "step")
    labels = [float(t) for t in re.findall(r'class="tick"[^>]*>([^<]+)<', figure)]
    vertical = labels[: labels.index(1.0)]
    assert max(vertical) - min(vertical) >= 0.02 * 0.6931
    line = re.findall(r'points="([^"]+)"', figure)[0]
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert max(heights) - min(heights) < 2


def test_values_that_are_not_finite_are_left_out_and_said_to_be() -> None:
    figure = line_plot("Loss", [Series("sft", [(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)])], "step")
    assert "2 non-finite values are left out" in figure
    assert "nan" not in figure.replace("<title>", "")
    assert "No finite values" in line_plot("Loss", [Series("sft", [(1, math.nan)])], "step")


@pytest.mark.parametrize(
    "figure",
    [
        rows_plot("<b>&", [PlotRow('</svg>"<', 0.0, 0.0, 0.0)], reference=0.5, reference_label="<i>", caption="&"),
        rows_plot("All alike", [PlotRow("a", 0.0), PlotRow("b", 0.0)], fraction=False),
        rows_plot("Far apart", [PlotRow("a", 1e-9), PlotRow("b", 1e12)], fraction=False),
        rows_plot("Only below", [PlotRow("a", -3.0, -4.0, -2.0)], fraction=False, bars=False),
        histogram("None", [0, 0], 0, 1, "p"),
        line_plot("One point", [Series("a", [(7, 3.0)])], "step"),
        line_plot("Flat", [Series("a", [(1, 3.0), (2, 3.0)]), Series("<b>", [(1, 4.0), (2, 3.0)])], "step"),
        line_plot("Long", [Series("a", [(i, math.sin(i)) for i in range(5000)])], "step"),
    ],
)
def test_every_plot_is_well_formed_and_within_its_frame(figure: str) -> None:
    root = ElementTree.fromstring(figure)  # noqa: S314 - our own output
    assert root.find("svg/title") is not None
    assert root.find("svg/desc") is not None
    for element in root.iter():
        for name in ("x", "x1", "x2", "cx", "width"):
            value = element.get(name, "")
            if value.endswith("%"):
                assert 0 <= float(value[:-1]) <= 100
    assert len(figure) < 30_000
