"""Terminal output of the workbench. Texts are printed literally, without markup."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cai.constitution.diff import ConstitutionDiff, FieldChange, PrincipleChange, word_diff
from cai.core.console import plain, plain_table
from cai.core.flow import in_words
from cai.workbench.consequences import Consequences, LabelShift, RevisionChange
from cai.workbench.learning import LEVEL, Learned
from cai.workbench.sample import Calls
from cai.workbench.trial import Answered, Revised, Step
from cai.workbench.validation import Validation

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "renamed": ("=", "yellow"), "edited": ("~", "yellow")}
WORDS = {"same": "", "removed": "red strike", "added": "green bold"}


def show_diff(diff: ConstitutionDiff, colour: bool) -> Iterator["RenderableType"]:
    """Yield a word diff of every changed principle; without colour, changes are marked with brackets."""
    if diff.is_empty:
        yield plain("No difference.", "green")
        return
    for change in diff.header:
        yield _field(change, colour)
    for principle in diff.principles:
        sign, style = SIGNS[principle.kind]
        yield plain(f"{sign} {principle.id}  {principle.kind}", f"bold {style}")
        for change in _worth_showing(principle):
            yield _field(change, colour)
        if principle.outdated:
            yield plain(
                f"    {', '.join(principle.outdated)}: written for the old statement. Reword them, or leave them out: the statement is "
                "part of every request and question",
                "yellow",
            )
    counts = [f"{n} {kind}" for kind in SIGNS if (n := sum(p.kind == kind for p in diff.principles))]
    yield plain(f"{', '.join([*counts, f'{diff.unchanged} as before'])}{'; in another order' if diff.reordered else ''}")


def show_consequences(found: Consequences, colour: bool, limit: int) -> Iterator["RenderableType"]:
    """Yield the changes on a sample: rates, causes, the largest label changes, and word diffs of revisions."""
    if found.revisions:
        n, changed = found.revisions, len(found.revision_changes)
        span = _span(found.revision_low, found.revision_high)
        yield plain(f"\nrevisions: {changed} of {n} changed, {found.revision_rate:.0%} {span}", "bold")
        yield plain(f"n: the {n} of {found.prompts} sampled prompts that draw a changed principle", "dim")
    if found.no_revisions:
        yield plain(f"revisions: none can change: {found.no_revisions}", "yellow")
    if found.no_labels:
        yield plain(f"labels: none can change: {found.no_labels}", "yellow")
    elif found.labels is None:
        yield plain("labels: no pair to label", "yellow")
    else:
        yield from _label_tables(found.labels, found, limit)
    for revision in found.revision_changes[:limit]:
        yield from _revision(revision, colour)
    if (left := len(found.revision_changes) - limit) > 0:
        yield plain(f"… and {left} more changed revisions (--show, or --json for all)")
    if found.uncovered:
        yield plain(f"{found.uncovered} prompts left out: one of the two has no principle for their kind", "yellow")
    if found.failures:
        yield plain(f"{len(found.failures)} items failed: {in_words(found.failures)}", "yellow")
    yield plain("\ncalls  " + " · ".join(f"{name}: {_calls(c)}" for name, c in found.calls.items()))


def show_step(step: Step) -> Iterator["RenderableType"]:
    """Yield the output of one step: response, revision or judgment."""
    if isinstance(step, Answered):
        yield _titled("response", step.text)
    elif isinstance(step, Revised):
        yield plain(f"\n{step.principle.id}", "bold magenta")
        yield plain(step.principle.statement, "italic")
        yield _titled("critique", step.critique)
        yield _titled("revision", step.revision)
        if step.dropped:
            yield plain(f"not to be imitated: {step.dropped}", "yellow")
    elif step.p_revised is None:
        yield plain(f"\nthe judge ({step.protocol}) gave no verdict: {step.failure}", "yellow")
    else:
        verdict = "the revision" if step.p_revised > 0.5 else "the response" if step.p_revised < 0.5 else "neither"
        yield plain(f"\njudge ({step.protocol}): {step.p_revised:.1%} that the revision is better, so {verdict}", "bold")
        if step.calibration:
            yield plain(step.calibration, "dim")
        if len(step.opinions) > 1:
            table = plain_table("under", "revision better", right=("revision better",))
            for opinion in step.opinions:
                table.add_row(plain(opinion.principle_id), f"{opinion.p_revised:.1%}")
            yield table


def show_validation(found: Validation) -> Iterator["RenderableType"]:
    """Yield each principle's agreement with people, and the constitution compared with the trivial rules."""
    numbers = ("agrees, 95 %", "n", "strength", "decides", "without it")
    table = plain_table("principle", *numbers, right=numbers, title=f"{found.pairs} pairs, judged by {found.protocol}")
    for r in found.principles:
        without = "" if r.without is None else f"{100 * r.without:+.0f} {_points(r.without_low, r.without_high)}"
        agrees = f"{r.agreement:.0%} {_span(r.low, r.high)}"
        table.add_row(plain(r.principle_id), agrees, str(r.n), f"{r.mean_log_odds:.2f}", str(r.decisive), without)
    yield table
    yield plain(
        "strength: mean |log-odds|. decides: labels that would have another side without it. without it: points of accuracy that the "
        "pooled label gains, over the n pairs. Of 20 principles, one interval misses the truth by chance."
    )
    columns = ("agrees", "95 %", "nats per pair", "explains")
    whole = plain_table("", *columns, right=columns, title="how much of what people preferred is explained")
    for e in (found.pooled, *found.rules):
        nats = f"{e.nats:.3f} [{e.nats_low:.3f}, {e.nats_high:.3f}]"
        whole.add_row(plain(e.name), f"{e.accuracy:.1%}", _span(e.low, e.high), nats, f"{e.explained:.1%}")
    yield whole
    raw = "" if found.pooled.raw_nats is None else f" As they stand, the probabilities have {found.pooled.raw_nats:.3f} nats."
    yield plain(f"Nats after a scale fitted on other prompts, five-fold; a coin has -0.693.{raw}")
    span = _points(found.accuracy_gain_low, found.accuracy_gain_high)
    gain = f"against the best trivial rule: {100 * found.accuracy_gain:+.0f} points {span}"
    nats = f"{found.nats_gain:+.3f} nats [{found.nats_gain_low:+.3f}, {found.nats_gain_high:+.3f}]"
    beats = found.accuracy_gain_low > 0
    yield plain(f"{gain}, {nats}: {'better' if beats else 'not shown to be better'}", "green" if beats else "yellow")
    if found.skipped:
        yield plain(f"{found.skipped} pairs left out: people didn't decide them", "yellow")
    if found.failures:
        yield plain(f"{len(found.failures)} pairs failed: {in_words(found.failures)}", "yellow")
    yield plain(f"calls: {_calls(found.calls)}")


def show_learned(found: Learned) -> Iterator["RenderableType"]:
    """Yield the rules that were learned from pairs, how each agrees with people on other pairs, and whether any beats the trivial rules."""
    measured = [c for c in found.candidates if c.p is not None]
    numbers = ("gave it", "agrees, 95 %", "gain", "p")
    table = plain_table("", "rule", *numbers, right=numbers, title=f"{found.held_out} held-out pairs, judged by {found.protocol}")
    for c in measured:
        agrees = f"{c.agreement:.0%} {_span(c.low or 0.0, c.high or 0.0)}"
        table.add_row("✓" if c.chosen else "", plain(c.statement), str(c.gave), agrees, f"{100 * (c.gain or 0.0):+.0f}", f"{c.p:.2g}")
    yield table
    rules = ", ".join(f"{b.name} {b.agreement:.0%}" for b in found.baselines)
    yield plain(
        f"gave it: of the {found.shown} pairs that {found.model} was shown. gain: points above the best trivial rule ({rules}). "
        f"p: one-sided, corrected for {len(measured)} rules (Holm)."
    )
    if left := len(found.candidates) - len(measured):
        yield plain(f"{left} more rules, of fewer pairs, were not measured (--json lists them).")
    if found.skipped:
        yield plain(f"{found.skipped} pairs left out: people didn't decide them", "yellow")
    if found.failures:
        yield plain(f"{len(found.failures)} pairs failed: {in_words(found.failures)}", "yellow")
    if found.beating:
        yield plain(f"{found.beating} of {len(measured)} rules agree with people more than the best trivial rule does.", "green")
    else:
        yield plain(
            f"No rule is shown to agree with people more than the best trivial rule does (p < {LEVEL:g}), so nothing is written. A larger "
            "model may find and judge better rules (--model, --judge), and more pairs tell rules apart better (--limit).",
            "yellow",
        )
    yield plain(f"calls: {_calls(found.calls)}")


def _worth_showing(principle: PrincipleChange) -> Sequence[FieldChange]:
    """Return the fields to show; for an added or removed principle, only the statement."""
    whole = principle.kind in ("added", "removed")
    return [c for c in principle.fields if c.field == "statement"] if whole else principle.fields


def _field(change: FieldChange, colour: bool) -> "RenderableType":
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text.assemble(plain(f"{change.field}: ", "dim"), _words(change.before, change.after, colour)), (0, 0, 0, 4))


def _words(before: str, after: str, colour: bool) -> "Text":
    """Return a word diff as one text; without colour, marked as [-removed-] and {+added+}."""
    from rich.text import Text

    marks = dict.fromkeys(WORDS, "{}") if colour else {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
    line = Text()
    last = "same"
    for op, text in word_diff(before, after):
        line.append(" " if (last, op) == ("removed", "added") else "").append_text(plain(marks[op].format(text), WORDS[op]))
        last = op
    return line


def _label_tables(total: LabelShift, found: Consequences, limit: int) -> Iterator["RenderableType"]:
    columns = ("n", "changed", "flipped, 95 %", "mean |Δp|, 95 %")
    table = plain_table("labels", *columns, right=columns)
    for shift in (total, *(found.causes if len(found.causes) > 1 else ())):
        name = "all changes" if shift is total else f"only {shift.cause}"
        flips = f"{shift.flipped}: {shift.flip_rate:.0%} {_span(shift.flip_low, shift.flip_high)}"
        moved_by = f"{shift.mean_shift:.3f} [{shift.shift_low:.3f}, {shift.shift_high:.3f}]"
        table.add_row(plain(name), str(shift.n), str(shift.changed), flips, moved_by)
    yield table
    if not found.label_changes:
        return
    moved = plain_table("before", "after", "", "prompt", right=("before", "after"))
    for label in found.label_changes[:limit]:
        flip = "flipped" if label.flipped else ""
        moved.add_row(f"{label.before:.1%}", f"{label.after:.1%}", flip, plain(_short(label.pair.prompt.messages[-1].content)))
    yield moved
    yield plain(f"probability that response A is better; the {min(limit, len(found.label_changes))} that moved furthest, flips first")


def _revision(change: RevisionChange, colour: bool) -> Iterator["RenderableType"]:
    yield plain(f"\n{_short(change.prompt.messages[-1].content)}", "bold")
    drawn = [" → ".join(ids) or "none" for ids in (change.principles_before, change.principles_after)]
    yield plain(f"under {drawn[0]}" if drawn[0] == drawn[1] else f"under {drawn[0]}, then {drawn[1]}", "dim")
    if change.dropped_before != change.dropped_after:
        yield plain(f"kept for training: {_kept(change.dropped_before)}, then {_kept(change.dropped_after)}", "yellow")
    yield _words(change.before, change.after, colour)


def _kept(dropped: str | None) -> str:
    return "yes" if dropped is None else f"no ({dropped})"


def _titled(title: str, text: str) -> "RenderableType":
    from rich.panel import Panel

    return Panel(plain(text or "(empty)"), title=title, title_align="left", border_style="dim")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:89] + "…"


def _span(low: float, high: float) -> str:
    return f"[{100 * low:.0f}, {100 * high:.0f}]"


def _points(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{100 * low:+.0f}, {100 * high:+.0f}]"


def _calls(calls: Calls) -> str:
    return f"{calls.made} made, {calls.reused} reused"
