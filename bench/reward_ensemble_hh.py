"""Whether several reward models know more than one: members on disjoint parts of human-labelled pairs, and their scores made one.

    python -m bench.reward_ensemble_hh --pairs FILE --members 3 --train 900 --test 300 --out FOLDER

Deals the prompts of the first rows of the file out to the members, trains each on its own part, and tests all on the last rows. Prints
one JSON object: accuracy with its 95 % interval, and calibration, for each member and for mean, minimum and mean − std; and how often the
ensemble is right where its members disagree most and least. Members together are trained on about as many pairs as
`bench.reward_hh` trains one on. With the embedded model on two idle CPU cores 900 pairs take about 15 minutes. Killed, it goes on in
the same `--out`.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.reward_data import reported_settings, reward_config, reward_parser, split_rows
from cai.core.jsonl import read_records, write_records
from cai.data.filters import prompt_key
from cai.recipe import Aggregate, ModelSpec
from cai.records import ScoredPair
from cai.train.reward.ensemble import aggregate_scores, load_ensemble, score_pairs
from cai.train.reward.metrics import HeldOutMetrics, length_bucket, measure_margins, measure_scores
from cai.train.reward.train import train_members

AGGREGATES: tuple[Aggregate, ...] = ("mean", "min", "uncertainty")


def note(member: str, step: int, total: int, metrics: dict[str, float]) -> None:
    """Show a step on standard error."""
    print(f"{member} step {step}/{total} loss {metrics['loss']:.3f}", file=sys.stderr, flush=True)


def row(metrics: HeldOutMetrics) -> dict[str, float]:
    """Return what is printed of some metrics."""
    names = ("accuracy", "low", "high", "n", "calibration_error", "overconfidence", "overconfidence_low", "overconfidence_high")
    return {name: round(getattr(metrics, name), 4) for name in names}


def aggregated(pairs: Sequence[ScoredPair], aggregate: Aggregate, penalty: float) -> list[ScoredPair]:
    """Return pairs whose members' scores are made one in another way."""
    return [
        replace(
            p,
            chosen=aggregate_scores(p.chosen.members, aggregate, penalty),
            rejected=aggregate_scores(p.rejected.members, aggregate, penalty),
        )
        for p in pairs
    ]


def main() -> None:
    """Parse the command line, train, test, print."""
    parser = reward_parser(__doc__, train=900)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--slices", default="parts")
    parser.add_argument("--penalty", type=float, default=1.0)
    given = parser.parse_args()
    rows, test = split_rows(given)
    tested = {prompt_key(p.prompt) for p in test}
    train = [p for p in rows if prompt_key(p.prompt) not in tested]
    config = reward_config(given, members=given.members, slices=given.slices, save_steps=10)
    model = ModelSpec(path=given.model)
    started = time.monotonic()
    results = train_members(config, model, train, (), given.out, given.seed, note)
    trained = time.monotonic()
    stored = given.out / "test_scores.jsonl"
    ensemble = load_ensemble([given.out / name for name in config.member_names])
    scored = list(read_records(stored, ScoredPair)) if stored.exists() else []
    if [p.pair_id for p in scored] != [p.id for p in test] or any(len(p.chosen.members) != given.members for p in scored):
        scored = score_pairs(ensemble, test, held_out=True)
        write_records(stored, scored)
    labels = [p.p_chosen for p in scored]
    by_disagreement = sorted(scored, key=lambda p: p.disagreement)
    half = len(scored) // 2
    report = {
        "members": {
            m.model: row(m.metrics) | {"trained_on": results[m.model].examples}
            for m in measure_scores(scored, config.member_names)
            if m.by == "all" and m.model in results
        },
        "ensemble": {a: row(measure_margins([p.margin for p in aggregated(scored, a, given.penalty)], labels)) for a in AGGREGATES},
        "by_disagreement": {
            name: row(measure_margins([p.margin for p in found], [p.p_chosen for p in found]))
            for name, found in (("lower half", by_disagreement[:half]), ("upper half", by_disagreement[half:]))
        },
        "by_length": {
            bucket: row(measure_margins([p.margin for p in found], [p.p_chosen for p in found]))
            for bucket in sorted({length_bucket(p) for p in scored})
            for found in ([p for p in scored if length_bucket(p) == bucket],)
        },
        "train_seconds": round(trained - started, 1),
        "test_seconds": round(time.monotonic() - trained, 1),
        "settings": reported_settings(given),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
