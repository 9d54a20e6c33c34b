"""`cai audit RUN` and the audit at the end of `evaluate`: gathers what the checks in `cai.evaluate.audit` read.

Findings are corrected for their number within one family: everything asked about one model, one reward model, the labels, or the judge.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from cai.constitution.load import load_constitution
from cai.core.console import Reporter
from cai.core.flow import together
from cai.core.interrupt import run_interruptible
from cai.core.jsonl import read_existing, read_records, write_records
from cai.core.text.words import word_count
from cai.core.workspace import PAIR_FILES, RunDirectory
from cai.data.splits import conversation_id
from cai.errors import NoLogprobsError
from cai.evaluate.audit.asking import ask_probes
from cai.evaluate.audit.battery import audit_model
from cai.evaluate.audit.behaviours import Behaviour, judge_behaviours, judged_readings, load_behaviours
from cai.evaluate.audit.check import Answers
from cai.evaluate.audit.evidence import audit_judgments, audit_labels, audit_samples, length_in_scores, responses_of
from cai.evaluate.audit.finding import Measurement, Subject, compare, judge_level, settle
from cai.evaluate.audit.judge_bias import PICKS_LIKELIER, PICKS_LONGER, taste
from cai.evaluate.audit.probes import EVALUATION, Probes, load_probes
from cai.evaluate.audit.reward_probes import Items, Score, probe_reward
from cai.evaluate.policies import AGAINST, MODELS
from cai.judge.bench import LabelledPair, labelled_pairs
from cai.judge.fitted import unseen_by
from cai.labels.load import limited, load_pairs
from cai.models.naming import spec_from_name
from cai.recipe import ModelSpec, Recipe, RewardConfig
from cai.records import AuditFinding, Judgment, Message, Preference, Response, ResponsePair, RewardScore, Sample
from cai.session import Session

REWARD_ANSWERS = 48
"""Answers that a reward model is probed on, at most."""
SCORED_TOGETHER = 64
"""Answers and rewrites that are scored at once: those of one answer begin alike."""
AUDIT = "audit"
"""The run's file of findings: `data/audit.jsonl`."""


def audit_files(run: RunDirectory, recipe: Recipe, reporter: Reporter | None = None) -> list[AuditFinding]:
    """Audit what a run's files hold, asking no model but its reward models. What isn't there is left out."""
    findings: list[AuditFinding] = []
    seed = recipe.seed
    samples = list(read_existing(run.data("samples"), Sample))
    findings += audit_samples(samples, seed)
    if run.data("preferences").exists():
        findings += audit_labels(list(read_records(run.data("preferences"), Preference)), seed)
    if run.data("judgments").exists() and run.data("pairs").exists():
        pairs = [p for name in PAIR_FILES for p in read_existing(run.data(name), ResponsePair)]
        findings += audit_judgments(read_records(run.data("judgments"), Judgment), pairs, seed)
    answers = list((responses_of(samples, "sft") or responses_of(samples, AGAINST)).values())  # what the reward is used on
    answers = answers or list(read_existing(run.data("responses"), Response))  # before anything was evaluated
    answers = answers[:REWARD_ANSWERS]
    folders = sorted(f for f in (run.path / "models").glob("reward-*") if (f / "adapter_config.json").exists())
    if len(answers) > 1 and folders:
        in_scores = judge_level(length_in_scores(samples), Subject("reward-0", seed=seed))
        for subject, score in reward_scores(folders, recipe.reward, reporter):
            first = [in_scores] if subject == "reward-0" else []
            findings += settle([*first, *probe_reward(score, answers, subject, seed)])
    return findings


def reward_scores(folders: Sequence[Path], config: RewardConfig, reporter: Reporter | None = None) -> list[tuple[str, Score]]:
    """Return each reward model by its folder's name, and, where there are several, `reward` for the ensemble of them all.

    What all members said of an answer is remembered, so that looking at each alone costs nothing more.
    """
    from cai.train.reward.ensemble import load_ensemble

    ensemble = load_ensemble(list(folders), aggregate=config.aggregate, penalty=config.uncertainty_penalty)
    known: dict[tuple[tuple[Message, ...], str], RewardScore] = {}

    def look_up(items: Items) -> list[RewardScore]:
        keys = [(tuple(messages), text) for messages, text in items]
        new = [k for k in dict.fromkeys(keys) if k not in known]
        for start in range(0, len(new), SCORED_TOGETHER):
            part = new[start : start + SCORED_TOGETHER]
            known.update(zip(part, ensemble.score(part), strict=True))
            if reporter is not None:
                reporter.progress(len(known), None, "answers and rewrites of them scored")
        return [known[k] for k in keys]

    def member(index: int) -> Score:
        return lambda items: [s.members[index] for s in look_up(items)]

    alone = [(folder.name, member(i)) for i, folder in enumerate(folders)]
    return [*alone, ("reward", lambda items: [s.value for s in look_up(items)])] if len(folders) > 1 else alone


def audit_run(
    session: Session, run: RunDirectory, limit: int | None = None, prompts: Sequence[str] = (), reader: str | None = None
) -> list[AuditFinding]:
    """Audit a run in full: its files, and its models' answers to the probe sets; leave the findings in `data/audit.jsonl`.

    Args:
        session: one with the run's recipe, in a `with` block. No event loop may be running: in a notebook, use `cai audit`.
        run: the run's directory, such as `cai.run(…).directory`.
        limit: probes per set; None asks them all, 0 none: then only the run's files and its reward models are audited.
        prompts: files to use for the refusal rates in place of the evaluation prompts.
        reader: a model that is also asked how the answers behave; the run's own judge may be what the policy learned to please.

    Returns:
        The findings, each with its threshold and interval.

    Raises:
        CaiError: the probes or a model can't be read.
    """
    recipe, root, reporter = session.recipe, session.workspace.root, session.reporter
    trained = [name for name in MODELS[1:] if (run.model(name) / "adapter_config.json").exists()]
    specs = {AGAINST: recipe.trained, **{name: replace(recipe.trained, adapter=str(run.model(name))) for name in trained}}
    probes = load_probes(root, limit or None, recipe.seed, tuple(prompts) or EVALUATION)
    behaviours = load_behaviours(root) if reader is not None else ()

    async def ask() -> list[AuditFinding]:
        answers = await ask_models(session, specs, probes)
        judged = await ask_reader(session, reader, behaviours, answers, probes)
        findings: list[AuditFinding] = []
        for name, mine in answers.items():
            base = None if name == AGAINST else answers[AGAINST]
            findings += audit_model(probes, mine, base, Subject(name, AGAINST, recipe.seed), judged.get(name, ()))
        return findings + await audit_judge(session)

    with reporter.stage("audit"), run.locked():
        if reader is not None and (limit == 0 or not trained):
            why = "with --limit 0 no model answers" if limit == 0 else "there is no trained model yet whose answers it could compare"
            reporter.warn(f"the judge {reader} is not asked: {why}")
        asked = [] if limit == 0 else run_interruptible(ask(), reporter)
        findings = on_most_items([*asked, *audit_files(run, recipe, reporter)])
        if fewer := _on_fewer_items(run, findings):
            reporter.warn(
                f"{fewer} findings of the last audit rest on more items than now, or weren't looked for, and are replaced: "
                f"`cai audit {run.path.name}` without --limit makes them again, mostly from kept calls"
            )
        write_records(run.data(AUDIT), findings)
    session.warn_of_failures()
    return findings


def on_most_items(findings: Sequence[AuditFinding]) -> list[AuditFinding]:
    """Return one finding for each question about each subject: that on the most items, the first of several on as many."""
    best: dict[tuple[str, str], AuditFinding] = {}
    for f in findings:
        key = (f.subject, f.check)
        if key not in best or f.n > best[key].n:
            best[key] = f
    return list(best.values())


def _on_fewer_items(run: RunDirectory, findings: Sequence[AuditFinding]) -> int:
    """Return how many findings of the audit on disk rest on more items than these do."""
    n = {(f.subject, f.check): f.n for f in findings}
    return sum(f.n > n.get((f.subject, f.check), 0) for f in read_existing(run.data(AUDIT), AuditFinding))


async def ask_models(session: Session, specs: dict[str, ModelSpec], probes: Probes) -> dict[str, Answers]:
    """Return every model's answers to the probes, one model in memory at a time."""
    answers = {}
    for name, spec in specs.items():
        answers[name] = await ask_probes(session, probes, await session.open_model(spec), name)
        await session.close_models()
    return answers


async def ask_reader(
    session: Session, reader: str | None, behaviours: Sequence[Behaviour], answers: dict[str, Answers], probes: Probes
) -> dict[str, list[tuple[Measurement, Measurement]]]:
    """Return what a judge reads in each model's answers beside the reference's, by the model's name; empty without either."""
    if reader is None or len(answers) < 2:
        return {}
    judge = await session.open_model(spec_from_name(reader))
    controls = await judge_behaviours(session, judge, behaviours, probes, answers[AGAINST], AGAINST, control=True)
    said = {name: await judge_behaviours(session, judge, behaviours, probes, answers[name], name) for name in answers}
    await session.close_models()
    theirs = answers[AGAINST], said[AGAINST]
    return {n: judged_readings(behaviours, probes, (answers[n], said[n]), theirs, controls) for n in answers if n != AGAINST}


async def audit_judge(session: Session) -> list[AuditFinding]:
    """Audit a run's judge on its human-labelled pairs: its taste for length and for what sounds like itself, beside people's.

    The verdicts are those that measured the judge in the run, so they come from the call store; only likelihoods are new. As there, a
    calibrated judge, or a probe, is not looked at on the pairs that it was fitted on.
    """
    recipe, root = session.recipe, session.workspace.root
    config = recipe.feedback
    if config.bench_pairs is None:
        return []
    judge = await session.open_judge(load_constitution(root / recipe.constitution))
    unseen = unseen_by(judge.fitted, load_pairs(root / config.bench_pairs).preferences)
    labelled = labelled_pairs(limited(unseen, config.bench_limit, recipe.seed), recipe.seed)

    async def work(item: LabelledPair) -> tuple[LabelledPair, Judgment, float | None]:
        judgment = await judge(item.pair)
        messages = item.pair.prompt.messages
        try:
            a, b = await together(judge.model.score(messages, text) for text in (item.pair.response_a, item.pair.response_b))
        except NoLogprobsError:
            return item, judgment, None
        return item, judgment, a.total / a.tokens - b.total / b.tokens

    found = await session.each(labelled, work, "pairs judged", failure_of=lambda r: r[1].failed, may_all_fail=True)
    await session.close_models()
    judged = {item.id: j.p_a for item, j, _ in found if j.p_a is not None}
    people = {item.id: item.a_is_better for item, _, _ in found}
    likelier = {item.id: difference for item, _, difference in found if difference is not None}
    longer = {item.id: float(word_count(item.pair.response_a) - word_count(item.pair.response_b)) for item, _, _ in found}
    tastes = [taste(PICKS_LONGER, longer, judged, people)]
    if likelier:
        tastes.append(taste(PICKS_LIKELIER, likelier, judged, people))
    else:
        session.reporter.warn("the judge's taste for likely texts is not measured: its server doesn't give the likelihood of a text")
    talks = {item.id: conversation_id(item.pair.prompt) for item, _, _ in found}
    about = Subject("judge", "people", recipe.seed)
    return settle(compare(dataclasses.replace(mine, talks=talks), theirs, about) for mine, theirs in tastes)
