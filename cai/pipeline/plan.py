"""What a run will cost, before anything runs: calls, tokens, seconds, memory and money per stage.

Calls are upper bounds (nothing reused or dropped). Tokens are estimated from texts' lengths and sampling limits. Times come from what this
machine did in earlier runs, per stage and counted work; for stages without one, from a probe (`cai.pipeline.speed`). A server's is unknown.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

from msgspec import UNSET, structs

from cai.constitution.load import load_constitution
from cai.core.jsonl import read_records
from cai.core.manifest import machine_facts, read_manifest
from cai.core.stages import STAGE_INFO
from cai.core.text.checks import can_be_added
from cai.core.workspace import Workspace
from cai.data.prompts import SkippedRows, load_all, stream_prompts
from cai.errors import CaiError
from cai.evaluate.audit.rewriting import REWRITES
from cai.evaluate.audit.run import REWARD_ANSWERS
from cai.generate.distill import BEGINNING_TOKENS
from cai.labels.load import load_pairs
from cai.models.base import PairTokens, Work
from cai.models.templates import CONVERSATIONS, Template, Value, load_templates
from cai.pipeline.costs import MEAN_FILL, Costs, StagePlan, Tokens, joined, written
from cai.pipeline.methods import METHODS
from cai.pipeline.setup_check import check_setup
from cai.pipeline.speed import Rates, device, nominal_rates, probe
from cai.recipe import Precision, Recipe, load_recipe
from cai.records import Constitution, Prompt, PromptKind

CHARACTERS_PER_TOKEN = 4.3
TURN_TOKENS, SYSTEM_TOKENS = 6, 24
"""That a chat template puts around a turn and to open the answer; of the system prompt that some put first."""
FACT_TOKENS, REWRITE_TOKENS = 48, 25
"""Longest answer to a question with a known answer; what a rewrite of the audit adds to an answer, on average."""


@dataclass(frozen=True)
class Plan:
    """A run's cost: stages in order, totals, and what the times rest on."""

    stages: tuple[StagePlan, ...]
    calls: int
    seconds: float | None
    memory_bytes: int | None
    cost: float
    basis: str


def plan_recipe(recipe: Recipe, workspace: Workspace) -> Plan:
    """Work out what a recipe costs. Raises `RecipeError` where it can't run as it stands, `DataError` where a prompt file can't be read."""
    _, fingerprint = check_setup(recipe, workspace)
    stages = draft(recipe, workspace, nominal_rates)
    earlier = _earlier(recipe, workspace, fingerprint)
    timed = [s for s in stages if s.seconds]
    times = {s.name: s.seconds * earlier[s.name][0] for s in timed if s.seconds and s.name in earlier}
    basis = []
    if times:
        runs = ", ".join(sorted({earlier[name][1] for name in times}))
        basis.append(f"times of {', '.join(times)}: what such work took this model on this machine before (run {runs})")
    if probed := [s.name for s in timed if s.name not in times]:
        times |= {s.name: s.seconds for s in draft(recipe, workspace, cache(probe)) if s.name in probed and s.seconds}
        basis.append(
            f"times of {', '.join(probed)}: a rough first estimate, from a short probe of this {device()} as busy as it is now; "
            "half as much again is possible. Once a run is done, its own rates are used"
        )
    if recipe.model.is_server or recipe.judge.is_server:
        basis.append(
            f"a server's time isn't known here; its tokens are counted, each completion at {MEAN_FILL:.0%} of its limit, "
            "and every question with its whole text"
        )
    basis.append("calls and tokens: upper bounds, with nothing reused or dropped; memory: from the model's shape, for the longest texts")
    stages = [replace(s, seconds=times.get(s.name, s.seconds)) for s in stages]
    total = joined("all", *stages)
    return Plan(tuple(stages), total.calls, total.seconds, total.memory_bytes, total.cost, "\n".join(basis))


def _earlier(recipe: Recipe, workspace: Workspace, fingerprint: str) -> dict[str, tuple[float, str]]:
    """Return, per stage, seconds over nominal ones in the newest run of these models on this machine that made its calls itself."""
    found: dict[str, tuple[float, str]] = {}

    def models(r: Recipe) -> list[Any]:
        return [(spec.path, spec.precision) for spec in (r.trained, r.judge)]

    manifests = [path for path in (workspace.root / "runs").glob("*/manifest.json") if path.is_file()]
    for path in sorted(manifests, key=lambda p: p.stat().st_mtime):
        try:
            manifest = read_manifest(path)
            if manifest is None or manifest.model_fingerprint != fingerprint or manifest.machine != machine_facts():
                continue
            old = load_recipe(path.parent / "recipe.yaml")
            planned = draft(old, workspace, nominal_rates) if models(old) == models(recipe) else []
        except CaiError:  # its prompts or constitution are gone, or it is of another version
            continue
        for stage in planned:
            entry = manifest.stage(stage.name)
            if entry is None or entry.status != "done" or not stage.seconds or entry.calls_reused > entry.calls_made / 2:
                continue  # less may be reused: verdicts on equal answers always are
            if stage.name != "policy" or old.policy.method == recipe.policy.method:
                found[stage.name] = entry.seconds / stage.seconds, manifest.name
    return found


def draft(recipe: Recipe, workspace: Workspace, rates_of: Callable[[Precision], Rates]) -> list[StagePlan]:
    """Return every stage's cost at a machine's rates."""
    constitution = load_constitution(workspace.root / recipe.constitution)
    templates = load_templates(workspace.root / recipe.templates)
    (prompt, kinds), (shown, shown_kinds) = (
        _measured(stream_prompts(sources, workspace.root, recipe.seed, SkippedRows()))
        for sources in (recipe.prompts.train, recipe.prompts.evaluate)
    )
    count, evaluated = kinds.total(), shown_kinds.total()

    def wording(template: Template, **fields: str) -> float:
        """Return the mean tokens of a template that is filled with a principle's words alone."""
        nothing: dict[str, Value] = {name: () if name in CONVERSATIONS else "" for name in template.field_names}
        filled = [template.render(nothing | {f: getattr(p, a) for f, a in fields.items()}) for p in constitution.principles]
        return TURN_TOKENS + fmean(sum(len(m.content) for m in t.messages) + len(t.prefill) for t in filled) / CHARACTERS_PER_TOKEN

    question = fmean(wording(templates.judge_pointwise, question=a, statement="statement") for a in ("ask_positive", "ask_negative"))
    comparison = wording(templates.judge_pairwise, question="compare", statement="statement")
    statement = wording(templates.likelihood_good, statement="statement")
    grading = wording(templates.judge_rubric, statement="statement")
    critique = TURN_TOKENS + wording(templates.critique, critique_request="critique", statement="statement")
    revise = wording(templates.revise, revision_request="revision", statement="statement")
    applying = round(sum(n * len(constitution.for_kind(kind)) for kind, n in kinds.items()) / max(1, count))
    asked = applying if recipe.feedback.principles == "ensemble" else min(recipe.feedback.per_label, applying)
    c = Costs(recipe, rates_of, PairTokens(0, 0, question, comparison, statement, grading), asked)
    model, judge, adapted = recipe.model, recipe.judge, c.adapted
    answer, revised, sampled, shown_answer = (
        written(part.sampling.max_tokens) for part in (recipe.respond, recipe.critique, recipe.pairs, recipe.evaluate)
    )
    revises, pairs = "critique" in recipe.sft.data, min(count, recipe.pairs.limit or count) * recipe.pairs.per_prompt
    responded = set(recipe.respond.kinds)
    of_kinds = sum(kinds[kind] for kind in responded)
    answered = min(of_kinds, recipe.respond.limit or of_kinds)
    share = answered / max(1, of_kinds)
    critiqued = round(share * sum(kinds[kind] for kind in responded.intersection(recipe.critique.kinds))) * revises
    told = sum(kinds[kind] for kind in set(recipe.distill.kinds)) * ("distill" in recipe.sft.data)
    taught = told * (recipe.sft.soft_targets and recipe.trains_its_writer)
    context = wording(templates.told_user, principles="statement") * min(applying, recipe.distill.per_prompt or applying)
    turns = sum(n for kind, n in kinds.items() for p in constitution.principles if kind in recipe.distill.kinds and can_be_added(p, kind))
    added = turns * recipe.distill.samples * ("distill" in recipe.sft.data and recipe.distill.placement == "turns")
    questions, contrast = recipe.critique.rounds * critiqued, pairs * recipe.pairs.contrast
    examples = (questions if recipe.critique.train_on == "every" else critiqued) + (answered - critiqued) * revises + told
    paired = round(share * sum(kinds[kind] for kind in responded.intersection(recipe.distill.kinds))) * ("distill" in recipe.sft.data)
    preferences = pairs + contrast + critiqued + paired
    kept = preferences * (1 - recipe.preferences.held_out_fraction)
    early = recipe.critique.min_p_revised > 0  # `critique` judges revisions, and `feedback` finds that in the call store
    path, limit = recipe.feedback.bench_pairs, recipe.feedback.bench_limit
    bench = load_pairs(workspace.root / path, limit=limit, seed=recipe.seed).preferences if path else ()
    bench_prompt, _ = _measured(p.prompt for p in bench)
    bench_answer = _lengths([len(text) for p in bench for text in (p.chosen, p.rejected)])
    models = 3 if recipe.blend is None else 4
    harm = Work(models * shown_kinds["harmful"], (shown + shown_answer).mean, 2, question)
    versions = 1 + len(REWRITES)
    rewritten = shown_answer + (len(REWRITES) * REWRITE_TOKENS + shown_answer.mean) / versions
    begun = _beginnings(c, workspace, constitution, context)
    work = {
        "respond": [c.answers(model, answered, prompt, recipe.respond.sampling)],
        "critique": [
            c.answers(model, questions, prompt + answer + critique, recipe.critique.sampling),
            c.answers(model, questions, prompt + answer + revise + revised, recipe.critique.sampling),
            c.judged(critiqued * early, prompt, revised),
        ],
        "distill": [
            c.answers(model, told, prompt + context, recipe.distill.sampling, recipe.distill.samples),
            c.answers(model, added, prompt + written(recipe.distill.sampling.max_tokens) + statement, recipe.distill.sampling),
            *begun[:1],
        ],
        "sft": [*begun[1:], c.training(recipe.sft, examples, prompt, (revised,), recipe.sft.epochs * taught / max(1, examples))],
        "pairs": [
            c.answers(adapted, pairs, prompt, recipe.pairs.sampling, 2),
            c.answers(model, 2 * contrast, prompt + statement, recipe.pairs.sampling),
        ],
        "feedback": [
            c.judged(pairs, prompt, sampled),
            c.judged(critiqued * (not early) + told, prompt, revised),
            c.judged(len(bench), bench_prompt, bench_answer),
        ],
        "preferences": [],
        "reward": [c.rewards(preferences, prompt, sampled)],
        "policy": [METHODS.get(recipe.policy.method).work(replace(c, prompt=prompt, prompts=count, pairs=kept))],
        "blend": _blends(c, workspace),
        "evaluate": [
            *[c.answers(adapted, evaluated, shown, recipe.evaluate.sampling)] * models,
            c.judged((models - 1) * evaluated, shown, shown_answer),
            c.calls(judge, harm, (shown + shown_answer + question).longest),
            *_knowledge(c, workspace, models),
            c.scores(models * evaluated, shown, shown_answer, models),
            c.scores(min(REWARD_ANSWERS, evaluated) * versions, shown, rewritten, versions),
        ],
        "report": [],
    }
    stages = [joined(name, *work[name]) for name, stage in STAGE_INFO.items() if stage.is_in(recipe)]
    return [replace(stage, seconds=stage.seconds + c.loading_seconds) if stage.seconds else stage for stage in stages]


def _beginnings(c: Costs, workspace: Workspace, constitution: Constitution, context: float) -> list[StagePlan]:
    """Return what the beginnings of responses cost that no opening gives, and training on all beginnings."""
    config, distill = c.recipe.sft.beginnings, c.recipe.distill
    if config is UNSET:
        return []
    prompt, kinds = _measured(load_all(config.prompts, workspace.root, c.recipe.seed).prompts)
    begun = {kind: n for kind, n in kinds.items() if kind in distill.kinds}
    asked = sum(n for kind, n in begun.items() if not any(p.openings for p in constitution.for_kind(kind)))
    training = structs.replace(c.recipe.sft, epochs=config.epochs, batch_size=config.batch_size)
    few = structs.replace(distill.sampling, max_tokens=BEGINNING_TOKENS)
    passes = config.epochs * asked / max(1, sum(begun.values())) * (c.recipe.sft.soft_targets and c.recipe.trains_its_writer)
    return [
        c.answers(c.recipe.model, asked, prompt + context, few),
        c.training(training, sum(begun.values()), prompt, (Tokens(BEGINNING_TOKENS, BEGINNING_TOKENS),), passes),
    ]


def _blends(c: Costs, workspace: Workspace) -> list[StagePlan]:
    """Return what the answers of the blends that are tried, and of the policy, cost."""
    config = c.recipe.blend
    if config is None:
        return []
    prompt, kinds = _measured(load_all(config.prompts, workspace.root, c.recipe.seed).prompts)
    return [c.answers(c.adapted, kinds.total(), prompt, config.sampling, len({*config.shares, 1.0}))]


def _knowledge(c: Costs, workspace: Workspace, models: int) -> list[StagePlan]:
    """Return what the models' short answers to questions cost, and passages that are read."""
    config, spec, question = c.recipe.evaluate, c.recipe.trained, Tokens(15.0, 30.0) + SYSTEM_TOKENS + TURN_TOKENS
    if not config.knowledge_files:
        return []
    facts, passages = ([*read_records(workspace.root / path, dict[str, Any])][: config.knowledge] for path in config.knowledge_files)
    text = question + _lengths([len(p["text"]) for p in passages])
    short = structs.replace(config.sampling, max_tokens=min(FACT_TOKENS, config.sampling.max_tokens))
    return [c.answers(spec, models * len(facts), question, short), c.calls(spec, Work(models * len(passages), text.mean), text.longest)]


def _measured(prompts: Iterable[Prompt]) -> tuple[Tokens, Counter[PromptKind]]:
    """Return the estimated lengths of prompts in a chat template, and how many there are of each kind."""
    kinds, characters = Counter[PromptKind](), list[int]()
    for p in prompts:
        kinds[p.kind] += 1
        characters.append(sum(len(m.content) for m in p.messages))
    return _lengths(characters) + SYSTEM_TOKENS + TURN_TOKENS, kinds


def _lengths(characters: Sequence[int]) -> Tokens:
    """Return the estimated lengths of texts of so many characters."""
    mean = sum(characters) / max(1, len(characters))
    return Tokens(mean / CHARACTERS_PER_TOKEN, max(characters, default=0) / CHARACTERS_PER_TOKEN)
