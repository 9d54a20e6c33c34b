"""Does mixing human and AI labels help? Reward models on human only, AI only and mixed labels of the same rows, tested on people's choices.

    python -m bench.mixing_hh --pairs FILE --out FOLDER [--train 400] [--test 300] [--protocol pointwise --per-label 3]

All three arms train on the same pairs of responses, so only the labels differ: people's, the judge's, or people's on every other row and
the judge's on the rest. The last rows of the file are the test. Prints one JSON object: held-out accuracy, its 95 % interval and n per
arm, paired differences between arms, what the judge's labels agree with people on, and how the two sources lean. Everything is kept in
`--out`: the same command goes on where it stopped, judging and training alike.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.reward_data import reward_parser
from cai.constitution.load import load_constitution
from cai.core.flow import run_items
from cai.core.workspace import shipped_workspace
from cai.data.balance import opposite_leanings, source_balance
from cai.errors import RecipeError
from cai.judge.calibration import read_calibration
from cai.judge.judge import Judge
from cai.labels.load import load_pairs
from cai.models.base import TextModel
from cai.models.opening import open_engine
from cai.models.store import CallStore
from cai.models.templates import load_templates
from cai.recipe import FeedbackConfig, LoraSpec, ModelSpec, RewardConfig
from cai.records import Failure, Preference, ResponsePair
from cai.stats import paired_bootstrap, wilson
from cai.train.reward.ensemble import load_ensemble, score_pairs
from cai.train.reward.train import train_reward

ARMS = ("human", "ai", "mixed")


async def judged(pairs: Sequence[Preference], given: argparse.Namespace) -> list[Preference | None]:
    """Return the judge's label of every pair, as `cai` would train on it; None where it has none or is even."""
    root = shipped_workspace()
    config = FeedbackConfig(protocol=given.protocol, principles="sample", per_label=given.per_label)
    labels: dict[str, Preference | None] = {}
    with CallStore(given.out / "calls.sqlite") as store:
        engine = await open_engine(ModelSpec(path=given.judge))
        try:
            calibration = read_calibration(given.calibration) if given.calibration else None
            judge = Judge(
                config,
                load_constitution(root / "constitution" / "general.yaml"),
                TextModel(engine, store, "bench"),
                load_templates(root / "prompts" / "templates"),
                given.seed,
                calibration=calibration,
            )

            async def work(p: Preference) -> tuple[str, Preference | None]:
                judgment = await judge(ResponsePair(p.prompt, p.chosen, p.rejected, "human", p.provenance))
                if judgment.p_a is None or judgment.p_a == 0.5:
                    return p.id, None
                told = replace(p, p_chosen=judgment.p_a, source=f"ai:{given.protocol}", provenance=judgment.provenance)
                return p.id, told if judgment.p_a > 0.5 else told.swapped()

            failures: list[Failure] = []
            progress = {"window": 64, "max_failure_fraction": 1.0, "stage": "judge", "failures": failures}
            async for key, label in run_items(pairs, work, on_progress=lambda n: note(f"judged {n}/{len(pairs)}"), **progress):
                labels[key] = label
        finally:
            await engine.close()
    return [labels[p.id] for p in pairs]


def note(text: str) -> None:
    """Show progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def correct(folder: Path, test: Sequence[Preference]) -> list[float]:
    """Return, per test pair, whether the trained model prefers what people chose; equal scores count half."""
    return [0.5 if p.margin == 0 else float(p.margin > 0) for p in score_pairs(load_ensemble([folder]), test, held_out=True)]


def main() -> None:
    """Parse the command line, label, train, test, print."""
    parser = reward_parser(__doc__, train=400)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--protocol", default="pointwise")
    parser.add_argument("--per-label", type=int, default=3)
    parser.add_argument("--calibration", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = load_pairs(given.pairs, kind="harmful").preferences
    if len(pairs) < given.train + given.test:
        raise RecipeError(f"{given.pairs}: {len(pairs)} pairs, fewer than --train {given.train} and --test {given.test} together")
    test = pairs[len(pairs) - given.test :]
    candidates = pairs[: min(len(pairs) - given.test, given.train + given.train // 10)]  # some the judge may find even
    labels = [(p, ai) for p, ai in zip(candidates, asyncio.run(judged(candidates, given)), strict=True) if ai is not None][: given.train]
    if len(labels) < given.train:
        note(f"the judge has a label for only {len(labels)} of {len(candidates)} rows: every arm trains on these")
    if not labels:
        raise RecipeError(f"the judge ({given.protocol}) labelled none of {len(candidates)} rows")
    rows = {
        "human": [p for p, _ in labels],
        "ai": [ai for _, ai in labels],
        "mixed": [p if i % 2 else ai for i, (p, ai) in enumerate(labels)],
    }
    config = RewardConfig(
        max_length=given.max_length,
        learning_rate=given.learning_rate,
        epochs=given.epochs,
        batch_size=given.batch_size,
        lora=LoraSpec(layers=given.layers, rank=given.rank, alpha=2 * given.rank),
        save_steps=20,
    )
    hits: dict[str, list[float]] = {}
    for arm in given.arms.split(","):
        folder = given.out / arm

        def show(step: int, total: int, metrics: dict[str, float], arm: str = arm) -> None:
            note(f"{arm}: step {step}/{total} loss {metrics['loss']:.3f}")

        train_reward(config, ModelSpec(path=given.model), rows[arm], (), folder, given.seed, show)
        hits[arm] = correct(folder, test)
    agrees = [float(ai.chosen == p.chosen) for p, ai in labels]
    sources = source_balance([*rows["human"], *rows["ai"]], ())
    report = {
        "arms": {arm: {"accuracy": sum(h) / len(h), **interval(h), "trained_on": len(rows[arm])} for arm, h in hits.items()},
        "differences": {
            f"{a} - {b}": dict(zip(("value", "low", "high"), paired_bootstrap(differences(hits[a], hits[b]), given.seed), strict=True))
            for a, b in (("mixed", "human"), ("mixed", "ai"), ("human", "ai"))
            if a in hits and b in hits
        },
        "longer_is_better": sum(len(p.chosen) > len(p.rejected) for p in test) / len(test),
        "judge_agrees_on_training_rows": {"value": sum(agrees) / len(agrees), **interval(agrees)},
        "sources": [asdict(s) for s in sources],
        "warnings": opposite_leanings(sources),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items() if k not in ("pairs", "out")},
    }
    print(json.dumps(report))


def interval(hits: Sequence[float]) -> dict[str, float]:
    """Return the Wilson interval and n of a share."""
    low, high = wilson(sum(hits), len(hits))
    return {"low": low, "high": high, "n": len(hits)}


def differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return the difference per item."""
    return [a - b for a, b in zip(one, other, strict=True)]


if __name__ == "__main__":
    main()
