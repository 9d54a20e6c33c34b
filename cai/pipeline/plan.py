"""What a run will cost, before anything runs: calls, tokens, seconds, memory and money per stage.

Calls are exact upper bounds (no reuse, nothing dropped). Tokens are estimated from the prompts' lengths, the constitution's and the
templates' wording, and the sampling limits. Seconds are counted work at the speed that this machine is measured to have right now
(`cai.pipeline.speed`), corrected, stage by stage, by what the last finished run of the same model took on this machine.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

from msgspec import structs

from cai.constitution.load import load_constitution
from cai.core.jsonl import read_records
from cai.core.manifest import machine_facts, read_manifest
from cai.core.workspace import Workspace
from cai.data.prompts import SkippedRows, stream_prompts
from cai.errors import CaiError
from cai.labels.load import load_pairs
from cai.models.templates import Template, Templates, Value, load_templates
from cai.pipeline.costs import (
    MEAN_FILL,
    SYSTEM_TOKENS,
    TURN_TOKENS,
    PolicyCosts,
    SpeedOf,
    StagePlan,
    Tokens,
    Wording,
    add,
    answering,
    asked_principles,
    asking,
    auditing,
    judging,
    opening,
    rewarding,
    scoring,
    training,
    written,
)
from cai.pipeline.memory import Dimensions
from cai.pipeline.methods import METHODS
from cai.pipeline.setup_check import check_setup
from cai.pipeline.speed import IMPORT_SECONDS, Speed, measure_speed
from cai.recipe import Precision, Recipe, SamplingSpec, load_recipe
from cai.records import Constitution, Preference, Principle, Prompt, PromptKind

CHARACTERS_PER_TOKEN = 4.3
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
    _, model_fingerprint = check_setup(recipe, workspace)
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
    lines.append("calls and tokens: upper bounds, with nothing reused or dropped; memory: from the model's shape, for the longest texts")
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
    train, evaluate = (
        _counted(stream_prompts(sources, workspace.root, recipe.seed, SkippedRows()))
        for sources in (recipe.prompts.train, recipe.prompts.evaluate)
    )
    critiqued = sum(train.kinds[kind] for kind in set(recipe.critique.kinds))
    applying = sum(n * len(constitution.for_kind(kind)) for kind, n in train.kinds.items())
    asked = asked_principles(recipe.feedback, round(applying / max(1, train.count)))
    model, judge = recipe.model, recipe.feedback.judge or recipe.model
    prompt, shown = train.tokens, evaluate.tokens
    answer, revised, sampled, evaluated = (
        written(part.sampling.max_tokens) for part in (recipe.respond, recipe.critique, recipe.pairs, recipe.evaluate)
    )
    rounds, pairs = recipe.critique.rounds, train.count * recipe.pairs.per_prompt
    contrast = pairs if recipe.pairs.contrast else 0

    def judged(name: str, count: float, text: Tokens, response: Tokens) -> StagePlan:
        return judging(name, judge, speed_of, recipe.feedback, words, count, asked, text, response)

    def answered(name: str, spec: Any, count: float, tokens: Tokens, sampling: SamplingSpec, per_prompt: int = 1) -> StagePlan:
        return answering(name, spec, speed_of, count, tokens, sampling, per_prompt)

    examples = critiqued * (rounds if recipe.critique.train_on == "every" else 1) + train.count - critiqued
    preferences = pairs + contrast + critiqued
    adapted = structs.replace(recipe.trained, adapter="models/sft")  # what a run puts on the trained model
    questions = rounds * critiqued
    imported = StagePlan("respond", seconds=IMPORT_SECONDS if _computes_here(recipe) else 0.0)
    bench = _bench_pairs(recipe, workspace)
    compared = _lengths(len(text) for p in bench for text in (p.chosen, p.rejected))
    return [
        add(imported, opening("respond", model, speed_of), answered("respond", model, train.count, prompt, recipe.respond.sampling)),
        add(
            opening("critique", model, speed_of),
            answered("critique", model, questions, prompt + answer + words.critique, recipe.critique.sampling),
            answered("critique", model, questions, prompt + answer + words.revise + revised, recipe.critique.sampling),
            judged("critique", critiqued if recipe.critique.min_p_revised > 0 else 0, prompt, revised),
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
            judged("feedback", 0 if recipe.critique.min_p_revised > 0 else critiqued, prompt, revised),
            judged("feedback", len(bench), _counted(p.prompt for p in bench).tokens, compared),
        ),
        StagePlan("preferences"),
        rewarding(recipe, speed_of, preferences, prompt, sampled),
        METHODS.get(recipe.policy.method).work(
            PolicyCosts(
                recipe,
                speed_of,
                words,
                prompts=train.count,
                pairs=preferences * (1 - recipe.preferences.held_out_fraction),
                prompt=prompt,
                response=sampled,
                asked=asked,
            )
        ),
        add(
            *(opening("evaluate", spec, speed_of) for spec in (recipe.trained, adapted, adapted, judge)),
            *[answered("evaluate", adapted, evaluate.count, shown, recipe.evaluate.sampling)] * 3,
            judged("evaluate", 2 * evaluate.count, shown, evaluated),
            asking("evaluate", judge, speed_of, 3 * evaluate.kinds["harmful"], shown + evaluated, 2, words.question),
            _knowledge(recipe, workspace, speed_of),
            scoring("evaluate", recipe, speed_of, 3 * evaluate.count, shown, evaluated, 3),
            auditing(recipe, speed_of, evaluate.count, shown, evaluated),
        ),
        StagePlan("report", seconds=1.0),
    ]


def _knowledge(recipe: Recipe, workspace: Workspace, speed_of: SpeedOf) -> StagePlan:
    """Return what three models' short answers to questions cost, and passages that are read."""
    config, question = recipe.evaluate, Tokens(15.0, 30.0) + SYSTEM_TOKENS + TURN_TOKENS
    if not config.knowledge_files:
        return StagePlan("evaluate")
    facts, passages = ([*read_records(workspace.root / path, dict[str, Any])][: config.knowledge] for path in config.knowledge_files)
    read = _lengths(len(p["text"]) for p in passages)
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


def _lengths(characters: Iterable[int]) -> Tokens:
    """Return the estimated lengths of texts of so many characters."""
    found = [*characters] or [0]
    return Tokens(fmean(found) / CHARACTERS_PER_TOKEN, max(found) / CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class Counted:
    """What a plan needs to know of prompts, however many they are."""

    kinds: Counter[PromptKind]
    """How many of each kind."""
    tokens: Tokens
    """Estimated, template included."""

    @property
    def count(self) -> int:
        """How many."""
        return self.kinds.total()


def _counted(prompts: Iterable[Prompt]) -> Counted:
    kinds: Counter[PromptKind] = Counter()
    characters = longest = 0
    for p in prompts:
        kinds[p.kind] += 1
        here = sum(len(m.content) for m in p.messages)
        characters, longest = characters + here, max(longest, here)
    text = Tokens(characters / CHARACTERS_PER_TOKEN / max(1, kinds.total()), longest / CHARACTERS_PER_TOKEN)
    return Counted(kinds, text + SYSTEM_TOKENS + TURN_TOKENS)


def wording(constitution: Constitution, templates: Templates) -> Wording:
    """Return the tokens that templates and principles put around a run's texts."""

    def tokens(template: Template, *words: Callable[[Principle], Mapping[str, str]]) -> float:
        """Return the mean length of a template that is filled with a principle's words alone."""
        nothing: dict[str, Value] = dict.fromkeys(template.field_names, "") | {"conversation": ()}
        filled = [template.render(nothing | {"statement": p.statement} | dict(said(p))) for p in constitution.principles for said in words]
        characters = fmean(sum(len(m.content) for m in rendered.messages) + len(rendered.prefill) for rendered in filled)
        return TURN_TOKENS + characters / CHARACTERS_PER_TOKEN

    return Wording(
        critique=TURN_TOKENS + tokens(templates.critique, lambda p: {"critique_request": p.critique}),
        revise=tokens(templates.revise, lambda p: {"revision_request": p.revision}),
        question=tokens(templates.judge_pointwise, lambda p: {"question": p.ask_positive}, lambda p: {"question": p.ask_negative}),
        comparison=tokens(templates.judge_pairwise, lambda p: {"question": p.compare}),
        statement=tokens(templates.likelihood_good, lambda p: {}),
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
