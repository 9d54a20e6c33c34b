"""`cai judge bench`, `calibrate` and `fit`, `cai evaluate` and the arena: measurements outside a run, with the workspace's call store."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from cai.core.jsonl import refuse_overwriting, refuse_replacing
from cai.core.manifest import JudgeCard
from cai.errors import DataError, ModelError, RecipeError
from cai.evaluate.adherence import measure_adherence
from cai.evaluate.adherence_table import AdherenceReport, adherence_report
from cai.evaluate.arena import Arena
from cai.evaluate.knowledge import load_knowledge
from cai.evaluate.policies import AGAINST, Verdicts
from cai.evaluate.refusal_rates import not_measured
from cai.evaluate.rewards import folder_accuracies
from cai.evaluate.run import Questions, answer, hold_arena, judge_answers, measure, score_answers
from cai.judge.bench import JudgeBench, chosen_protocols, judge_bench
from cai.judge.calibrating import agreement, ask_judge, check_labels, decided, fit
from cai.judge.calibration import Calibration, read_calibration, write_calibration
from cai.judge.card import card_of
from cai.judge.fitted import FittedToLabels, unseen, unseen_by
from cai.judge.fitting import check_enough
from cai.judge.probe import Probe, probe_of, read_probe, weights_path, write_probe
from cai.judge.probing import as_probe, fit_probe, read_states
from cai.labels.annotating import read_label_files
from cai.labels.load import limited, load_pairs
from cai.labels.pooling import pair_key
from cai.models.base import NO_STATES
from cai.models.naming import spec_from_name
from cai.recipe import ModelSpec
from cai.records import Constitution, EvalResult, Failure, HumanLabel, Preference, Prompt, PromptKind
from cai.session import Session


def labelled_pairs_of(
    path: Path, pair_format: str, limit: int | None, session: Session, kind: PromptKind | None = None
) -> list[Preference]:
    """Read human-labelled pairs, without those that the session's probe was fitted on, and warn about unusable rows."""
    loaded = load_pairs(path, pair_format, kind)
    if loaded.failures:
        session.reporter.warn(f"{path}: {_unusable(loaded.failures)}")
    if loaded.unused:
        session.reporter.say(f"{path}: columns not used: {', '.join(loaded.unused)}")
    probe = probe_of(session.recipe.feedback, session.workspace.root)
    unseen = unseen_by([probe] if probe is not None else [], loaded.preferences)
    if left_out := len(loaded.preferences) - len(unseen):
        session.reporter.say(f"{path}: {left_out} pairs are left out, because the probe was fitted on them or on their prompts")
        if not unseen:
            raise DataError(f"{path}: the probe was fitted on all of these pairs, so they can't measure it. Name others in --pairs")
    return list(limited(unseen, limit, session.recipe.seed))


def _unusable(failures: Sequence[Failure]) -> str:
    """Say how many rows of a file can't be used for which reasons, and what is wrong with the first."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(f.reason for f in failures).most_common())
    rows, first = f"{len(failures)} row{'s' if len(failures) > 1 else ''}", failures[0]
    return f"{rows} can't be used ({reasons}); the first: {first.item_id}: {first.reason}: {first.detail}"


async def bench_judge(
    session: Session, pairs: Sequence[Preference], protocols: str, constitution: Constitution, both_placements: bool = False
) -> JudgeBench:
    """Measure the agreement of the session's judge with human labels, per protocol, beside trivial baselines.

    Args:
        session: an open session; its judge is measured.
        pairs: human-labelled pairs, as `load_pairs` reads them; those at exactly ½ are skipped and counted.
        protocols: `all`, or names separated by commas.
        constitution: its principles are asked.
        both_placements: measure each protocol whose templates have a system turn with its instructions in the user's turn too.

    Raises:
        RecipeError: there is no such protocol.
        DataError: there is no pair with a preferred response.
        ModelError: the model fails, or no protocol judged any pair. Failures of single pairs are counted in the result.
    """
    judges = []
    for name in chosen_protocols(protocols, session.recipe.feedback):
        judge = session.judge(constitution, protocol=name)
        moved = dataclasses.replace(judge, templates=judge.templates.placed("user"))
        judges += [judge, moved] if both_placements and moved.label != judge.label else [judge]
    return await judge_bench(
        pairs,
        judges,
        window=session.recipe.window,
        on_progress=lambda done, total, name: session.reporter.progress(done, total, f"pairs by {name}"),
    )


def calibrate_judge(
    session: Session, files: Sequence[Path], constitution: Constitution, out: Path, *, use_length: bool, format: str, limit: int | None
) -> Calibration:
    """Fit the calibration of the session's judge to human labels, measure it by cross-validation, and write it.

    Args:
        session: a session with the judge's protocol, not open yet: the number of labels is checked before any model call.
        limit: maximum number of pairs, chosen by hash.
    """
    refuse_overwriting([out], files)
    refuse_replacing(out, read_calibration)
    seed, config = session.recipe.seed, session.recipe.feedback
    probe = probe_of(config, session.workspace.root)
    people = _labels_to_fit(session, files, format, limit, [probe] if probe is not None else [])

    async def work(opened: Session) -> Calibration:
        asked = await ask_judge(people, opened.judge(constitution), opened.recipe.window, opened.reporter)
        return fit(asked, config, files, use_length, seed)

    calibration = session.run(work, "judge")
    write_calibration(out, calibration)
    return calibration


def fit_judge_probe(session: Session, files: Sequence[Path], out: Path, *, format: str, limit: int | None) -> Probe:
    """Fit a probe on the hidden states of the session's judge to human labels, measure it by cross-validation, and write its two files.

    Args:
        session: a session with the judge, not open yet: the number of labels is checked before any model call.
        out: JSON file to write; the weights go beside it.
        limit: maximum number of pairs, chosen by hash.
    """
    refuse_overwriting([out, weights_path(out)], files)
    refuse_replacing(out if out.exists() else weights_path(out), lambda path: read_probe(out))
    spec = session.recipe.judge
    if spec.is_server:
        raise ModelError(NO_STATES.format(name=spec.path))
    people = _labels_to_fit(session, files, format, limit)

    async def work(opened: Session) -> Probe:
        model = opened.judge_model
        pairs = await read_states(people, model, opened.recipe.window, opened.reporter)
        check_enough([p.group for p in pairs])
        fitted = fit_probe(pairs, opened.recipe.seed)
        return as_probe(fitted, people, [p.key for p in pairs], model, spec.precision, ", ".join(str(f) for f in files))

    probe = session.run(work, "judge")
    write_probe(out, probe)
    return probe


def _labels_to_fit(
    session: Session, files: Sequence[Path], format: str, limit: int | None, fitted: Sequence[FittedToLabels] = ()
) -> dict[str, HumanLabel]:
    """Return the pairs with a majority for one response to which nothing was `fitted` yet. Raises `DataError` if there are too few."""
    seed, reporter = session.recipe.seed, session.reporter
    labels, failures, _ = read_label_files(files, format)
    if failures:
        reporter.warn(_unusable(failures))
    if fitted:
        kept = unseen(fitted, labels, pair_key, lambda label: label.pair.prompt)
        if len(kept) < len(labels):
            reporter.say(f"{len(labels) - len(kept)} labels are left out, because the probe was fitted on them or on their prompts")
        if not kept:
            raise DataError(
                f"the probe was fitted on all of these {len(labels)} labels, so they can't calibrate it. Name others in --pairs"
            )
        labels = tuple(kept)
    check_labels(labels, limit, seed)
    return decided(labels, limit, seed)


async def judges_beside_people(
    session: Session, labels: Sequence[HumanLabel], protocols: str, constitution: Constitution, limit: int | None
) -> list[EvalResult]:
    """Return the agreement with annotators of each protocol of the session's judge, overall and per principle."""
    people = decided(labels, limit, session.recipe.seed)
    results: list[EvalResult] = []
    for name in chosen_protocols(protocols, session.recipe.feedback):
        asked = await ask_judge(people, session.judge(constitution, protocol=name), session.recipe.window, session.reporter)
        results += agreement(asked, session.recipe.seed)
    return results


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of `cai evaluate`, and the judge behind them."""

    judge: str
    """Name of the judge."""
    card: JudgeCard | None
    """The judge's agreement with human labels; None if nothing was judged."""
    results: tuple[EvalResult, ...]
    not_measured: tuple[tuple[str, str, str], ...] = ()
    """Measures without a figure because of the responses' language: name, model, and why."""


async def evaluate_models(
    session: Session,
    model: str,
    against: str | None,
    constitution: Constitution,
    rewards: Sequence[Path] = (),
    limit: int | None = None,
) -> Evaluation:
    """Measure a model on the evaluation prompts, compared with another (called `base`) if one is given.

    If the judge compares anything, it is first measured on human-labelled pairs.

    Args:
        session: an open session. Its judge is calibrated if the recipe names a calibration.
        model: model to measure, as `spec_from_name` takes it.
        against: model to compare with, or None.
        constitution: the principles to judge by.
        rewards: folders of reward models, which score as one ensemble; without any, no rewards are measured.
        limit: maximum number of prompts per set; None uses all.

    Raises:
        CaiError: a model or the prompts can't be read.
    """
    recipe, root = session.recipe, session.workspace.root
    names = {"model": model} if against is None else {AGAINST: against, "model": model}
    facts, passages = load_knowledge(root, limit, recipe.seed)
    answered = await answer(session, specs_of(names), Questions(evaluation_prompts(session, limit), facts, passages))
    judge = await session.open_judge(constitution)
    card = None
    if against is not None:
        card, _ = await card_of(recipe, root, judge, session.reporter)
    verdicts = await judge_answers(session, answered.answers, judge)
    trusted = judge if card is not None and card.beats_baselines else None
    base = spec_from_name(model if against is None else against)
    adherence = await measure_adherence(session, constitution, None, answered.answers, base, trusted)
    scores = score_answers(answered.answers, await session.load_rewards(rewards)) if rewards else None
    calibrated = recipe.feedback.calibration
    weighed = "by an uncalibrated judge (--calibration)" if calibrated is None else f"by the judge, calibrated with {Path(calibrated).name}"
    measured = measure(answered, verdicts, scores, recipe.seed)
    results = [with_note(r, weighed) if r.name.startswith("win_rate_by_judge") else r for r in measured.results]
    results += adherence
    kinds = {r.prompt.kind for responses in answered.answers.values() for r in responses}
    unread = tuple(not_measured(results, kinds))
    return Evaluation(judge.model.engine.name, card, (*results, *folder_accuracies(rewards)), unread)


async def adherence_of_models(
    session: Session,
    model: str,
    against: str | None,
    constitution: Constitution,
    judged: bool = False,
    limit: int | None = None,
) -> AdherenceReport:
    """Measure how often models' responses to the evaluation prompts follow each principle.

    Args:
        session: an open session.
        model: model to measure; it is also asked with each principle in context, unless it is compared with another.
        against: model to compare with, which is then the one that is told; or None.
        constitution: the principles.
        judged: whether the session's judge decides on principles without a check, if it beats the baselines on human labels.
        limit: maximum number of prompts per set; None uses all.

    Raises:
        DataError: no principle can be measured.
        CaiError: a model or the prompts can't be read.
    """
    names = {AGAINST: model} if against is None else {AGAINST: against, "policy": model}
    answered = await answer(session, specs_of(names), Questions(evaluation_prompts(session, limit)))
    results = measure(answered, Verdicts()).results
    judge = await session.open_judge(constitution) if judged else None
    if judge is not None:
        card, _ = await card_of(session.recipe, session.workspace.root, judge, session.reporter)
        if card is None or not card.beats_baselines:
            why = "there are no pairs to measure the judge on" if card is None else card.note
            session.reporter.warn(f"principles without a check are left out: {why}")
            judge = None
    adherence = await measure_adherence(session, constitution, None, answered.answers, spec_from_name(names[AGAINST]), judge)
    report = adherence_report([*results, *adherence])
    if not report.principles:
        raise DataError(f"{constitution.id}: no principle has a check. Name a judge that beats the baselines with --judge")
    return report


def specs_of(names: Mapping[str, str]) -> dict[str, ModelSpec]:
    """Return the model specs of some names, by label."""
    return {label: spec_from_name(name) for label, name in names.items()}


def evaluation_prompts(session: Session, limit: int | None) -> tuple[Prompt, ...]:
    """Return the recipe's evaluation prompts, at most `limit` of each set."""
    sources = session.recipe.prompts.evaluate
    if limit is not None:
        sources = tuple(replace(s, limit=limit) for s in sources)
    return session.load_prompts(sources)


def with_note(result: EvalResult, text: str) -> EvalResult:
    """Return a result with a text appended to its note."""
    return dataclasses.replace(result, note="; ".join(filter(None, (result.note, text))))


async def rank_models(
    session: Session, models: Sequence[str], constitution: Constitution, rewards: Sequence[Path], limit: int | None
) -> list[Arena]:
    """Compare all pairs of models on the evaluation prompts, and rate the models by the outcomes.

    Args:
        session: an open session; its judge compares.
        models: two or more different models, as `spec_from_name` takes them.
        rewards: folders of reward models, which score as one ensemble.
        limit: maximum number of prompts per set.

    Returns:
        The ratings by the judge and, if there are reward models, by them.
    """
    if len(set(models)) < max(2, len(models)):
        raise RecipeError(f"--arena: expected two or more different models, found {', '.join(models) or 'none'}")
    answered = await answer(session, specs_of({m: m for m in models}), Questions(evaluation_prompts(session, limit)))
    return await hold_arena(session, answered.answers, await session.open_judge(constitution), rewards)
