"""A judge beside people's labels: `cai judge calibrate`, and the judges' part of `cai human agreement`. Over the workspace's call store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from cai.constitution.load import load_constitution
from cai.core.console import Reporter
from cai.core.flow import run_items
from cai.core.interrupt import run_interruptible
from cai.core.jsonl import refuse_overwriting
from cai.core.workspace import find_workspace
from cai.data.filters import prompt_key
from cai.errors import DataError
from cai.ids import split_fraction
from cai.judge.bench import chosen_protocols
from cai.judge.calibration import Calibration, length_difference, write_calibration
from cai.judge.fitting import Labelled, check_enough, fit_calibration
from cai.judge.judge import Judge
from cai.judge.protocol import probability
from cai.labels.agreement import judge_agreement
from cai.labels.annotating import read_label_files
from cai.labels.pooling import consensus
from cai.models.base import TextModel
from cai.models.naming import spec_from_name
from cai.models.opening import open_engine
from cai.models.store import CallStore
from cai.models.templates import load_templates
from cai.recipe import FeedbackConfig, Recipe
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


def calibrate_judge(
    files: Sequence[Path],
    protocol: str,
    model: str,
    constitution: Path,
    config: FeedbackConfig,
    out: Path,
    *,
    use_length: bool,
    format: str,
    limit: int | None,
    seed: int,
    reporter: Reporter,
) -> Calibration:
    """Fit a judge's calibration to people's labels, measure it by cross-validation, and write it.

    Args:
        files: labels or labelled pairs, in any format.
        protocol: one judging protocol.
        model: the judge's name.
        constitution: whose principles are asked.
        config: how principles are drawn.
        out: file to write.
        use_length: also correct for a liking for long or short answers.
        format: of the files.
        limit: use this many pairs, chosen by hash.
        seed: of the draw, the folds and the bootstrap.
        reporter: shows progress.

    Raises:
        CaiError: files, constitution or model can't be read, or there are too few labels.
    """
    refuse_overwriting(out, files)
    names = chosen_protocols(protocol)
    if len(names) != 1:
        raise DataError(f"--protocol {protocol}: expected one protocol to calibrate")
    labels, failures, _ = read_label_files(files, format)
    if failures:
        reporter.warn(f"{len(failures)} rows can't be used, the first: {failures[0].item_id}: {failures[0].reason}")
    check_enough([prompt_key(label.pair.prompt) for label in decided(labels, limit, seed).values()])
    (asked,) = ask_judges(labels, names, model, constitution, config, limit, seed, reporter)
    if asked.failed:
        reporter.warn(f"{asked.failed} pairs could not be judged and are left out")
    fitted = fit_calibration(asked.pairs, use_length, seed)
    calibration = Calibration(
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
    write_calibration(out, calibration)
    return calibration


def judges_beside_people(
    labels: Sequence[HumanLabel],
    protocols: str,
    model: str,
    constitution: Path,
    config: FeedbackConfig,
    limit: int | None,
    seed: int,
    reporter: Reporter,
) -> list[EvalResult]:
    """Return how far each protocol, and each principle under it, agrees with people."""
    results: list[EvalResult] = []
    for asked in ask_judges(labels, chosen_protocols(protocols), model, constitution, config, limit, seed, reporter):
        people = {p.key: p.people for p in asked.pairs}
        name = f"judge:{asked.protocol}"
        if asked.failed:
            reporter.warn(f"{name}: {asked.failed} pairs could not be judged and are left out")
        results += judge_agreement(name, {p.key: probability(p.pooled) for p in asked.pairs}, people, seed)
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


def ask_judges(
    labels: Sequence[HumanLabel],
    protocols: Sequence[str],
    model: str,
    constitution: Path,
    config: FeedbackConfig,
    limit: int | None,
    seed: int,
    reporter: Reporter,
) -> list[Asked]:
    """Ask one model about every pair that people decided, under each protocol.

    Raises:
        DataError: people decided no pair.
        CaiError: the constitution or the model can't be read.
    """
    people = decided(labels, limit, seed)
    workspace = find_workspace(constitution.parent)
    principles = load_constitution(constitution)
    defaults = Recipe(name="calibrate")
    templates = load_templates(workspace.root / defaults.templates)

    async def ask_all() -> list[Asked]:
        found = []
        with CallStore(workspace.store_path) as store:
            engine = await open_engine(spec_from_name(model))
            try:
                for name in protocols:
                    judge = Judge(replace(config, protocol=name), principles, TextModel(engine, store, "calibrate"), templates, seed)
                    pairs, failed = await _ask(people, judge, defaults.window, reporter)
                    found.append(Asked(name, engine.fingerprint, principles.hash, tuple(pairs), failed))
            finally:
                await engine.close()
        return found

    with reporter.stage("judge"):
        return run_interruptible(ask_all(), reporter)


async def _ask(people: dict[str, HumanLabel], judge: Judge, window: int, reporter: Reporter) -> tuple[list[Labelled], int]:
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
