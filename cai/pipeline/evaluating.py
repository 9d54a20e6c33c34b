"""The stages that look at what came of a run: answers of each model to held-out prompts, judged and measured, and the report."""

from cai.constitution.load import load_constitution
from cai.core.jsonl import write_records, write_text
from cai.core.manifest import TEXTS, TRUNCATED
from cai.data.prompts import split_monitored
from cai.evaluate.adherence import measure_adherence
from cai.evaluate.adherence_table import adherence_report
from cai.evaluate.audit.run import AUDIT, audit_files
from cai.evaluate.knowledge import load_knowledge
from cai.evaluate.policies import AGAINST, MODELS
from cai.evaluate.run import Questions, answer, judge_answers, measure, score_answers
from cai.models.opening import release_memory
from cai.pipeline.context import Context
from cai.pipeline.methods import is_watched
from cai.pipeline.reward_models import load_rewards, run_accuracies
from cai.pipeline.tracking import PIPELINE
from cai.records import Prompt


async def evaluate_stage(c: Context) -> dict[str, int]:
    """Sample all models' responses to held-out prompts; judge, score and measure them; audit the run's files."""
    session = c.session
    monitored, prompts = _evaluation_prompts(c)
    limit = c.recipe.evaluate.knowledge
    facts, passages = ((), ()) if limit == 0 else load_knowledge(c.root, limit, c.recipe.seed)
    trained = [m for m in MODELS[1:] if m != "blend" or c.recipe.blend is not None]
    specs = {AGAINST: c.recipe.trained, **{name: c.adapted(name) for name in trained}}
    said = await answer(session, specs, Questions(prompts, facts, passages), c.settings_hash)
    judge, name = await c.judge(), c.recipe.evaluate.controls
    verdicts = await judge_answers(session, said.answers, judge)
    trusted = judge if c.manifest.judge is not None and c.manifest.judge.beats_baselines else None
    controls = None if name is None else load_constitution(c.root / name)
    adherence = await measure_adherence(session, c.constitution, controls, said.answers, c.recipe.trained, trusted)
    await session.close_models()
    scores = score_answers(said.answers, load_rewards(c.recipe, c.run))
    measured = measure(said, verdicts, scores, c.recipe.seed)
    results = [*measured.results, *adherence, *run_accuracies(c.run)]
    write_records(c.run.data("evaluation"), results)
    write_records(c.run.data("samples"), measured.samples)
    write_records(c.run.data("adherence"), adherence_report(results).principles)
    figures = {f"evaluation/{r.model}/{r.name}{end}": v for r in results for end, v in (("", r.value), ("_low", r.low), ("_high", r.high))}
    c.tracking.log(PIPELINE, figures)
    release_memory()  # the audit loads the reward models once more
    findings = audit_files(c.run, c.recipe, c.reporter)
    write_records(c.run.data(AUDIT), findings)  # not among `writes`: `cai audit` replaces it with more
    left_out = {"watched_prompts_left_out": len(monitored)} if monitored else {}
    texts = [response.truncated for responses in said.answers.values() for response in responses]
    left_out |= {TEXTS: len(texts), TRUNCATED: sum(texts)}
    return {"prompts": len(prompts), **left_out, "measures": len(results), "audit_findings": sum(f.verdict == "found" for f in findings)}


def _evaluation_prompts(c: Context) -> tuple[list[Prompt], list[Prompt]]:
    """Return the monitor's prompts, on which the policy's weights were selected, and the prompts to evaluate on."""
    prompts = list(c.read("eval_prompts", Prompt))
    if not is_watched(c.recipe):
        return [], prompts
    return split_monitored(prompts, c.recipe.policy.watch.prompts, c.recipe.seed)


def report_stage(c: Context) -> dict[str, int]:
    """Write report.html."""
    from cai.report.collect import collect_report
    from cai.report.page import render_report

    write_text(c.run.report, render_report(collect_report(c.run.path)))
    return {}
