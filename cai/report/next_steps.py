"""What to do next after a run, in plain words: the most useful steps that its records point to, most urgent first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from cai.evaluate.adherence import TOLD
from cai.evaluate.adherence_table import AdherenceRow, AdherenceVerdict, adherence_rows
from cai.evaluate.policies import TRAINED
from cai.report.collect import ReportData
from cai.report.formatting import duration, percent, plural
from cai.report.verdict import SMALL, find, judge_warning

MOST_STEPS = 5
PLAIN = {"base": "the model before training (base)", "sft": "the model trained on examples (sft)", "policy": "the trained model (policy)"}
"""What the first screen calls the models."""


@dataclass(frozen=True)
class NextStep:
    """One step: what to do and why, and the command for it, if there is one."""

    text: str
    command: str = ""


def next_steps(data: ReportData) -> list[NextStep]:
    """Return at most five steps. A finished run always has at least one."""
    found = [*_unfinished(data), *_judge(data), *_principles(data), *_policy(data), *_measurement(data)]
    return found[:MOST_STEPS]


def _unfinished(data: ReportData) -> Iterator[NextStep]:
    stages = data.manifest.stages
    again = f"cai run runs/{data.name}/recipe.yaml"
    stopped = next((s for s in stages if s.status in ("failed", "stopped")), None)
    if stopped is not None:
        why = f": {stopped.message.rstrip('.')}" if stopped.message else ""
        yield NextStep(f"The {stopped.name} stage {stopped.status}{why}. Resume the run; finished work is kept.", again)
    elif data.evaluation is None:
        yield NextStep("The run has not been evaluated. Run the remaining stages; finished work is kept.", again)


def _judge(data: ReportData) -> Iterator[NextStep]:
    if judge_warning(data):
        yield NextStep(
            "The labels come from a judge that was not shown to agree with people. Label some pairs yourself, then measure the judge on "
            "them and calibrate it, or use a larger judge.",
            f"cai human queue {data.name}",
        )


def _principles(data: ReportData) -> Iterator[NextStep]:
    rows = adherence_rows(data.evaluation or ())
    named = {verdict: [r.id for r in rows if not r.control and r.verdict == verdict] for verdict in get_args(AdherenceVerdict)}
    changed = [r.id for r in rows if r.control and r.verdict in ("learned", "lost")]
    if data.evaluation is not None and not any(not r.control for r in rows):
        yield NextStep(
            "No principle was measured: it is not known which were learned. Give principles a check (a rule that decides who follows it), "
            "or a judge that was shown to agree with people.",
            f"cai constitution lint {_constitution(data)}",
        )
    if ids := named["lost"] + named["followed less"]:
        yield NextStep(
            f"{_listed(ids)} {_is(ids)} followed less often than before training. Look for a principle that asks for the opposite, and "
            "give training more prompts of the kinds that it applies to."
        )
    if ids := named["not learned"]:
        yield NextStep(
            f"{_listed(ids)} {_is(ids)} followed by the base model when it is told, but training did not teach it. Give training more "
            "examples: more prompts of the kinds it applies to, more answers for each (distill.samples), or more passes over them "
            "(sft.epochs)."
        )
    if ids := named["out of reach"]:
        yield NextStep(
            f"The base model does not follow {_listed(ids)} even when it is told, so it can't be taught this way. Reword the statement as "
            "a short instruction, or train a larger model.",
            f"cai constitution flip {_constitution(data)}",
        )
    if changed:
        yield NextStep(
            f"Answers changed where they should not have: {_listed(changed)}. So other changes may come from a general shift, too, such as "
            "shorter answers: compare them with this one."
        )


def _policy(data: ReportData) -> Iterator[NextStep]:
    found = sorted({f.subject for f in data.audit or () if f.verdict == "found"})
    if found:
        yield NextStep(
            f"The audit found faults in {_listed([PLAIN.get(m, m) for m in found])}: answers that may score well without being good "
            "(reward hacking), or that do something new and unwanted. Read the examples in its section below."
        )
    model = next((m for m in TRAINED if find(data, "looping", m) is not None), "")
    if (loops := find(data, "looping_change", model)) is not None and loops.low > 0:
        yield NextStep("Answers loop more than before. Train for fewer steps, or with a lower learning rate.")


def _measurement(data: ReportData) -> Iterator[NextStep]:
    if cut := [s.name for s in data.manifest.stages if s.truncation_warning]:
        yield NextStep(
            f"Many texts of {_listed(cut)} were cut off at the length limit. Raise it for these stages (max_tokens in their sampling)."
        )
    results = data.evaluation or ()
    rows = [r for r in adherence_rows(results) if not r.control]
    smallest = min((_prompts(r) for r in rows), default=0) or min(
        (r.n for r in results if r.model in TRAINED and r.name in ("harmful_compliance", "over_refusal")), default=0
    )
    if 0 < smallest < SMALL:
        yield NextStep(
            f"Evaluate on more prompts: {smallest} can show only large changes. Raise their number (the limits of prompts.evaluate)."
        )
    learned = [r.id for r in rows if r.verdict == "learned"]
    if learned:
        yield NextStep(
            f"This is one run, in which chance plays a part. Repeat it with other random numbers (seeds) to see whether "
            f"{_listed(learned)} {_is(learned)} learned each time.",
            f"cai run runs/{data.name}/recipe.yaml --set 'seeds=[0, 1, 2]'",
        )
    if data.evaluation:
        model = next((m for m in TRAINED if any(r.model == m for r in results)), "policy")
        yield NextStep(
            "Read some answers below before you trust a number, and talk to the model.", f"cai chat runs/{data.name}/models/{model}"
        )


def _constitution(data: ReportData) -> str:
    card = data.manifest.constitution
    return f"constitution/{card.id if card is not None else 'FILE'}.yaml"


def _prompts(row: AdherenceRow) -> int:
    return min(r.n for model, r in row.rates.items() if model != TOLD)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def costs_in_words(data: ReportData) -> str:
    """Return what a run cost in time, calls, memory and money; empty before the first stage."""
    stages = data.manifest.stages
    if not stages:
        return ""
    parts = [
        duration(sum(s.seconds for s in stages)),
        plural(sum(s.calls_made for s in stages), "model call"),
        f"{sum(s.completion_tokens for s in stages):,} tokens written",
    ]
    if reused := sum(s.calls_reused for s in stages):
        parts.insert(2, f"{reused:,} more reused")
    if data.manifest.peak_memory_bytes:
        parts.append(f"at most {data.manifest.peak_memory_bytes / 2**30:.1f} GiB of memory")
    if cost := sum(s.cost for s in stages):
        parts.append(f"{cost:.2f} US dollars")
    longest = max(stages, key=lambda s: s.seconds)
    share = longest.seconds / (sum(s.seconds for s in stages) or 1.0)
    return f"{', '.join(parts)}. The longest stage was {longest.name} ({percent(share)} of the time)."
