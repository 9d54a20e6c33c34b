"""Does a judge see planted failures that the lexicons miss, and does it stay quiet otherwise? Beside `bench.audit_planted`.

    python -m bench.audit_by_judge [--judge embedded] [--model embedded] [--limit 30] [--judged 30]

Answers, plants and parts are those of `bench.audit_planted`: with one store they are made once. The failures are those in `OTHER_WORDS`,
planted where the judge looks for them, and `PADDING` in open answers as a change that is none of them. The judge is asked every question of
`prompts/audit/behaviours.jsonl` about the reference's, the model's and every plant's answers; weaker plants are mixtures of a plant's
answers and the model's. Figures, by behaviour and for each of its wordings alone:

- shift: the mean change from the reference at full strength, in standard deviations, with its interval, for the plant that the behaviour is
  about, for the model as it is, and for padding; whether the judge sees the control is in its note;
- detection: verdicts in whole audits of random parts (80 %), and what the judge's other checks found (`also_found`);
- false alarms: who is reference and who is model is drawn anew for every probe.

Prints one JSON object.
"""

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.audit_planted import (
    OTHER_WORDS,
    PADDING,
    STRENGTHS,
    Change,
    answered,
    everywhere,
    part_of,
    plant,
    restricted,
    shuffled,
)
from cai.core.workspace import find_workspace
from cai.evaluate.audit.battery import audit_model
from cai.evaluate.audit.behaviours import SLOTS, Behaviour, Judged, judge_behaviours, judged_readings, load_behaviours
from cai.evaluate.audit.check import Answers
from cai.evaluate.audit.finding import compare
from cai.evaluate.audit.probes import Probes
from cai.ids import split_fraction
from cai.models.base import TextModel
from cai.models.naming import spec_from_name
from cai.models.opening import open_engine
from cai.models.store import CallStore
from cai.models.templates import load_templates
from cai.recipe import Recipe
from cai.records import Failure
from cai.stats import sign_flip

NAMED_BY = {
    "flatters": "flatters",
    "over-claims": "claims_certainty",
    "evades": "evades",
    "preaches": "preaches",
    "gives in only": "gives_in",
}
"""Plant to the behaviour that it is."""
PADS = "pads"
CONTROL = "control"


def where_asked(change: Change, behaviour: Behaviour) -> Change:
    """Plant only in the answers that a behaviour is looked for in: the judge need not read the others again."""
    return lambda slot, text, probe: change(slot, text, probe) if slot in SLOTS[behaviour.asked_of] else text


def fewer(probes: Probes, count: int) -> Probes:
    """Return at most so many opinions, facts, and prose and harmless prompts together, chosen by hash."""
    chosen = lambda group: sorted(group, key=lambda p: split_fraction(p.id, "judged"))[:count]  # noqa: E731
    opened = {p.id for p in chosen([*probes.prose, *(p for p in probes.prompts if p.kind != "harmful")])}
    return Probes(
        tuple(chosen(probes.opinions)),
        tuple(chosen(probes.facts)),
        tuple(p for p in probes.prose if p.id in opened),
        tuple(p for p in probes.prompts if p.id in opened),
    )


def by_wording(behaviours: Sequence[Behaviour]) -> list[Behaviour]:
    """Return each behaviour, and each of its pairs of questions alone."""
    pairs = [
        replace(b, id=f"{b.id}, wording {i + 1}", shows=(shows,), lacks=(lacks,))
        for b in behaviours
        for i, (shows, lacks) in enumerate(zip(b.shows, b.lacks, strict=False))
    ]
    return [*behaviours, *pairs]


def mixed(plain: Judged, spoilt: Judged, strength: float, salt: str) -> Judged:
    """Return what the judge says where `plant` changed a part of the answers."""
    return {b: {k: (spoilt[b] if split_fraction(k, salt) < strength else said)[k] for k in said} for b, said in plain.items()}


def swapped_alike(sides: tuple[Answers, Answers], whole: Answers, one: Judged, other: Judged) -> tuple[Judged, Judged]:
    """Return what was said of two shuffled sets of answers, given the set that `one` is about."""

    def first(key: str) -> bool:
        for slot in ("facts", "asked_again", "prose", "prompts"):
            if key in getattr(whole, slot):
                return bool(getattr(sides[0], slot)[key] == getattr(whole, slot)[key])
        raise KeyError(key)

    kept = {k: first(k) for said in one.values() for k in said}
    return (
        {b: {k: (said if kept[k] else other[b])[k] for k in said} for b, said in one.items()},
        {b: {k: (other[b] if kept[k] else said)[k] for k in said} for b, said in one.items()},
    )


async def judged(judge: str, store_path: Path, probes: Probes, sets: Mapping[str, Answers]) -> dict[str, Judged]:
    """Ask the judge about every set of answers."""
    workspace = find_workspace(Path.cwd())
    behaviours, templates, recipe = (
        by_wording(load_behaviours(workspace.root)),
        load_templates(workspace.root / "prompts/templates"),
        Recipe(name="bench"),
    )
    found: dict[str, Judged] = {}
    failures: list[Failure] = []
    asked = [(CONTROL, sets["reference"], True), *((name, answers, False) for name, answers in sets.items())]
    engine = await open_engine(spec_from_name(judge))
    with CallStore(store_path) as store:
        for name, answers, control in asked:
            found[name] = await judge_behaviours(
                behaviours,
                probes,
                answers,
                TextModel(engine, store, "audit"),
                templates,
                window=recipe.window,
                max_failure_fraction=recipe.max_failure_fraction,
                failures=failures,
                control=control,
                on_progress=lambda done, total, name=name: print(f"\r{name} {done}/{total} ", end="", file=sys.stderr, flush=True),
            )
    await engine.close()
    print(f"\n{len(failures)} failures", file=sys.stderr)
    return found


def main() -> None:
    """Parse the command line, ask, plant, judge, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--judged", type=int, default=30, help="of each kind of answers, at most")
    parser.add_argument("--resamples", type=int, default=20, help="of each planted failure and strength")
    parser.add_argument("--null-resamples", type=int, default=200, help="for the false alarms")
    parser.add_argument("--store", type=Path, default=Path("runs/calls.sqlite"))
    given = parser.parse_args()
    every, (reference, model) = asyncio.run(answered(given.model, given.limit, given.tokens, given.store, (0, 1)))
    probes = fewer(every, given.judged)
    behaviours = load_behaviours(find_workspace(Path.cwd()).root)
    changes = {name: where_asked(OTHER_WORDS[name][0], b) for name, named in NAMED_BY.items() for b in behaviours if b.id == named}
    opened = next(b for b in behaviours if b.asked_of == "open")
    changes[PADS] = where_asked(everywhere(lambda text: " ".join((text, *PADDING))), opened)
    sets = {"reference": reference, "model": model} | {name: plant(model, probes, c, 1.0, name) for name, c in changes.items()}
    said = asyncio.run(judged(given.judge, given.store, probes, {name: restricted(a, probes) for name, a in sets.items()}))

    def read(part: Probes, mine: tuple[Answers, Judged], theirs: tuple[Answers, Judged], only: Sequence[Behaviour]) -> dict[str, str]:
        sides = (restricted(mine[0], part), mine[1]), (restricted(theirs[0], part), theirs[1])
        readings = judged_readings(only, part, *sides, said[CONTROL])
        return {f.check: f.verdict for f in audit_model(part, sides[0][0], sides[1][0], "model", judged=readings)}

    shifts: dict[str, dict[str, str]] = {}
    for b in by_wording(behaviours):
        for name in ("model", *([PADS] if b.asked_of == "open" else []), *(n for n, named in NAMED_BY.items() if b.id.startswith(named))):
            [(mine, theirs)] = judged_readings([b], probes, (sets[name], said[name]), (reference, said["reference"]), said[CONTROL])
            finding = compare(mine, theirs, "model", "reference")
            assert finding is not None
            moved = [mine.values[i] - theirs.values[i] for i in theirs.values]
            p, p_fall = sign_flip(moved), sign_flip([-d for d in moved])
            interval = f"{finding.value:+.2f} [{finding.low:+.2f}, {finding.high:+.2f}], n {finding.n}"
            shifts.setdefault(b.id, {})[name] = f"{interval}, p {p:.3g} (of a fall {p_fall:.3g}); {finding.note}"
    detection: dict[str, object] = {}
    for name, change in changes.items():
        check = next((b.check.name for b in behaviours if b.id == NAMED_BY.get(name)), "")
        rows = {}
        for strength in STRENGTHS:
            named: Counter[str] = Counter()
            others: Counter[str] = Counter()
            for seed in range(given.resamples):
                part, salt = part_of(probes, random.Random(seed)), f"{name}-{seed}"
                spoilt = plant(model, probes, change, strength, salt)
                verdicts = read(
                    part, (spoilt, mixed(said["model"], said[name], strength, salt)), (reference, said["reference"]), behaviours
                )
                named[verdicts.get(check, "not asked")] += 1
                others.update(b.id for b in behaviours if b.check.name != check and verdicts.get(b.check.name) == "found")
            rows[f"{strength:.0%}"] = {**named, "also_found": dict(others)}
        detection[name] = rows
    alarms: Counter[str] = Counter()
    for seed in range(given.null_resamples):
        sides = shuffled(reference, model, random.Random(seed))
        theirs_said, mine_said = swapped_alike(sides, reference, said["reference"], said["model"])
        verdicts = read(probes, (sides[1], mine_said), (sides[0], theirs_said), behaviours)
        heard = [f"{b.id}: {v}" for b in behaviours if (v := verdicts.get(b.check.name)) in ("found", "suspect")]
        alarms.update([*heard, *(["audits with any"] if heard else [])])
    report = {"judge": given.judge, "shifts": shifts, "detection": detection, "false_alarms": {"audits": given.null_resamples, **alarms}}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
