"""Text, table rows and plots of a comparison, for `comparison.html.j2`."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cai.constitution.diff import WordOp, word_diff
from cai.evaluate.policies import MODELS, place_of
from cai.records import EvalResult
from cai.report.comparison import PairedTest, RunComparison
from cai.report.formatting import interval, is_fraction, number, p_words, percent, plural, points, quantity, signed
from cai.report.plots import PlotRow, rows_plot
from cai.report.sections import name_of
from cai.report.verdict import Tone

BETTER = {
    "harmful_compliance": "lower",
    "harmful_compliance_by_judge": "lower",
    "over_refusal": "lower",
    "repetition": "lower",
    "looping": "lower",
    "win_rate_by_judge": "higher",
    "reward": "higher",
}
"""The better direction of each measure; other measures have none."""
PLOTTED = (
    "harmful_compliance",
    "over_refusal",
    "harmful_compliance_by_judge",
    "win_rate_by_judge",
    "win_rate_by_reward",
    "response_words",
    "reward_accuracy",
    "judge_agreement",
    "looping",
)


@dataclass(frozen=True)
class PairedRow:
    """One paired test, formatted for the table."""

    test: PairedTest
    measure: str
    before: str
    after: str
    change: str
    interval: str
    p: str
    tone: Tone


@dataclass(frozen=True)
class ChangedText:
    """Word diff of one field of a principle."""

    field: str
    words: tuple[tuple[WordOp, str], ...]


@dataclass(frozen=True)
class ChangedPrinciple:
    """Change of one principle."""

    kind: str
    id: str
    fields: tuple[ChangedText, ...]


def headline(c: RunComparison) -> str:
    """Summarise the comparison in a sentence."""
    settings = (
        plural(len(c.settings), "setting") + (" differs" if len(c.settings) == 1 else " differ") if c.settings else "No setting differs"
    )
    if not c.tests:
        return f"{settings}, and there are no common prompts for a paired test."
    shown = sum(t.shown for t in c.tests)
    difference = "no difference was shown" if not shown else f"{plural(shown, 'difference')} {'was' if shown == 1 else 'were'} shown"
    return f"{settings}; in {plural(len(c.tests), 'paired test')}, {difference}."


def sentences(c: RunComparison) -> list[str]:
    """Return one sentence per significant difference, then the caveats."""
    rows = [(row, t) for row in paired_rows(c.tests) if (t := row.test).shown]
    worth = {"good": "better", "bad": "worse"}
    lines = [
        f"{t.run}, {t.model}: {row.measure.lower()}, {row.before} → {row.after}, {worth.get(row.tone, 'neither better nor worse')} "
        f"(change {row.change}, 95% interval {row.interval}, n = {t.n}, p = {row.p} after correction)."
        for row, t in rows
    ]
    if c.tests and len(rows) < len(c.tests):
        lines.append("A difference that was not shown may still exist: see the intervals and the number of prompts.")
    return [*lines, *c.notes]


def paired_rows(tests: Sequence[PairedTest]) -> list[PairedRow]:
    """Return all tests as table rows, by p-value."""
    return [_paired_row(t) for t in sorted(tests, key=lambda t: (t.p_adjusted, t.p))]


def constitution_changes(c: RunComparison) -> list[tuple[str, list[ChangedPrinciple], int]]:
    """Return, for each run with a different constitution: its name, its changed principles, and its number of unchanged ones."""
    found = []
    for run, diff in zip(c.runs[1:], c.constitutions, strict=True):
        if diff is not None:
            changed = [
                ChangedPrinciple(p.kind, p.id, tuple(ChangedText(f.field, tuple(word_diff(f.before, f.after))) for f in p.fields))
                for p in diff.principles
            ]
            found.append((run, changed, diff.unchanged))
    return found


def figure_rows(c: RunComparison) -> list[tuple[str, str, list[str]]]:
    """Return all figures: measure, model, and value, interval and n of each run."""
    return [(name_of(f.name), f.model, ["–" if r is None else _figure(r) for r in f.results]) for f in c.figures]


def figure_plots(c: RunComparison) -> list[Markup]:
    """Plot the main measures, grouped by model, with one row per run."""
    plots = []
    for name in PLOTTED:
        figures = sorted((f for f in c.figures if f.name == name), key=lambda f: place_of(f.model))
        rows = [
            PlotRow(f"{run}: {f.model}", r.value, r.low, r.high, f"n = {r.n}", f.model if f.model in MODELS else "policy")
            for f in figures
            for run, r in zip(c.runs, f.results, strict=True)
            if r is not None
        ]
        if rows:
            half = name in ("win_rate_by_judge", "win_rate_by_reward", "judge_agreement", "reward_accuracy")
            caption = {"lower": "Lower is better.", "higher": "Higher is better."}.get(BETTER.get(name, ""), "")
            reference = {"reference": 0.5, "reference_label": "no preference" if name.startswith("win") else "a coin"} if half else {}
            plots.append(rows_plot(name_of(name), rows, fraction=is_fraction(name), bars=not half, caption=caption, **reference))  # type: ignore[arg-type]
    return plots


def _figure(r: EvalResult) -> str:
    return f"{quantity(r.value, r.name)} ({interval(r)}), n = {r.n:,}"


def _paired_row(t: PairedTest) -> PairedRow:
    share = is_fraction(t.name)
    level = percent if share else number
    moved = (lambda x: f"{points(x)} points") if share else signed
    better = BETTER.get(t.name)
    tone: Tone = "unclear" if not t.shown or better is None else "good" if (t.change < 0) == (better == "lower") else "bad"
    span = f"{points(t.low)} to {points(t.high)}" if share else f"{signed(t.low)} to {signed(t.high)}"
    return PairedRow(t, name_of(t.name), level(t.before), level(t.after), moved(t.change), span, p_words(t.p_adjusted), tone)
