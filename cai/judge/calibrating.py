"""A judge beside people's labels: `cai judge calibrate`, and the judges' part of `cai human agreement`. Over the workspace's call store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.core.console import Reporter
from cai.core.flow import run_items
from cai.data.filters import prompt_key
from cai.errors import DataError
from cai.ids import split_fraction
from cai.judge.calibration import Calibration, length_difference
from cai.judge.fitting import Labelled, check_enough, fit_calibration
from cai.judge.judge import Judge
from cai.judge.protocol import probability
from cai.labels.agreement import judge_agreement
from cai.labels.pooling import consensus
from cai.recipe import FeedbackConfig
from cai.records import EvalResult, Failure, HumanLabel, ResponsePair


@dataclass(frozen=True)
class Asked:
    """One judge's answers about labelled pairs."""

    protocol: str
    model: str
    """The judge's fingerprint."""
    constitution: str
    pairs: tuple[Labelled, ...]
    failed: int


def check_labels(labels: Sequence[HumanLabel], limit: int | None, seed: int) -> None:
    """Refuse too few labels before a judge is asked: its answers cost. Raises `DataError`."""
    check_enough([prompt_key(label.pair.prompt) for label in decided(labels, limit, seed).values()])


def fit(asked: Asked, config: FeedbackConfig, files: Sequence[Path], use_length: bool, seed: int) -> Calibration:
    """Fit a judge's calibration to people's labels, and measure it by cross-validation.

    Args:
        asked: what the judge and people said.
        config: the judge's: how principles are drawn.
        files: where the labels are from.
        use_length: also correct for a liking for long or short answers.
        seed: of the folds and the bootstrap.

    Raises:
        DataError: there are too few labels.
    """
    fitted = fit_calibration(asked.pairs, use_length, seed)
    return Calibration(
        protocol=asked.protocol,
        principles=config.principles,
        per_label=config.per_label,
        model=asked.model,
        constitution=asked.constitution,
        scale=fitted.scale,
        weights=fitted.weights,
        length=fitted.length,
        method=fitted.method,
        pairs=", ".join(str(f) for f in files),
        fitted_on=tuple(sorted(p.key for p in asked.pairs)),
        measured=fitted.measured,
        warnings=fitted.warnings,
    )


def agreement(asked: Asked, seed: int) -> list[EvalResult]:
    """Return how far a judge, and each principle under it, agrees with people."""
    people = {p.key: p.people for p in asked.pairs}
    name = f"judge:{asked.protocol}"
    results = judge_agreement(name, {p.key: probability(p.pooled) for p in asked.pairs}, people, seed)
    for principle in sorted({i for p in asked.pairs for i in p.by_principle}):
        said = {p.key: probability(p.by_principle[principle]) for p in asked.pairs if principle in p.by_principle}
        results += judge_agreement(f"{name}/{principle}", said, people, seed)
    return results


def decided(labels: Sequence[HumanLabel], limit: int | None, seed: int) -> dict[str, HumanLabel]:
    """Return the pairs of which people prefer one side, at most `limit` of them, chosen by hash. Raises `DataError` where there is none."""
    people = {key: label for key, label in consensus(labels).items() if label.p_a != 0.5}
    if not people:
        raise DataError(f"{len(labels)} labels, and no pair of which people prefer one side")
    return {k: people[k] for k in sorted(people, key=lambda k: split_fraction(k, f"limit:{seed}"))[:limit]}


async def ask_judge(people: Mapping[str, HumanLabel], judge: Judge, window: int, reporter: Reporter) -> Asked:
    """Ask a judge about every pair that people decided.

    Args:
        people: what `decided` gave.
        judge: has one protocol.
        window: pairs in flight.
        reporter: shows progress; warns of pairs that could not be judged.

    Raises:
        DataError: no pair could be judged.
        ModelError: the model can't go on.
    """
    pairs, failed = await _ask(people, judge, window, reporter)
    if failed:
        reporter.warn(f"{judge.config.protocol}: {failed} pairs could not be judged and are left out")
    return Asked(judge.config.protocol, judge.model.fingerprint, judge.constitution.hash, tuple(pairs), failed)


async def _ask(people: Mapping[str, HumanLabel], judge: Judge, window: int, reporter: Reporter) -> tuple[list[Labelled], int]:
    failures: list[Failure] = []

    async def work(item: tuple[str, HumanLabel]) -> Labelled:
        key, label = item
        pooled, by_principle = await _opinions(judge, label.pair)
        return Labelled(key, prompt_key(label.pair.prompt), pooled, by_principle, length_difference(label.pair), label.p_a)

    flow = run_items(
        people.items(),
        work,
        window=window,
        max_failure_fraction=1.0,
        stage="judge",
        failures=failures,
        item_id=lambda item: item[0],
        on_progress=lambda done: reporter.progress(done, len(people), f"pairs by {judge.config.protocol}"),
    )
    pairs = [p async for p in flow]
    if not pairs:
        raise DataError(f"no pair could be judged: {failures[0].reason}: {failures[0].detail}")
    return pairs, len(failures)


async def _opinions(judge: Judge, pair: ResponsePair) -> tuple[float, dict[str, float]]:
    """Return the pooled log-odds and each principle's. Raises `ReplyError`."""
    principles = judge.principles(pair)
    opinions = await judge.opinions(pair, principles)
    by_principle = {p.id: o.log_odds for p, o in zip(principles, opinions, strict=True)}
    return judge.pooled(pair, principles, opinions).log_odds, by_principle
