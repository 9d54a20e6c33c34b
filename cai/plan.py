"""What a run will cost, before anything runs: calls, tokens, seconds, memory and money per stage.

Calls are exact upper bounds (no reuse, nothing dropped). Tokens are estimated from the prompts' lengths and the sampling limits. Seconds
come from the last finished run of the same model in this workspace, stage by stage, and otherwise from rates measured on two CPU cores
with the embedded model, scaled by parameters: rough, and said so.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from cai.data.prompts import load_all
from cai.manifest import Manifest, read_manifest
from cai.recipe import FeedbackConfig, ModelSpec, Recipe, TrainSpec
from cai.records import Prompt
from cai.setup_check import check_setup
from cai.workspace import Workspace

CHARACTERS_PER_TOKEN = 4.3
QUESTION_TOKENS = 45
"""Template text and principle around a judged response."""
MEAN_FILL = 0.8
"""Part of `max_tokens` that an average completion uses."""
EMBEDDED_PARAMETERS = 134.5e6
EMBEDDED_COMPLETION_RATE = 330.0
EMBEDDED_PROMPT_RATE = 2000.0
EMBEDDED_TRAIN_RATE = 900.0
"""Tokens a second of the embedded model on two cores, bf16, from docs/log.md."""
BYTES = {"float32": 4.0, "bfloat16": 2.0, "nf4": 0.6}


@dataclass(frozen=True)
class StagePlan:
    """One stage's cost. `seconds` None where nothing is known about the model's speed (a server never measured)."""

    name: str
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    train_steps: int = 0
    seconds: float | None = 0.0
    memory_bytes: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A run's cost: stages in order, totals, and what the times rest on."""

    stages: tuple[StagePlan, ...]
    calls: int
    seconds: float | None
    memory_bytes: int
    cost: float
    basis: str


def judge_calls(config: FeedbackConfig, principles: int) -> int:
    """Return the model calls that judging one pair takes. `principles`: how many apply to its prompt."""
    asked = principles if config.principles == "ensemble" else min(config.per_label, principles)
    per_principle = {"pairwise": 2, "pairwise-cot": 4, "pointwise": 2, "pointwise-contrast": 4, "likelihood": 4}
    return asked * per_principle[config.protocol]


def _tokens(prompts: list[Prompt]) -> float:
    """Return the mean length of some prompts, in estimated tokens."""
    characters = sum(len(m.content) for p in prompts for m in p.messages)
    return 30 + characters / CHARACTERS_PER_TOKEN / max(1, len(prompts))


def parameter_count(spec: ModelSpec) -> float | None:
    """Return a local model's parameter count from its files; None for a server or a model that isn't on this disk."""
    if spec.path in ("embedded", "scripted"):
        return EMBEDDED_PARAMETERS if spec.path == "embedded" else 0.0
    folder = Path(spec.path)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        size = json.loads(index.read_text()).get("metadata", {}).get("total_size")
        return float(size) / 2 if size else None
    single = folder / "model.safetensors"
    return single.stat().st_size / 2 if single.exists() else None


def plan_recipe(recipe: Recipe, workspace: Workspace) -> Plan:
    """Work out what a recipe costs.

    Raises:
        RecipeError: the recipe can't run as it stands.
        DataError: a prompt file can't be read.
    """
    constitution, _, model_fingerprint = check_setup(recipe, workspace)
    train = list(load_all(recipe.prompts.train, workspace.root, recipe.seed).prompts)
    evaluate = list(load_all(recipe.prompts.evaluate, workspace.root, recipe.seed).prompts)
    critiqued = [p for p in train if p.kind in recipe.critique.kinds]
    judged_principles = sum(len(constitution.for_kind(p.kind)) for p in train) / max(1, len(train))
    judging = judge_calls(recipe.feedback, round(judged_principles))
    prompt, answer = _tokens(train), MEAN_FILL * recipe.respond.sampling.max_tokens
    revised = MEAN_FILL * recipe.critique.sampling.max_tokens
    sampled = MEAN_FILL * recipe.pairs.sampling.max_tokens
    evaluated = MEAN_FILL * recipe.evaluate.sampling.max_tokens
    rounds = recipe.critique.rounds
    kept_rounds = rounds if recipe.critique.train_on == "every" else 1
    pairs = len(train) * recipe.pairs.per_prompt
    contrast = len(train) if recipe.pairs.contrast else 0
    judge = recipe.feedback.judge or recipe.model

    drafts = [
        _calls("respond", recipe.model, len(train), prompt, answer),
        _add(
            _calls("critique", recipe.model, 2 * rounds * len(critiqued), prompt + answer + 60, revised),
            _calls("critique", judge, judging * len(critiqued), prompt + revised + QUESTION_TOKENS, 0),
        ),
        _training("sft", recipe.sft, recipe.model, len(train) * kept_rounds, prompt + revised, 1),
        _calls("pairs", recipe.model, 2 * (pairs + contrast), prompt, sampled),
        _calls("feedback", judge, judging * (pairs + len(critiqued)), prompt + sampled + QUESTION_TOKENS, 0),
        StagePlan("preferences"),
        _training("reward", recipe.reward, recipe.model, pairs + contrast + len(critiqued), prompt + sampled, 2),
        _training("policy", recipe.policy, recipe.model, pairs + contrast + len(critiqued), prompt + sampled, 4),
        _add(
            _calls("evaluate", recipe.model, 3 * len(evaluate), _tokens(evaluate), evaluated),
            _calls("evaluate", judge, 2 * judging * len(evaluate), _tokens(evaluate) + evaluated + QUESTION_TOKENS, 0),
        ),
        StagePlan("report", seconds=1.0),
    ]
    measured = _measured_rates(workspace, model_fingerprint)
    stages = tuple(_timed(s, recipe, measured) for s in drafts)
    known = [s.seconds for s in stages if s.seconds is not None]
    return Plan(
        stages,
        sum(s.calls for s in stages),
        sum(known) if len(known) == len(stages) else None,
        max(s.memory_bytes for s in stages),
        sum(s.cost for s in stages),
        f"times: {'as measured in earlier runs of this model here' if measured else 'rough, scaled from two CPU cores'}; "
        "calls and tokens: upper bounds, with nothing reused or dropped",
    )


def _calls(name: str, spec: ModelSpec, calls: int, prompt_tokens: float, completion_tokens: float) -> StagePlan:
    prompt, completion = round(calls * prompt_tokens), round(calls * completion_tokens)
    cost = (prompt * spec.prompt_price + completion * spec.completion_price) / 1e6
    parameters = parameter_count(spec) or 0.0
    memory = parameters * BYTES[spec.precision] + spec.batch_size * (prompt_tokens + completion_tokens) * 0.3e-3 * parameters
    seconds = None
    if not spec.path.startswith("http"):
        scale = parameters / EMBEDDED_PARAMETERS
        seconds = scale * (prompt / EMBEDDED_PROMPT_RATE + completion / EMBEDDED_COMPLETION_RATE)
    return StagePlan(name, calls, prompt, completion, 0, seconds, round(memory) + 2**29 if parameters else 0, cost)


def _training(name: str, spec: TrainSpec, model: ModelSpec, examples: int, tokens: float, sequences: int) -> StagePlan:
    """`sequences`: forward passes per example (DPO: chosen and rejected, under policy and reference)."""
    per_step = spec.batch_size * spec.gradient_accumulation
    steps = math.ceil(math.ceil(examples / per_step) * spec.epochs)
    parameters = parameter_count(model) or 0.0
    length = min(tokens, spec.max_length)
    seconds = parameters / EMBEDDED_PARAMETERS * steps * per_step * sequences * length / EMBEDDED_TRAIN_RATE
    activations = spec.batch_size * sequences * length * (50e3 * 4 + 0.02 * math.sqrt(parameters) * 1e3)
    return StagePlan(name, train_steps=steps, seconds=seconds, memory_bytes=round(parameters * 4 + activations) + 2**30)


def _add(a: StagePlan, b: StagePlan) -> StagePlan:
    seconds = None if a.seconds is None or b.seconds is None else a.seconds + b.seconds
    return StagePlan(
        a.name,
        a.calls + b.calls,
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.train_steps + b.train_steps,
        seconds,
        max(a.memory_bytes, b.memory_bytes),
        a.cost + b.cost,
    )


def _measured_rates(workspace: Workspace, model_fingerprint: str) -> dict[str, float]:
    """Return seconds per call, or per thousand training examples' steps, of the newest finished stages of this model."""
    rates: dict[str, float] = {}
    manifests = sorted((workspace.root / "runs").glob("*/manifest.json"), key=lambda p: p.stat().st_mtime)
    for path in manifests:
        manifest: Manifest | None = read_manifest(path)
        if manifest is None or manifest.model_fingerprint != model_fingerprint:
            continue
        for entry in manifest.stages:
            steps = entry.counts.get("steps", 0)
            work = entry.calls_made if entry.calls_made else steps
            if entry.status == "done" and work >= 8 and entry.calls_reused <= entry.calls_made / 10:
                rates[entry.name] = entry.seconds / work
    return rates


def _timed(stage: StagePlan, recipe: Recipe, rates: dict[str, float]) -> StagePlan:
    from dataclasses import replace

    rate = rates.get(stage.name)
    work = stage.calls or stage.train_steps
    return stage if rate is None or not work else replace(stage, seconds=rate * work)
