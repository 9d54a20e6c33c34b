"""Results of labelling a queue: agreement in words and figures, each rater's leaning and speed, and the pairs that raters dispute."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from cai.core.jsonl import read_records
from cai.labels.agreement import gold_accuracy, people_agreement
from cai.labels.annotating import gold_answers
from cai.labels.pooling import ADJUDICATOR, pair_key
from cai.records import EvalResult, HumanLabel, Prompt, ResponsePair
from cai.studio.labelling import GOLD, Labelling, Queue, as_shown

_BREAK_SECONDS = 600.0
"""Time between two answers from which the rater is taken to have paused."""


@dataclass(frozen=True, slots=True)
class RaterRow:
    """One rater's answers."""

    name: str
    n: int
    first: float
    """Share of the answers that chose the side shown first, in [0, 1]. Sides are shuffled, so about one half is expected."""
    ties: float
    both_bad: float
    """Share of the answers that found neither response acceptable."""
    seconds: float | None
    """Median time per pair, without pauses."""
    checks: EvalResult | None
    """Accuracy on attention checks; None if the rater has answered none."""


@dataclass(frozen=True, slots=True)
class DisputedPair:
    """A pair on which raters differ, with its sides as the adjudicator sees them."""

    key: str
    pair: ResponsePair
    answers: tuple[tuple[str, str, str], ...]
    """Rater; A, B, tie or both bad, with `slightly` where the rater said so; and the rater's note."""
    decided: str
    """The adjudicator's answer; empty without one."""


@dataclass(frozen=True, slots=True)
class LabelResults:
    """What a queue's labels say so far."""

    raters: tuple[RaterRow, ...]
    agreement: tuple[EvalResult, ...]
    words: str
    shared: int
    """Number of pairs that several raters labelled."""
    disputed: tuple[DisputedPair, ...]
    noted: tuple[DisputedPair, ...]
    """Other pairs about which a rater left a note."""
    bad: tuple[Prompt, ...]
    """Prompts of pairs of which every rater says that neither response is acceptable: the model needs other answers to them."""
    files: tuple[str, ...]
    """Files of the answers, relative to the workspace."""


def label_results(labelling: Labelling, queue: Queue) -> LabelResults:
    """Collect the results of a queue. Raises `DataError` if its pairs or answers can't be read."""
    pairs = labelling.to_label(queue).pairs
    gold = gold_answers(labelling.folder / GOLD) if labelling.checks() is not None else {}
    paths = sorted(labelling.folder.glob(f"{queue.id}.*.jsonl"))
    labels = [label for path in paths for label in read_records(path, HumanLabel, torn_tail="drop")]
    by_rater: dict[str, list[HumanLabel]] = defaultdict(list)
    by_pair: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for label in labels:
        by_rater[label.annotator].append(label)
        key = pair_key(label)
        if key in pairs and key not in gold:
            shown = as_shown(pairs[key], key, ADJUDICATOR)
            p_a = label.p_a if label.pair.response_a == shown.response_a else 1 - label.p_a
            by_pair[key][label.annotator] = "both bad" if label.both_bad else _graded(p_a), label.note
    checked = {r.model: r for r in gold_accuracy([label for label in labels if label.annotator != ADJUDICATOR], gold)}
    people = [label for label in labels if label.annotator != ADJUDICATOR and pair_key(label) not in gold]
    fine = {pair_key(label) for label in people if not label.both_bad}
    bad = {key: label.pair.prompt for label in people if (key := pair_key(label)) not in fine}
    agreement = tuple(people_agreement(people))
    disputed: list[DisputedPair] = []
    noted: list[DisputedPair] = []
    for key, answers in by_pair.items():
        decision = answers.pop(ADJUDICATOR, None)
        said = tuple((who, answer, note) for who, (answer, note) in sorted(answers.items()))
        found = DisputedPair(key, as_shown(pairs[key], key, ADJUDICATOR), said, "" if decision is None else decision[0])
        if len({answer.removesuffix(" slightly") for answer, _ in answers.values()}) > 1:
            disputed.append(found)
        elif any(note for _, note in answers.values()):
            noted.append(found)
    return LabelResults(
        tuple(_row(name, mine, checked.get(name)) for name, mine in sorted(by_rater.items()) if name != ADJUDICATOR),
        agreement,
        in_words(agreement),
        sum(len(answers) > 1 for answers in by_pair.values()),
        tuple(disputed),
        tuple(noted),
        tuple(bad.values()),
        tuple(str(path.relative_to(labelling.folder.parent)) for path in paths),
    )


def in_words(agreement: Sequence[EvalResult]) -> str:
    """Return what the raters' agreement means for the use of their labels, by the usual limits for Krippendorff's alpha (0.67, 0.8)."""
    alpha = next((r for r in agreement if r.name == "alpha"), None)
    if alpha is None:
        return "Agreement is not known: no pair has answers of two raters."
    if alpha.value >= 0.8:
        text = "The raters agree: the labels can be used as they are."
    elif alpha.value >= 0.67:
        text = "The raters agree fairly well: use the labels with care, and decide the disputed pairs."
    elif alpha.high > 0:
        text = "The raters agree too little: read the disputed pairs together and make the guidelines clearer before you label more."
    else:
        text = "The raters agree no more than by chance: they seem to follow different rules. Clear that up before you label more."
    return text if alpha.low >= 0.67 or alpha.high < 0.67 else f"{text} With so few shared pairs, this is uncertain."


def _row(name: str, labels: Sequence[HumanLabel], checks: EvalResult | None) -> RaterRow:
    times = sorted(datetime.fromisoformat(label.time) for label in labels if label.time)
    gaps = [gap for a, b in itertools.pairwise(times) if (gap := (b - a).total_seconds()) < _BREAK_SECONDS]
    n = len(labels)
    first, bad = sum(label.p_a > 0.5 for label in labels) / n, sum(label.both_bad for label in labels) / n
    ties = sum(label.p_a == 0.5 for label in labels) / n - bad
    return RaterRow(name, n, first, ties, bad, median(gaps) if gaps else None, checks)


def _side(p_a: float) -> str:
    return "tie" if p_a == 0.5 else "A" if p_a > 0.5 else "B"


def _graded(p_a: float) -> str:
    """Return an answer in words: a side that is better for sure, or only slightly.

    >>> [_graded(p_a) for p_a in (1.0, 0.75, 0.5, 0.25, 0.0)]
    ['A', 'A slightly', 'tie', 'B slightly', 'B']
    """
    return f"{_side(p_a)} slightly" if 0.0 < p_a < 1.0 and p_a != 0.5 else _side(p_a)
