"""The bench's one table: every bench gives rows of one type, and what fails is named."""

import ast
from pathlib import Path

import pytest

from bench.__main__ import BENCHES, measured, show
from bench.growth import measure
from bench.table import Row, machine, row

ROOT = Path(__file__).parents[1]


def test_every_bench_has_rows() -> None:
    for name in BENCHES:
        tree = ast.parse((ROOT / "bench" / f"{name}.py").read_text(encoding="utf-8"))
        functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        assert [a.arg for a in functions["rows"].args.args] == ["quick"], name


def test_a_row_has_the_median_and_both_ends() -> None:
    found = row("b", "ours", "theirs", [3.0, 1.0, 2.5], note="said")
    assert (found.value, found.low, found.high, found.n, found.unit, found.note) == (2.5, 1.0, 3.0, 3, "×", "said")


def test_the_table_shows_the_machine_and_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    show(machine(), [row("b", "ours", "theirs", [2.0, 4.0], note="said"), Row("b", "alone", "", 7.0, 7.0, 7.0, 1, "s")])
    shown = capsys.readouterr().out
    assert "torch" in shown and "processor: " in shown and "flags: " in shown
    assert "theirs" in shown and "3 ×" in shown and "2 – 4" in shown and "said" in shown and "7 s" in shown and "7 – 7" not in shown


def test_a_bench_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found, fault = measured("no_such_bench", quick=True)
    assert found == [] and fault.startswith("no_such_bench: exit 1: ModuleNotFoundError")


def test_what_a_plan_counts_is_what_a_run_calls() -> None:
    rows = {r.what: r for r in measure(4)}
    assert len(rows) == 5 and rows["calls of 4 prompts"].value == 1
    tokens = rows.pop("twice the tokens a completion")
    assert all(r.value == 1 for r in rows.values()), rows
    assert tokens.value == pytest.approx(1, abs=0.1), "planned tokens are rounded, by stage"
