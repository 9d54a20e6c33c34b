"""Compares a judge with human labels: `cai judge calibrate`, and the judges' part of `cai human agreement`."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cai.core.console import Reporter
from cai.core.flow import in_words, run_items
from cai.data.filters import prompt_key
from cai.data.splits import split_groups
from cai.errors import DataError
from cai.ids import split_fraction
from cai.judge.calibration import POOLING, Calibration, length_difference
from cai.judge.fitting import Labelled, check_enough, fit_calibration
from cai.judge.judge import Judge
from cai.judge.protocol import probability
from cai.labels.agreement import judge_agreement
from cai.labels.pooling import consensus
from cai.recipe import FeedbackConfig
from cai.records import EvalResult, Failure, HumanLabel, Prompt, ResponsePair

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One judge's log-odds for human-labelled pairs."""

    protocol: str
    model: str
    """Fingerprint of the judge."""
    constitution: str
    """Hash of the constitution."""
    pairs: tuple[Labelled, ...]
    failed: int
    """Number of pairs that could not be judged."""
    prompts: tuple[Prompt, ...] = ()
    """The prompts of the pairs, without repeats."""
    probe: str = ""
    """Hash of the probe that it judges by; empty without one."""


def check_labels(labels: Sequence[HumanLabel], limit: int | None, seed: int) -> None:
    """Raise `DataError` if there are too few labels, before any call of the judge."""
    prompts = [label.pair.prompt for label in decided(labels, limit, seed).values()]
    check_enough(list(map(split_groups(prompts), prompts)))


def fit(asked: Asked, config: FeedbackConfig, files: Sequence[Path], use_length: bool, seed: int) -> Calibration:
    """Fit a judge's calibration to human labels, and measure it by cross-validation.

    Args:
        asked: the judge's log-odds and the human labels.
        config: the judge's settings, which say how principles are drawn.
        files: files of the labels.
        use_length: whether to correct length bias too.
        seed: seed of the folds and the bootstrap.

    Raises:
        DataError: there are too few labels.
    """
    fitted = fit_calibration(asked.pairs, use_length, seed)
    return Calibration(
        protocol=asked.protocol,
        principles=config.principles,
        per_label=config.per_label,
        model=asked.model,
        probe=asked.probe,
        constitution=asked.constitution,
        scale=fitted.scale,
        weights=fitted.weights,
        length=fitted.length,
        method=fitted.method,
        pairs=", ".join(str(f) for f in files),
        fitted_on=tuple(sorted(p.key for p in asked.pairs)),
        fitted_prompts=tuple(p.messages for p in asked.prompts),
        measured=fitted.measured,
        warnings=fitted.warnings,
        pooling=POOLING,
    )


def agreement(asked: Asked, seed: int) -> list[EvalResult]:
    """Return a judge's agreement with annotators, overall and per principle."""
    people, groups = {p.key: p.people for p in asked.pairs}, {p.key: p.group for p in asked.pairs}
    name = f"judge:{asked.protocol}"
    results = judge_agreement(name, {p.key: probability(p.pooled) for p in asked.pairs}, people, seed, groups)
    for principle in sorted({i for p in asked.pairs for i in p.by_principle}):
        said = {p.key: probability(p.by_principle[principle]) for p in asked.pairs if principle in p.by_principle}
        results += judge_agreement(f"{name}/{principle}", said, people, seed, groups)
    return results


def decided(labels: Sequence[HumanLabel], limit: int | None, seed: int) -> dict[str, HumanLabel]:
    """Return the pairs with a majority for one response, at most `limit` of them, chosen by hash. Raises `DataError` if there is none."""
    people = {key: label for key, label in consensus(labels).items() if label.p_a != 0.5}
    if not people:
        raise DataError(f"{len(labels)} labels, and no pair of which people prefer one side")
    return {k: people[k] for k in sorted(people, key=lambda k: split_fraction(k, f"limit:{seed}"))[:limit]}


async def ask_judge(people: Mapping[str, HumanLabel], judge: Judge, window: int, reporter: Reporter) -> Asked:
    """Judge all pairs with a majority of annotators.

    Args:
        people: the result of `decided`.
        window: maximum number of pairs in progress.
        reporter: shows progress, and warns about pairs that could not be judged.

    Raises:
        ModelError: no pair could be judged, or the model fails.
    """
    pairs, failed = await _ask(people, judge, window, reporter)
    if failed:
        reporter.warn(f"{judge.config.protocol}: {len(failed)} pairs could not be judged and are left out: {in_words(failed)}")
    prompts = {prompt_key(people[p.key].pair.prompt): people[p.key].pair.prompt for p in pairs}
    found = tuple(prompts.values())
    probe = "" if judge.probe is None else judge.probe.hash
    return Asked(judge.config.protocol, judge.model.fingerprint, judge.constitution.hash, tuple(pairs), len(failed), found, probe)


async def _ask(people: Mapping[str, HumanLabel], judge: Judge, window: int, reporter: Reporter) -> tuple[list[Labelled], list[Failure]]:
    group_of = split_groups(label.pair.prompt for label in people.values())

    async def work(item: tuple[str, HumanLabel]) -> Labelled:
        key, label = item
        pooled, by_principle = await _opinions(judge, label.pair)
        return Labelled(key, group_of(label.pair.prompt), pooled, by_principle, length_difference(label.pair), label.p_a)

    return await read_each(people, work, window, reporter, f"pairs by {judge.config.protocol}")


async def read_each(
    people: Mapping[str, HumanLabel],
    work: Callable[[tuple[str, HumanLabel]], Awaitable[T]],
    window: int,
    reporter: Reporter,
    what: str,
) -> tuple[list[T], list[Failure]]:
    """Run labelled pairs through a model. Those that fail are returned beside the results.

    Args:
        people: labels by the pairs' keys.
        work: asks the model about one.
        window: maximum number of pairs in progress.
        reporter: shows progress.
        what: names the pairs in progress.

    Raises:
        ModelError: all pairs failed, or the model can't go on.
    """
    failures: list[Failure] = []
    flow = run_items(
        people.items(),
        work,
        window=window,
        max_failure_fraction=1.0,
        stage="judge",
        failures=failures,
        item_id=lambda item: item[0],
        on_progress=lambda done: reporter.progress(done, len(people), what),
    )
    return [result async for result in flow], failures


async def _opinions(judge: Judge, pair: ResponsePair) -> tuple[float, dict[str, float]]:
    """Return the pooled log-odds and each principle's. Raises `ReplyError`."""
    principles = judge.principles(pair)
    opinions = await judge.opinions(pair, principles)
    by_principle = {p.id: o.log_odds for p, o in zip(principles, opinions, strict=True)}
    return judge.pooled(pair, principles, opinions).log_odds, by_principle
