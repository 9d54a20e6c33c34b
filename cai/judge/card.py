"""Measures a run's judge on human-labelled pairs before its labels are used, and warns if it does not beat the baselines."""

from pathlib import Path

from cai.core.console import Reporter
from cai.core.jsonl import write_records
from cai.core.manifest import JudgeCard
from cai.judge.bench import JudgeBench, judge_bench
from cai.judge.calibration import Calibration
from cai.judge.fitted import unseen_by
from cai.judge.judge import Judge
from cai.judge.protocols import PROTOCOLS
from cai.labels.load import limited, load_pairs
from cai.recipe import FeedbackConfig, Recipe


async def measure_judge(recipe: Recipe, root: Path, judge: Judge, out: Path, reporter: Reporter) -> JudgeCard:
    """Measure the run's judge on its bench pairs, and write the results to `out`. Arguments and errors as in `card_of`."""
    card, bench = await card_of(recipe, root, judge, reporter)
    write_records(out, [] if bench is None else [*bench.protocols, *bench.baselines])
    return card


async def card_of(recipe: Recipe, root: Path, judge: Judge, reporter: Reporter) -> tuple[JudgeCard, JudgeBench | None]:
    """Measure a judge on the recipe's human-labelled pairs.

    A calibrated judge is measured with its calibration. No pair is used that its calibration or its probe was fitted on.

    Args:
        recipe: names the pairs and their maximum number.
        root: folder of the workspace.
        judge: the judge to measure.
        reporter: shows progress.

    Returns:
        The card, and the results; None if there was no pair to measure on.

    Raises:
        DataError: the pairs can't be read.
        ModelError: the judge fails.
    """
    config, calibration = recipe.feedback, judge.calibration
    if not PROTOCOLS.get(config.protocol).asks_model:
        return JudgeCard(config.protocol, False, by_rule=True, note=BY_RULE.format(protocol=config.protocol)), None
    if config.bench_pairs is None:
        note = UNMEASURED.format(protocol=config.protocol)
        return JudgeCard(config.protocol, False, note=note, calibration=judge.calibration_hash), None
    loaded = load_pairs(root / config.bench_pairs).preferences
    unseen = unseen_by(judge.fitted, loaded)
    if not unseen:
        note = ALL_FITTED.format(protocol=config.protocol, pairs=config.bench_pairs)
        return JudgeCard(config.protocol, False, note=note, calibration=judge.calibration_hash), None
    pairs = limited(unseen, config.bench_limit, recipe.seed)
    bench = await judge_bench(
        pairs, [judge], window=recipe.window, on_progress=lambda done, total, protocol: reporter.progress(done, total, "bench pairs")
    )
    return judge_card(config, bench, calibration, len(loaded) - len(unseen)), bench


UNMEASURED = (
    "The judge ({protocol}) was not measured against human labels (feedback.bench_pairs is null), so nothing shows that it beats always "
    "taking the longer answer. Treat its labels, and everything trained on them, as unproven."
)


BY_RULE = "Labels come from the principles' own checks ({protocol}), not from a judge: they are as good as these rules are."
ALL_FITTED = (
    "The judge ({protocol}) was not measured against human labels: its calibration or probe was fitted on every pair of {pairs}. Name "
    "others in feedback.bench_pairs, or fit it on fewer. Treat its labels, and everything trained on them, as unproven."
)


def judge_card(config: FeedbackConfig, bench: JudgeBench, calibration: Calibration | None = None, left_out: int = 0) -> JudgeCard:
    """Return the card of a bench's first protocol, with a note on whether it beats the baselines.

    Args:
        config: the judge's settings.
        bench: results of the measurement.
        calibration: the judge's calibration, or None.
        left_out: number of bench pairs that the calibration or the probe was fitted on.
    """
    found = bench.protocols[0]
    best = next((b for b in bench.baselines if b.name == found.best_baseline), None)
    measured = (
        f"{config.protocol} agrees with {config.bench_pairs} on {found.accuracy:.1%} of n = {found.n} [{found.low:.1%}, {found.high:.1%}]"
    )
    if calibration is not None:
        measured += f", after calibration, on pairs not used to fit it ({left_out} left out)"
    elif left_out:
        measured += f", on pairs that its probe was not fitted on ({left_out} left out)"
    if best is not None:
        measured += f"; the best trivial baseline ({best.name}) on {best.accuracy:.1%}"
    verdict = (
        "The judge beats the trivial baselines: "
        if found.beats_baselines
        else "THE JUDGE WAS NOT SHOWN TO BEAT THE TRIVIAL BASELINES: its labels, and everything trained on them, are unproven. "
    )
    return JudgeCard(
        protocol=config.protocol,
        measured=True,
        pairs=config.bench_pairs or "",
        accuracy=found.accuracy,
        low=found.low,
        high=found.high,
        n=found.n,
        beats_baselines=bool(found.beats_baselines),
        best_baseline=found.best_baseline or "",
        note=f"{verdict}{measured}.",
        calibration="" if calibration is None else calibration.hash,
    )
