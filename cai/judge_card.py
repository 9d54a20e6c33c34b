"""What is known of a run's judge: measured on human-labelled pairs before its labels are used, and said loudly where it failed."""

from pathlib import Path

from cai.console import Reporter
from cai.data.human import load_pairs
from cai.evaluate.judge_bench import JudgeBench, judge_bench
from cai.jsonl import write_records
from cai.manifest import JudgeCard
from cai.models.base import TextModel
from cai.recipe import FeedbackConfig, Recipe
from cai.records import Constitution
from cai.templates import Templates


async def measure_judge(
    recipe: Recipe, root: Path, constitution: Constitution, model: TextModel, templates: Templates, out: Path, reporter: Reporter
) -> JudgeCard:
    """Measure the recipe's judge on its bench pairs, and write the rows to `out`.

    Raises:
        DataError: the pairs can't be read.
        ModelError: the judge can't go on.
    """
    config = recipe.feedback
    if config.bench_pairs is None:
        write_records(out, [])
        return JudgeCard(config.protocol, False, note=UNMEASURED.format(protocol=config.protocol))
    pairs = load_pairs(root / config.bench_pairs, limit=config.bench_limit, seed=recipe.seed).preferences
    reporter.progress(0, len(pairs), "bench pairs")
    bench = await judge_bench(
        pairs,
        [config.protocol],
        model,
        templates,
        constitution,
        config,
        recipe.seed,
        window=recipe.window,
        on_progress=lambda done, total, protocol: reporter.progress(done, total, "bench pairs"),
    )
    write_records(out, [*bench.protocols, *bench.baselines])
    return judge_card(config, bench)


UNMEASURED = (
    "The judge ({protocol}) was not measured against human labels (feedback.bench_pairs is null), so nothing shows that it beats always "
    "taking the longer answer. Treat its labels, and everything trained on them, as unproven."
)


def judge_card(config: FeedbackConfig, bench: JudgeBench) -> JudgeCard:
    """Put a bench's first protocol into a card, with a sentence that says what its labels are worth."""
    found = bench.protocols[0]
    best = next((b for b in bench.baselines if b.name == found.best_baseline), None)
    measured = (
        f"{config.protocol} agrees with {config.bench_pairs} on {found.accuracy:.1%} of n = {found.n} [{found.low:.1%}, {found.high:.1%}]"
    )
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
    )
