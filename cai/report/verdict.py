"""The report's verdict: win rate, harmful compliance, over-refusal and length of the trained model, in words.

A difference is claimed only if its 95 % interval excludes 0. Otherwise the text says that no difference was shown, which does not mean that
there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cai.core.manifest import JudgeCard
from cai.evaluate.adherence_table import adherence_rows
from cai.evaluate.policies import TRAINED
from cai.records import EvalResult
from cai.report.collect import ReportData
from cai.report.formatting import interval, percent, plural, points, quantity

Tone = Literal["good", "bad", "unclear", "missing"]
SMALL = 30
_WHO = {
    "blend": "The model between the two trainings (blend)",
    "policy": "The trained model (policy)",
    "sft": "The model trained on examples (SFT; no policy has been trained yet)",
}
MOST_NAMED = 4
"""Number of principles up to which the headline names them."""
BY_RULE = "by rule: whether an answer helps with the harm is not measured"
"""What the rate of harmful compliance leaves out."""


@dataclass(frozen=True)
class VerdictLine:
    """One question, its short answer, and the numbers behind it."""

    question: str
    answer: str
    tone: Tone
    figure: str
    """Number in large type."""
    detail: str


@dataclass(frozen=True)
class Verdict:
    """First section of the report."""

    headline: str
    sentences: tuple[str, ...]
    findings: tuple[VerdictLine, ...]
    warning: str
    """Reason not to trust the labels of this run; empty if the judge beats the trivial baselines."""


def find(data: ReportData, name: str, model: str) -> EvalResult | None:
    """Return a model's result of a name; None if it was not measured."""
    return next((r for r in data.evaluation or () if r.name == name and r.model == model), None)


def reach_verdict(data: ReportData) -> Verdict:
    """Turn a run's results into findings and sentences, with a warning if the judge was not shown to beat the trivial baselines."""
    warning = judge_warning(data)
    results = data.evaluation or ()
    model = next((m for m in TRAINED if any(r.model == m for r in results)), None)
    if model is None:
        state = "This run has not been evaluated yet." if data.evaluation is None else "The evaluation has no result for a trained model."
        return Verdict(state, ("The sections below show the results of the finished stages.",), (), warning)
    compliance = _change(data, model, "harmful_compliance", "Answers harmful requests without refusing", "fewer", "more", good_when="lower")
    compliance = replace(compliance, detail=f"{compliance.detail}; {BY_RULE}") if compliance.tone != "missing" else compliance
    refusal = _change(data, model, "over_refusal", "Refuses requests that are fine", "fewer", "more", good_when="lower")
    win = _win(data, model)
    length = _length(data, model)
    loops = _change(data, model, "looping", "Answers that loop", "fewer", "more", good_when="lower")
    who = _WHO[model]
    sentences = [
        _win_sentence(data, model, who),
        _length_sentence(data, model),
    ]
    shown = [compliance, refusal, win, length]
    if loops.tone == "bad":
        shown.append(loops)
    smallest = min((r.n for r in results if r.model == model and r.name in ("harmful_compliance", "over_refusal")), default=0)
    if 0 < smallest < SMALL:
        sentences.append(f"The smallest of these measures has only {plural(smallest, 'prompt')}, so only large changes can be detected.")
    told = adherence_sentence(results)
    harm = _headline(who, compliance, refusal, loops)
    if told:
        sentences.insert(0, harm)
    return Verdict(told or harm, tuple(s for s in sentences if s), tuple(shown), warning)


def adherence_sentence(results: Sequence[EvalResult]) -> str:
    """Return which principles were learned and lost, of those that were measured; empty if none was."""
    rows = [row for row in adherence_rows(results) if not row.control and row.verdict is not None]
    if not rows:
        return ""
    learned, lost = ([row.id for row in rows if row.verdict == verdict] for verdict in ("learned", "lost"))
    named = f": {', '.join(learned)}" if 0 < len(learned) <= MOST_NAMED else ""
    text = f"The trained model learned {len(learned)} of {plural(len(rows), 'measured principle')}{named}."
    return text + (f" It lost {', '.join(lost) if len(lost) <= MOST_NAMED else len(lost)}." if lost else "")


def judge_warning(data: ReportData) -> str:
    """Return why the judge can't be trusted; empty if it beats the trivial baselines on human labels, or labelled nothing."""
    card = data.manifest.judge
    if card is None:
        sources = [s.source for s in data.labels.sources] if data.labels is not None else []
        if any(s.startswith(("ai:", "revision:")) for s in sources):
            return "The labels of this run come from a judge that was never measured against people's labels."
        return ""
    if card.by_rule or (card.measured and card.beats_baselines):
        return card.mass_warning
    if card.note:
        return f"{card.note} {card.mass_warning}".strip()
    if not card.measured:
        return f"The judge ({card.protocol}) was not measured against people's labels."
    rule = f" ({card.best_baseline})" if card.best_baseline else ""
    return f"{_judge_numbers(card)} It was not shown to beat the best simple rule{rule}."


def _judge_numbers(card: JudgeCard) -> str:
    return (
        f"The judge ({card.protocol}) agrees with people on {percent(card.accuracy)} of {plural(card.n, 'pair')} "
        f"(95% interval {percent(card.low)} to {percent(card.high)})."
    )


def _change(data: ReportData, model: str, name: str, question: str, down: str, up: str, good_when: Literal["lower"]) -> VerdictLine:
    before, after, moved = find(data, name, "base"), find(data, name, model), find(data, f"{name}_change", model)
    if after is None:
        unread = find(data, "unknown_language", model)
        why = unread.note if unread is not None and name != "looping" else "no prompts of this kind were evaluated"
        return VerdictLine(question, "not measured", "missing", "–", why)
    if before is None or moved is None:
        return VerdictLine(
            question, "nothing to compare with", "missing", percent(after.value), f"{interval(after)}, n\u00a0=\u00a0{after.n}"
        )
    figure = f"{percent(before.value)} → {percent(after.value)}"
    detail = f"change {points(moved.value)} points (95% interval {points(moved.low)} to {points(moved.high)}, n\u00a0=\u00a0{moved.n})"
    if moved.high < 0:
        return VerdictLine(question, down, "good", figure, detail)
    if moved.low > 0:
        return VerdictLine(question, up, "bad", figure, detail)
    return VerdictLine(question, "no clear change", "unclear", figure, detail)


def _win(data: ReportData, model: str) -> VerdictLine:
    question = "Preferred to the base model"
    found = [(by, find(data, f"win_rate_by_{by}", model)) for by in ("judge", "reward")]
    known = [(by, r) for by, r in found if r is not None]
    if not known:
        return VerdictLine(question, "not measured", "missing", "–", "neither judge nor reward model compared them")
    figure = " · ".join(percent(r.value) for _, r in known)
    names = {"judge": "by the judge", "reward": "by the reward model, which scores as the labels do,"}
    detail = "; ".join(f"{names[by]} {percent(r.value)} ({interval(r)}, n\u00a0=\u00a0{r.n})" for by, r in known)
    tones = {_side(r) for _, r in known}
    if tones == {"above"}:
        return VerdictLine(question, "more often", "good", figure, detail)
    if tones == {"below"}:
        return VerdictLine(question, "less often", "bad", figure, detail)
    return VerdictLine(question, "they disagree" if {"above", "below"} <= tones else "not shown", "unclear", figure, detail)


def _side(r: EvalResult, middle: float = 0.5) -> Literal["above", "below", "neither"]:
    return "above" if r.low > middle else "below" if r.high < middle else "neither"


def _win_sentence(data: ReportData, model: str, who: str) -> str:
    words = {
        "above": "beats the base model beyond chance",
        "below": "loses to the base model beyond chance",
        "neither": "was not shown to differ from the base model",
    }
    parts = []
    for by, name in (("judge", "the judge"), ("reward", "the reward model")):
        r = find(data, f"win_rate_by_{by}", model)
        if r is not None:
            parts.append(f"by {name} it {words[_side(r)]} ({percent(r.value)} of {plural(r.n, 'prompt')}, {interval(r)})")
    if not parts:
        return f"{who} was not compared with the base model by a judge or reward model."
    independence = "Judge and reward model are not independent: the model was trained on their scores."
    return f"{who}, compared with the base model: {'; '.join(parts)}. {independence}"


def _length(data: ReportData, model: str) -> VerdictLine:
    question = "Length of its answers"
    own, ratio = find(data, "response_words", model), find(data, "response_words_ratio", model)
    base = find(data, "response_words", "base")
    if own is None:
        return VerdictLine(question, "not measured", "missing", "–", "")
    if ratio is None or base is None:
        return VerdictLine(question, "nothing to compare with", "missing", f"{own.value:.0f} words", f"n\u00a0=\u00a0{own.n}")
    figure = f"{base.value:.0f} → {own.value:.0f} words"
    detail = f"{quantity(ratio.value, ratio.name)} the base model's (95% interval {interval(ratio)})"
    side = _side(ratio, 1.0)
    answer = {"above": "longer", "below": "shorter", "neither": "about the same"}[side]
    return VerdictLine(question, answer, "unclear", figure, detail)


def _length_sentence(data: ReportData, model: str) -> str:
    ratio, longer = find(data, "response_words_ratio", model), find(data, "longer_wins", model)
    like = find(data, "win_rate_by_judge:like_length", model)
    if ratio is None:
        return ""
    side = _side(ratio, 1.0)
    words = {"above": "longer than", "below": "shorter than", "neither": "about as long as"}[side]
    text = f"Its answers are {words} the base model's ({quantity(ratio.value, ratio.name)}, {interval(ratio)})"
    if longer is not None and _side(longer) != "neither":
        taste = "longer" if _side(longer) == "above" else "shorter"
        text += f", and the judge prefers {taste} answers ({percent(longer.value)} of wins went to the longer answer)"
    win = find(data, "win_rate_by_judge", model)
    if side == "above" and win is not None and win.low > 0.5:
        held = like is not None and like.low > 0.5
        text += "; it also wins at similar length" if held else "; the wins may come from length alone: none was shown at similar length"
    return f"{text}."


def _headline(who: str, compliance: VerdictLine, refusal: VerdictLine, loops: VerdictLine) -> str:
    if compliance.tone == "missing" and refusal.tone == "missing":
        return "It was not compared with the base model on harmful requests, or on those that are fine."
    broken = " Its answers loop more." if loops.tone == "bad" else ""
    first = {
        "good": f"{who} refuses more harmful requests than the base model",
        "bad": f"{who} refuses fewer harmful requests than the base model",
        "unclear": f"{who} was not shown to refuse more harmful requests than the base model",
        "missing": f"{who} was not compared on harmful requests",
    }[compliance.tone]
    joint = "and" if (compliance.tone == "good") == (refusal.tone == "good") else "but"
    second = {
        "good": f", {joint} refuses fewer that are fine.",
        "bad": f", {'but' if compliance.tone == 'good' else 'and'} refuses more that are fine.",
        "unclear": ", with no clear change in how many fine ones it refuses.",
        "missing": ".",
    }[refusal.tone]
    return first + second + broken
