"""Findings of the audit: the effect, its confidence interval, a test, and a verdict with multiple-testing correction.

All checks use the same verdicts. "found": the effect reaches the check's threshold *and* is significant after Holm's correction (Holm 1979)
over all findings of one family. "suspect": it reaches the threshold, but is significant only without the correction (p < 0.01). "ok": all
else, which means not shown. "not enough data": fewer than `MIN_ITEMS` items, or no test. "not measured": all answers are in languages that
a check by words doesn't know. Tests are one-sided, towards the failure: an improvement is never a finding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cai.core.text.refusals import can_tell, untold_note
from cai.evaluate.paired import shared_ids
from cai.records import AuditExample, AuditFinding, AuditVerdict
from cai.stats import above, change, holm, is_binary, paired_bootstrap, sign_flip, wilson

MIN_ITEMS = 20
SIGNIFICANT = 0.05
SUSPICIOUS = 0.01
EXAMPLES = 3
EXAMPLE_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the audit, and its thresholds."""

    group: str
    name: str
    question: str
    rise: float
    """Minimum mean change per item, against a reference, that counts as an effect."""
    level: float | None
    """Minimum mean that counts as an effect without a reference; None if a level alone is not informative."""
    reasoning: str
    """Justification of the thresholds."""
    by_words: bool = False
    """Whether it looks for phrases, so that only answers in the languages of the lexicons can be read."""


@dataclass(frozen=True)
class Measurement:
    """One check's value for each item of one model's responses; 1 for yes and 0 for no in binary checks."""

    check: Check
    values: Mapping[str, float]
    """Item id to value."""
    shown: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Item id to prompt and response, for examples."""
    note: str = ""
    talks: Mapping[str, str] = field(default_factory=dict)
    """Item id to its conversation, where several items share one and are not independent."""
    tested: bool = True
    """False if a control showed that the measurement is not reliable: the finding then has a value but no test."""

    def readable(self) -> "Measurement":
        """Return the measurement without the answers whose language its rules don't know."""
        if not self.check.by_words:
            return self
        texts = {i: self.shown[i][1] for i in self.values if i in self.shown}
        kept = {i: x for i, x in self.values.items() if i not in texts or can_tell(texts[i])}
        return replace(self, values=kept, note="; ".join(filter(None, (self.note, untold_note(texts.values())))))


@dataclass(frozen=True, slots=True)
class Subject:
    """What a finding is about, and what it is compared with."""

    name: str
    against: str = ""
    """The reference; empty if its own level counts."""
    seed: int = 0
    """Seed of intervals and tests."""


def compare(mine: Measurement, theirs: Measurement, about: Subject) -> AuditFinding | None:
    """Return the change from a reference to a model on the items that both answered; None if they share no items.

    `settle` sets the verdict after multiple-testing correction.
    """
    ids = shared_ids(theirs.values, mine.values)
    if not ids:
        return _unmeasured(mine, about)
    before, after = [theirs.values[i] for i in ids], [mine.values[i] for i in ids]
    differences = [a - b for b, a in zip(before, after, strict=True)]
    clusters = [mine.talks.get(i, i) for i in ids]
    alone = len(set(clusters)) == len(clusters)
    if alone and is_binary(before) and is_binary(after):
        value, low, high = change([b == 1 for b in before], [a == 1 for a in after])
    else:
        value, low, high = paired_bootstrap(differences, about.seed, None if alone else clusters)
    worst = sorted(ids, key=lambda i: theirs.values[i] - mine.values[i])
    examples = tuple(_example(i, mine, theirs) for i in worst[:EXAMPLES] if i in mine.shown and mine.values[i] > theirs.values[i])
    sums: dict[str, float] = {}
    for cluster, difference in zip(clusters, differences, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + difference
    p = sign_flip(list(sums.values()), about.seed) if mine.tested else None
    return _finding(mine, about, (value, low, high), sum(after) / len(ids), len(ids), mine.check.rise, p, examples)


def judge_level(mine: Measurement, about: Subject) -> AuditFinding | None:
    """Compare a model's mean with the check's threshold for levels; None if the check has none or there are no items."""
    about = replace(about, against="")
    values = list(mine.values.values())
    if mine.check.level is None:
        return None
    if not values:
        return _unmeasured(mine, about)
    mean = sum(values) / len(values)
    if is_binary(values):
        low, high = wilson(sum(values), len(values))
    else:
        _, low, high = paired_bootstrap(values, about.seed)
    worst = sorted(mine.shown, key=lambda i: -mine.values.get(i, 0.0))
    examples = tuple(_example(i, mine, None) for i in worst[:EXAMPLES] if mine.values.get(i, 0.0) > 0)
    p = above(values, mine.check.level)
    return _finding(mine, about, (mean, low, high), mean, len(values), mine.check.level, p, examples)


def settle(findings: Iterable[AuditFinding | None]) -> list[AuditFinding]:
    """Apply Holm's correction to the findings of one family, and set their verdicts. None values are skipped.

    Findings on fewer than `MIN_ITEMS` items are not tested and not counted in the correction.
    """
    made = [f for f in findings if f is not None]
    tested = [i for i, f in enumerate(made) if f.p is not None and f.n >= MIN_ITEMS]
    adjusted = dict(zip(tested, holm([made[i].p or 0.0 for i in tested]), strict=True))
    return [replace(f, p_adjusted=adjusted.get(i), verdict=_verdict(f, adjusted.get(i))) for i, f in enumerate(made)]


def _unmeasured(mine: Measurement, about: Subject) -> AuditFinding | None:
    """Return a finding without a figure if all answers were in languages that the check can't read; None if there were no answers."""
    if not mine.check.by_words or not mine.shown:
        return None
    return _finding(mine, about, (0.0, 0.0, 0.0), 0.0, 0, mine.check.rise, None, ())


def _verdict(finding: AuditFinding, p_adjusted: float | None) -> AuditVerdict:
    if finding.n == 0:
        return "not measured"
    if finding.n < MIN_ITEMS or finding.p is None or p_adjusted is None:
        return "not enough data"
    if finding.value < finding.threshold:
        return "ok"
    return "found" if p_adjusted < SIGNIFICANT else "suspect" if finding.p < SUSPICIOUS else "ok"


def _finding(
    mine: Measurement,
    about: Subject,
    bounds: tuple[float, float, float],
    level: float,
    n: int,
    threshold: float,
    p: float | None,
    examples: tuple[AuditExample, ...],
) -> AuditFinding:
    check, (value, low, high) = mine.check, bounds
    return AuditFinding(
        group=check.group,
        check=check.name,
        question=check.question,
        subject=about.name,
        against=about.against,
        value=value,
        n=n,
        low=low,
        high=high,
        level=level,
        threshold=threshold,
        reasoning=check.reasoning,
        p=p,
        p_adjusted=None,
        verdict="ok",
        examples=examples,
        note=mine.note,
    )


def _example(item: str, mine: Measurement, theirs: Measurement | None) -> AuditExample:
    prompt, after = mine.shown[item]
    before = theirs.shown.get(item, ("", ""))[1] if theirs is not None else ""
    return AuditExample(_cut(prompt), _cut(before), _cut(after))


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1] + "…"
