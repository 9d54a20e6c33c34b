"""What a run will cost, before anything runs: calls, tokens, seconds, memory and money per stage.

Calls are exact upper bounds (no reuse, nothing dropped). Tokens are estimated from the prompts' lengths, the constitution's and the
templates' wording, and the sampling limits. Seconds are counted work at the speed that this machine is measured to have right now
(`cai.speed`), corrected, stage by stage, by what the last finished run of the same model took on this machine.
"""

from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

from msgspec import structs

from cai.constitution.load import load_constitution
from cai.costs import (
    MEAN_FILL,
    TURN_TOKENS,
    SpeedOf,
    StagePlan,
    Wording,
    add,
    answering,
    asked_principles,
    asking,
    auditing,
    judging,
    opening,
    ppo,
    rewarded,
    rewarding,
    scoring,
    training,
)
from cai.data.human import load_pairs
from cai.data.prompts import load_all
from cai.errors import CaiError
from cai.jsonl import read_records
from cai.manifest import machine_facts, read_manifest
from cai.memory import Dimensions
from cai.recipe import ONLINE, Precision, Recipe, SamplingSpec, load_recipe
from cai.records import Constitution, Preference, Prompt
from cai.setup_check import check_setup
from cai.speed import IMPORT_SECONDS, Speed, measure_speed
from cai.templates import Template, Templates, load_templates
from cai.workspace import Workspace

CHARACTERS_PER_TOKEN = 4.3
TEMPLATE_TOKENS = 30
"""That a chat template puts around a conversation of one turn, the system prompt of its own included that some have."""
FACT_TOKENS = 48
"""Longest answer to a question that asks for a name or a number."""


@dataclass(frozen=True)
class Plan:
    """A run's cost: stages in order, totals, and what the times rest on."""

    stages: tuple[StagePlan, ...]
    calls: int
    seconds: float | None
    memory_bytes: int | None
    cost: float
    basis: str
    speeds: tuple[Speed, ...]
    """What was measured, for each shape and precision that the run needs."""


def plan_recipe(recipe: Recipe, workspace: Workspace) -> Plan:
    """Work out what a recipe costs. Measures this machine, which takes a few seconds, if the run computes anything on it.

    Raises:
        RecipeError: the recipe can't run as it stands.
        DataError: a prompt file can't be read.
    """
    _, _, model_fingerprint = check_setup(recipe, workspace)
    measured: list[Speed] = []

    @cache
    def speed_of(d: Dimensions, precision: Precision) -> Speed:
        measured.append(measure_speed(d, precision))
        return measured[-1]

    scales = _measured_scales(workspace, model_fingerprint, speed_of)
    stages = tuple(_scaled(s, scales.get(s.name)) for s in draft(recipe, workspace, speed_of))
    known = [s.seconds for s in stages if s.seconds is not None]
    return Plan(
        stages,
        sum(s.calls for s in stages),
        sum(known) if len(known) == len(stages) else None,
        None if any(s.memory_bytes is None for s in stages) else max(s.memory_bytes or 0 for s in stages),
        sum(s.cost for s in stages),
        _basis(recipe, measured, scales),
        tuple(measured),
    )


def _basis(recipe: Recipe, measured: list[Speed], scales: dict[str, float]) -> str:
    """Say what the numbers rest on, a line a fact."""
    lines = [_said(s) for s in measured]
    if scales:
        lines.append(f"times of {', '.join(scales)}: corrected by the last run of this model on this machine")
    if any(spec is not None and spec.is_server for spec in (recipe.model, recipe.feedback.judge)):
        lines.append(
            "a server's time isn't known here; its tokens are counted, each completion at "
            f"{MEAN_FILL:.0%} of its limit, and every question with its whole text"
        )
    lines.append("calls and tokens: upper bounds, with nothing reused or dropped; memory: from the model's shape, texts of mean length")
    return "\n".join(lines)


def _said(s: Speed) -> str:
    where = f"{s.device} with {s.threads} threads" if s.device == "cpu" else s.device
    reading = f"{s.bandwidth / 1e9:,.1f} GB/s of weights" if s.step_seconds else "its weights unnoticed"
    large, prompts, trained = (f"{flops / 1e9:,.0f}" for flops in (s.matmul_flops, s.prompt_flops, s.trained_flops))
    return (
        f"measured just now, {s.precision} on {where}: large matrix products {large} GFLOP/s, prompts {prompts}, training {trained}; "
        f"a decoding step reads {reading}"
    )


def draft(recipe: Recipe, workspace: Workspace, speed_of: SpeedOf) -> list[StagePlan]:
    """Return every stage's cost at a speed."""
    constitution = load_constitution(workspace.root / recipe.constitution)
    words = wording(constitution, load_templates(workspace.root / recipe.templates))
    train = list(load_all(recipe.prompts.train, workspace.root, recipe.seed).prompts)
    evaluate = list(load_all(recipe.prompts.evaluate, workspace.root, recipe.seed).prompts)
    critiqued = [p for p in train if p.kind in recipe.critique.kinds]
    asked = asked_principles(recipe.feedback, round(sum(len(constitution.for_kind(p.kind)) for p in train) / max(1, len(train))))
    model, judge = recipe.model, recipe.feedback.judge or recipe.model
    prompt, answer = _tokens(train), MEAN_FILL * recipe.respond.sampling.max_tokens
    revised, sampled = MEAN_FILL * recipe.critique.sampling.max_tokens, MEAN_FILL * recipe.pairs.sampling.max_tokens
    evaluated, shown = MEAN_FILL * recipe.evaluate.sampling.max_tokens, _tokens(evaluate)
    rounds, pairs = recipe.critique.rounds, len(train) * recipe.pairs.per_prompt
    contrast = pairs if recipe.pairs.contrast else 0
    harmful = sum(p.kind == "harmful" for p in evaluate)

    def judged(name: str, count: float, text: float, response: float) -> StagePlan:
        return judging(name, judge, speed_of, recipe.feedback, words, count, asked, text, response)

    def answered(name: str, spec: Any, count: float, tokens: float, sampling: SamplingSpec, per_prompt: int = 1) -> StagePlan:
        return answering(name, spec, speed_of, count, tokens, sampling, per_prompt)

    examples = len(critiqued) * (rounds if recipe.critique.train_on == "every" else 1) + len(train) - len(critiqued)
    preferences = pairs + contrast + len(critiqued)
    adapted = structs.replace(recipe.trained, adapter="models/sft")  # what a run puts on the trained model
    questions = rounds * len(critiqued)
    imported = StagePlan("respond", seconds=IMPORT_SECONDS if _computes_here(recipe) else 0.0)
    bench = _bench_pairs(recipe, workspace)
    return [
        add(imported, opening("respond", model, speed_of), answered("respond", model, len(train), prompt, recipe.respond.sampling)),
        add(
            opening("critique", model, speed_of),
            answered("critique", model, questions, prompt + answer + words.critique, recipe.critique.sampling),
            answered("critique", model, questions, prompt + answer + words.revise + revised, recipe.critique.sampling),
            judged("critique", len(critiqued) if recipe.critique.min_p_revised > 0 else 0, prompt, revised),
        ),
        training("sft", recipe.sft, recipe.trained, speed_of, examples, prompt, (revised,)),
        add(
            opening("pairs", adapted, speed_of),
            answered("pairs", adapted, pairs, prompt, recipe.pairs.sampling, 2),
            opening("pairs", model, speed_of) if contrast else StagePlan("pairs"),
            answered("pairs", model, 2 * contrast, prompt + words.statement, recipe.pairs.sampling),
        ),
        add(
            opening("feedback", judge, speed_of),
            judged("feedback", pairs, prompt, sampled),
            # what `critique` has judged is in the call store
            judged("feedback", 0 if recipe.critique.min_p_revised > 0 else len(critiqued), prompt, revised),
            judged("feedback", len(bench), *_lengths(bench)),
        ),
        StagePlan("preferences"),
        rewarding(recipe, speed_of, preferences, prompt, sampled),
        _policy(recipe, speed_of, len(train), preferences, prompt, judged),
        add(
            *(opening("evaluate", spec, speed_of) for spec in (recipe.trained, adapted, adapted, judge)),
            *[answered("evaluate", adapted, len(evaluate), shown, recipe.evaluate.sampling)] * 3,
            judged("evaluate", 2 * len(evaluate), shown, evaluated),
            asking("evaluate", judge, speed_of, 3 * harmful, shown + evaluated, 2, words.question),
            _knowledge(recipe, workspace, speed_of),
            scoring("evaluate", recipe, speed_of, 3 * len(evaluate), shown + evaluated),
            auditing(recipe, speed_of, len(evaluate), shown, evaluated),
        ),
        StagePlan("report", seconds=1.0),
    ]


def _policy(recipe: Recipe, speed_of: SpeedOf, prompts: int, preferences: float, prompt: float, judged: Any) -> StagePlan:
    """Return what the policy's method costs."""
    config, sampled = recipe.policy, MEAN_FILL * recipe.pairs.sampling.max_tokens
    kept = preferences * (1 - recipe.preferences.held_out_fraction)

    def on_pairs(count: float, answers: int, passes: float) -> StagePlan:
        """A training from the SFT adapter, whose shape it has; the frozen copy is a second adapter."""
        return training(
            "policy",
            config,
            recipe.trained,
            speed_of,
            count,
            prompt,
            (sampled,) * answers,
            reference_passes=passes,
            adapters=2,
            lora_layers=recipe.sft.lora.layers,
        )

    if config.method in ONLINE:
        return rewarded(recipe, speed_of, prompts, prompt)
    if config.method == "ppo":
        return ppo(recipe, speed_of, prompts, prompt)
    if config.method == "kto":  # an example is one side: with its own prompt and another's, under two models; one of the four passes trains
        return on_pairs(2 * kept, 1, 3 * config.epochs)
    if config.method == "online-dpo":
        adapted = structs.replace(recipe.trained, adapter="models/sft")
        drawn = min(prompts, config.rounds.prompts or prompts) * recipe.pairs.per_prompt
        count = config.rounds.count
        a_round = add(
            opening("policy", adapted, speed_of),
            answering("policy", adapted, speed_of, drawn, prompt, recipe.pairs.sampling, 2),
            judged("policy", drawn, prompt, sampled)
            if config.rounds.labels == "judge"
            else scoring("policy", recipe, speed_of, 2 * drawn, prompt + sampled),
            on_pairs(drawn, 2, 1.0),
        )
        return add(*[a_round] * count)
    return on_pairs(kept, 2, 1.0)  # the reference's log-probabilities are kept after the first epoch


def _knowledge(recipe: Recipe, workspace: Workspace, speed_of: SpeedOf) -> StagePlan:
    """Return what three models' short answers to questions cost, and passages that are read."""
    config, question = recipe.evaluate, TEMPLATE_TOKENS + 15.0
    if not config.knowledge_files:
        return StagePlan("evaluate")
    facts, passages = ([*read_records(workspace.root / path, dict[str, Any])][: config.knowledge] for path in config.knowledge_files)
    read = sum(len(p["text"]) for p in passages) / CHARACTERS_PER_TOKEN / max(1, len(passages))
    short = structs.replace(config.sampling, max_tokens=min(FACT_TOKENS, config.sampling.max_tokens))
    return add(
        answering("evaluate", recipe.trained, speed_of, 3 * len(facts), question, short),
        asking("evaluate", recipe.trained, speed_of, 3 * len(passages), question + read, 1, 0),
    )


def _computes_here(recipe: Recipe) -> bool:
    return any(not (spec.is_server or spec.path == "scripted") for spec in (recipe.model, recipe.trained))


def _bench_pairs(recipe: Recipe, workspace: Workspace) -> list[Preference]:
    """Return the pairs that the judge is measured on."""
    if not recipe.feedback.bench_pairs:
        return []
    found = load_pairs(workspace.root / recipe.feedback.bench_pairs, limit=recipe.feedback.bench_limit, seed=recipe.seed)
    return list(found.preferences)


def _lengths(pairs: list[Preference]) -> tuple[float, float]:
    """Return the mean tokens of the prompts and of the responses of some pairs."""
    responses = [len(text) for p in pairs for text in (p.chosen, p.rejected)]
    return _tokens([p.prompt for p in pairs]), sum(responses) / CHARACTERS_PER_TOKEN / max(1, len(responses))


def _tokens(prompts: list[Prompt]) -> float:
    """Return the mean length of some prompts, in estimated tokens."""
    characters = sum(len(m.content) for p in prompts for m in p.messages)
    return TEMPLATE_TOKENS + characters / CHARACTERS_PER_TOKEN / max(1, len(prompts))


def wording(constitution: Constitution, templates: Templates) -> Wording:
    """Return the tokens that templates and principles put around a run's texts."""

    def own(template: Template) -> float:
        return sum(len(s.text) for s in template.sections)

    def mean(field: str) -> float:
        return fmean(len(getattr(p, field)) for p in constitution.principles)

    def tokens(*characters: float) -> float:
        return TURN_TOKENS + sum(characters) / CHARACTERS_PER_TOKEN

    return Wording(
        critique=TURN_TOKENS + tokens(own(templates.critique), mean("critique")),
        revise=tokens(own(templates.revise), mean("statement"), mean("revision")),
        question=tokens(own(templates.judge_pointwise), (mean("ask_positive") + mean("ask_negative")) / 2),
        comparison=tokens(own(templates.judge_pairwise), mean("compare")),
        statement=tokens(own(templates.likelihood_good), mean("statement")),
    )


def _measured_scales(workspace: Workspace, model_fingerprint: str, speed_of: SpeedOf) -> dict[str, float]:
    """Return, per stage, measured seconds over planned ones in the newest run of this model on this machine that made its calls itself."""
    scales: dict[str, float] = {}
    machine = machine_facts()
    for path in sorted((workspace.root / "runs").glob("*/manifest.json"), key=lambda p: p.stat().st_mtime):
        manifest = read_manifest(path)
        if manifest is None or manifest.model_fingerprint != model_fingerprint or manifest.machine != machine:
            continue
        try:
            planned = draft(load_recipe(path.parent / "recipe.yaml"), workspace, speed_of)
        except CaiError:  # its prompts or constitution are gone: it can't be compared
            continue
        for stage in planned:
            entry = manifest.stage(stage.name)
            mostly_made = entry is not None and entry.calls_reused <= entry.calls_made / 2  # verdicts on equal answers are always reused
            if entry is not None and entry.status == "done" and mostly_made and stage.seconds and stage.name != "report":
                scales[stage.name] = entry.seconds / stage.seconds
    return scales


def _scaled(stage: StagePlan, scale: float | None) -> StagePlan:
    return stage if scale is None or stage.seconds is None else replace(stage, seconds=stage.seconds * scale)
