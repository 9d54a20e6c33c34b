"""Progress on a terminal and in a log, and texts that can't restyle either."""

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from cai.cli import app
from cai.core.console import Reporter, RichReporter, panel, plain, plain_table, printable
from tests.workspaces import ROOT


class Clock:
    """Stands for the module `time`: its seconds pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("cai.core.console.time", found)
    return found


def on(terminal: bool, width: int = 80) -> tuple[io.StringIO, Console]:
    out = io.StringIO()
    return out, Console(file=out, force_terminal=terminal, width=width, _environ={"TERM": "xterm"})


def test_control_characters_are_written_out() -> None:
    assert printable("plain [red]text[/red]\n\tü …") == "plain [red]text[/red]\n\tü …"
    assert printable("\x1b[2J\x07\r\x08\x9b0m\x7f") == "\\x1b[2J\\x07\\x0d\\x08\\x9b0m\\x7f"


@given(
    st.text(st.characters(), max_size=40)
    | st.lists(st.sampled_from(["\x1b[2J", "\x9b", "\u202e", "\ud800", "[red]", "ü", "\r"])).map("".join)
)
def test_no_text_gets_to_a_terminal_as_anything_but_text(text: str) -> None:
    out, console = on(terminal=True)
    console.print(plain(text), panel(text, text, "red"))
    table = plain_table("a", title=text)
    table.add_row(plain(text))
    console.print(table)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())  # rich's own colours
    assert shown.encode() and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


def test_half_a_surrogate_pair_and_turned_writing_are_written_out() -> None:
    assert printable("a\udcffb \u202eexe.png") == "a\\udcffb \\u202eexe.png"


def test_markup_in_texts_is_shown() -> None:
    out, console = on(terminal=True)
    reporter = RichReporter(console)
    reporter.say("[bold]a[/bold] \x1b[2J", "dim")
    reporter.warn("[red]b[/red] \x1b[2J")
    console.print(panel("[red]c[/red]", "[red]t[/red]", "red"), plain("[red]d[/red]"))
    with reporter.stage("evaluate"):
        reporter.progress(1, 2, "answers of [red]m[/red]\x1b[2J")
    text = out.getvalue()
    assert "\x1b[2J" not in text
    for part in ("[bold]a[/bold]", "[red]b[/red]", "[red]c[/red]", "[red]t[/red]", "[red]d[/red]", "answers of [red]m[/red]"):
        assert part in text


def test_a_log_gets_a_line_per_tenth_and_per_unit() -> None:
    out, console = on(terminal=False)
    reporter = RichReporter(console)
    with reporter.stage("critique"):
        reporter.progress(0, 100)
        for done in range(1, 101):
            reporter.call()
            reporter.progress(done, 100)
        reporter.progress(4, 4, "verdicts")
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["  critique: 10/100 items (10 calls)", "  critique: 20/100 items (20 calls)"]
    assert len(lines) == 11 and lines[-1].startswith("  critique: 4/4 verdicts, ")


def test_a_log_that_has_been_quiet_counts_calls_before_an_item_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    out, console = on(terminal=False)
    reporter = RichReporter(console)
    with reporter.stage("judge bench"):
        reporter.progress(0, 60, "pairs")
        for _ in range(3):
            reporter.call()
        assert not out.getvalue()
        monkeypatch.setattr("cai.core.console.QUIET_SECONDS", -1.0)
        reporter.call()
        reporter.progress(1, 60, "pairs")
    counts, first = out.getvalue().splitlines()
    assert counts == "  judge bench: 0/60 pairs (4 calls)" and first.startswith("  judge bench: 1/60 pairs (4 calls), ")


def test_what_was_done_before_a_kill_is_no_rate(clock: Clock) -> None:
    out, console = on(terminal=False)
    reporter = RichReporter(console)
    with reporter.stage("sft"):
        for step in (51, 52, 11):
            clock.now += 2.0
            reporter.progress(step, 102, "steps")
    first, second = out.getvalue().splitlines()
    assert first == "  sft: 51/102 steps, 0.5/s, 102 s left"
    assert second == "  sft: 11/102 steps, 0.5/s, 182 s left", "a second training is a new count"


def test_bars_fit_80_columns_and_vanish(clock: Clock) -> None:
    out, console = on(terminal=True)
    reporter = RichReporter(console)
    with reporter.stage("feedback"):
        reporter.progress(12345, 23456, "items")
        clock.now += 100.0  # a rate as people see them
        for _ in range(1000):
            reporter.call()
    text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", out.getvalue())
    assert "12345/23456 items" in text and " calls, " in text
    assert max(len(line) for line in re.split(r"[\r\n]", text)) <= 80
    assert out.getvalue().endswith("\x1b[1A\x1b[2K"), "the bar is taken away"


def test_progress_is_left_for_status_and_removed(tmp_path: Path) -> None:
    _, console = on(terminal=False)
    file = tmp_path / "progress.json"
    reporter = RichReporter(console, file)
    with reporter.stage("respond"):
        reporter.progress(3, 10)
        assert json.loads(file.read_text()) == {"stage": "respond", "done": 3, "total": 10, "unit": "items", "calls": 0}
    assert not file.exists()


def test_progress_that_cannot_be_saved_stops_nothing(tmp_path: Path) -> None:
    _, console = on(terminal=False)
    reporter = RichReporter(console, tmp_path / "none" / "progress.json")
    with reporter.stage("respond"):
        reporter.progress(3, 10)


def test_tables_fold_and_keep_their_first_column_whole() -> None:
    out, console = on(terminal=False, width=40)
    table = plain_table("name", "n", "text", right=("n",), title="[red]t[/red]")
    table.add_row("a-long-name-of-a-row", "7", "words " * 12)
    console.print(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 40 and "[red]t[/red]" in lines[0]
    assert any("a-long-name-of-a-row" in line for line in lines) and out.getvalue().count("words") == 12


def test_the_silent_reporter_says_nothing() -> None:
    reporter = Reporter()
    reporter.say("x")
    reporter.warn("x")
    reporter.call()
    with reporter.stage("x"):
        reporter.progress(1, None)


def test_loading_a_model_is_shown_in_place_of_a_bar_that_stands_still(tmp_path: Path, clock: Clock) -> None:
    out, console = on(terminal=True)
    file = tmp_path / "progress.json"
    reporter = RichReporter(console, file)
    with reporter.stage("respond"):
        assert "respond" in out.getvalue() and "starting" in out.getvalue()
        reporter.progress(0, 32)
        with reporter.loading("/models/qwen"):
            assert "loading qwen" in out.getvalue()
            assert json.loads(file.read_text())["loading"] == "loading qwen"
            clock.now += 100.0
        assert "loading" not in json.loads(file.read_text())
        clock.now += 10.0
        for _ in range(20):
            reporter.call()
    assert "20 calls, 2.0/s" in out.getvalue(), "loading takes no time of the calls"


def test_a_log_names_the_model_that_is_loaded() -> None:
    out, console = on(terminal=False)
    reporter = RichReporter(console)
    with reporter.stage("respond"), reporter.loading("embedded"):
        pass
    assert out.getvalue() == "  respond: loading embedded\n"


@pytest.mark.attack
def test_commands_print_names_of_files_without_their_controls(tmp_path: Path) -> None:
    out = tmp_path / "g\x1b[31m\u200f.md"
    done = CliRunner().invoke(app, ["constitution", "guidelines", str(ROOT / "constitution" / "general.yaml"), "-o", str(out)], color=True)
    assert done.exit_code == 0 and "\\x1b[31m\\u200f.md" in done.output and "\x1b" not in done.output


@pytest.mark.attack
def test_a_model_that_is_loading_is_named_without_controls() -> None:
    out, console = on(terminal=True)
    reporter = RichReporter(console)
    with reporter.stage("respond"), reporter.loading("models/x\x1b]0;title\x07"):
        pass
    assert "\x1b]0" not in out.getvalue() and "\\x1b]0;title" in out.getvalue()


def test_commands_print_through_one_function() -> None:
    found = {p.name: p.read_text().count("typer.echo(") for p in (ROOT / "cai" / "cli").glob("*.py")}
    assert {name: n for name, n in found.items() if n} == {"app.py": 2}
