"""What a run will cost, before anything runs: calls, tokens, seconds, memory and money per stage.

Calls are exact upper bounds (no reuse, nothing dropped). Tokens are estimated from the prompts' lengths and the sampling limits. Seconds
come from the last finished run of the same model in this workspace, stage by stage, and otherwise from rates measured on two CPU cores
with the embedded model, scaled by parameters: rough, and said so.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from cai.constitution.load import load_constitution
from cai.data.human import load_pairs
from cai.data.prompts import load_all
from cai.errors import CaiError
from cai.jsonl import read_records
from cai.manifest import read_manifest
from cai.memory import generation_bytes, read_dimensions, training_bytes, weight_bytes
from cai.recipe import ONLINE, FeedbackConfig, ModelSpec, Recipe, TrainSpec, load_recipe
from cai.records import Prompt
from cai.setup_check import check_setup
from cai.workspace import Workspace

CHARACTERS_PER_TOKEN = 4.3
QUESTION_TOKENS = 45
"""Template text and principle around a judged response."""
FACT_TOKENS = 48
"""Longest answer to a question that asks for a name or a number."""
MEAN_FILL = 0.8
"""Part of `max_tokens` that an average completion uses."""
EMBEDDED_PARAMETERS = 134.5e6
EMBEDDED_COMPLETION_RATE = 330.0
EMBEDDED_PROMPT_RATE = 2000.0
EMBEDDED_TRAIN_RATE = 900.0
"""Tokens a second of the embedded model on two cores, bf16, from docs/log.md."""
LOADING_SECONDS = 3.0


@dataclass(frozen=True)
class StagePlan:
    """One stage's cost. `seconds` None where nothing is known about the model's speed (a server never measured)."""

    name: str
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    train_steps: int = 0
    seconds: float | None = 0.0
    memory_bytes: int | None = 0
    """At the peak; None where nothing here says what shape the model has. 0: no model in this process."""
    cost: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A run's cost: stages in order, totals, and what the times rest on."""

    stages: tuple[StagePlan, ...]
    calls: int
    seconds: float | None
    memory_bytes: int | None
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


def plan_recipe(recipe: Recipe, workspace: Workspace) -> Plan:
    """Work out what a recipe costs.

    Raises:
        RecipeError: the recipe can't run as it stands.
        DataError: a prompt file can't be read.
    """
    _, _, model_fingerprint = check_setup(recipe, workspace)
    scales = _measured_scales(workspace, model_fingerprint)
    stages = tuple(_scaled(s, scales.get(s.name)) for s in draft(recipe, workspace))
    known = [s.seconds for s in stages if s.seconds is not None]
    return Plan(
        stages,
        sum(s.calls for s in stages),
        sum(known) if len(known) == len(stages) else None,
        None if any(s.memory_bytes is None for s in stages) else max(s.memory_bytes or 0 for s in stages),
        sum(s.cost for s in stages),
        f"times: {'as measured in earlier runs of this model here' if scales else 'rough, scaled from two CPU cores'}; "
        "calls and tokens: upper bounds, with nothing reused or dropped; memory: from the model's shape, texts of mean length",
    )


def draft(recipe: Recipe, workspace: Workspace) -> list[StagePlan]:
    """Return every stage's cost at the built-in rates."""
    constitution = load_constitution(workspace.root / recipe.constitution)
    train = list(load_all(recipe.prompts.train, workspace.root, recipe.seed).prompts)
    evaluate = list(load_all(recipe.prompts.evaluate, workspace.root, recipe.seed).prompts)
    critiqued = [p for p in train if p.kind in recipe.critique.kinds]
    applying = sum(len(constitution.for_kind(p.kind)) for p in train) / max(1, len(train))
    judge, rounds, judged = recipe.feedback.judge or recipe.model, recipe.critique.rounds, recipe.critique.min_p_revised > 0
    prompt, answer = _tokens(train), MEAN_FILL * recipe.respond.sampling.max_tokens
    revised, sampled = MEAN_FILL * recipe.critique.sampling.max_tokens, MEAN_FILL * recipe.pairs.sampling.max_tokens
    evaluated = MEAN_FILL * recipe.evaluate.sampling.max_tokens
    pairs = len(train) * recipe.pairs.per_prompt
    contrast = pairs if recipe.pairs.contrast else 0
    bench = recipe.feedback.bench_limit if recipe.feedback.bench_pairs else 0
    if recipe.feedback.bench_pairs:
        found = load_pairs(workspace.root / recipe.feedback.bench_pairs, limit=recipe.feedback.bench_limit, seed=recipe.seed)
        bench = len(found.preferences)

    def judging(name: str, judged_pairs: int, response: float) -> StagePlan:
        return _judging(name, judge, judged_pairs, judge_calls(recipe.feedback, round(applying)), prompt + response)

    examples = len(critiqued) * (rounds if recipe.critique.train_on == "every" else 1) + len(train) - len(critiqued)
    preferences = pairs + contrast + len(critiqued)
    adapted = structs.replace(recipe.trained, adapter="models/sft")  # what a run puts on the trained model
    policy = _training("policy", recipe.policy, recipe.trained, preferences, prompt, sampled, 4)
    if recipe.policy.method in ONLINE:
        policy = _rewarded(recipe, len(train), prompt)
    elif recipe.policy.method == "ppo":
        policy = _ppo(recipe, len(train), prompt)
    elif recipe.policy.method == "kto":  # an example is one side, which runs with its own prompt and with another, under two models
        policy = _training("policy", recipe.policy, recipe.trained, 2 * preferences, prompt, sampled, 4)
    elif recipe.policy.method == "online-dpo":
        new = recipe.policy.rounds.count * min(len(train), recipe.policy.rounds.prompts or len(train)) * recipe.pairs.per_prompt
        asked = judging("policy", new if recipe.policy.rounds.labels == "judge" else 0, sampled)
        made = _add(_calls("policy", adapted, 2 * new, prompt, sampled), asked)
        policy = _add(made, _training("policy", recipe.policy, recipe.trained, new, prompt, sampled, 4))
    return [
        _calls("respond", recipe.model, len(train), prompt, answer),
        _add(
            _calls("critique", recipe.model, 2 * rounds * len(critiqued), prompt + answer + QUESTION_TOKENS, revised),
            judging("critique", len(critiqued) if judged else 0, revised),
        ),
        _training("sft", recipe.sft, recipe.trained, examples, prompt, revised, 1),
        _calls("pairs", adapted, 2 * (pairs + contrast), prompt, sampled),
        judging("feedback", pairs + len(critiqued) + bench, sampled),
        StagePlan("preferences"),
        _reward(recipe, preferences, prompt, sampled),
        policy,
        _add(
            _add(
                _calls("evaluate", adapted, 3 * len(evaluate), _tokens(evaluate), evaluated),
                judging("evaluate", 2 * len(evaluate), evaluated),
            ),
            _add(
                _calls("evaluate", judge, 2 * 3 * sum(p.kind == "harmful" for p in evaluate), prompt + evaluated + QUESTION_TOKENS, 0),
                _knowledge(recipe, workspace),
            ),
        ),
        StagePlan("report", seconds=1.0),
    ]


def _knowledge(recipe: Recipe, workspace: Workspace) -> StagePlan:
    """Three models' short answers to questions, and passages that are read."""
    config = recipe.evaluate
    if not config.knowledge_files:
        return StagePlan("evaluate", seconds=0.0)
    facts, passages = ([*read_records(workspace.root / path, dict[str, Any])][: config.knowledge] for path in config.knowledge_files)
    read = sum(len(p["text"]) for p in passages) / CHARACTERS_PER_TOKEN / max(1, len(passages))
    asked = _calls("evaluate", recipe.trained, 3 * len(facts), QUESTION_TOKENS, min(FACT_TOKENS, config.sampling.max_tokens))
    return _add(asked, _calls("evaluate", recipe.trained, 3 * len(passages), QUESTION_TOKENS + read, 0))


def _calls(name: str, spec: ModelSpec, calls: int, prompt_tokens: float, completion_tokens: float) -> StagePlan:
    prompt, completion = round(calls * prompt_tokens), round(calls * completion_tokens)
    cost = (prompt * spec.prompt_price + completion * spec.completion_price) / 1e6
    if spec.is_server or spec.path == "scripted":
        return StagePlan(name, calls, prompt, completion, 0, None if spec.is_server else 0.0, 0, cost)
    shape = read_dimensions(spec)
    if shape is None:
        return StagePlan(name, calls, prompt, completion, 0, None, None, cost)
    scale = shape.parameters / EMBEDDED_PARAMETERS
    seconds = LOADING_SECONDS + scale * (prompt / EMBEDDED_PROMPT_RATE + completion / EMBEDDED_COMPLETION_RATE)
    memory = generation_bytes(shape, spec, prompt_tokens + completion_tokens)
    return StagePlan(name, calls, prompt, completion, 0, seconds, round(memory), cost)


def _training(name: str, spec: TrainSpec, model: ModelSpec, examples: int, prompt: float, answer: float, sequences: int) -> StagePlan:
    """`sequences`: forward passes per example (DPO: chosen and rejected, under policy and reference)."""
    per_step = spec.batch_size * spec.gradient_accumulation
    steps = math.ceil(math.ceil(examples / per_step) * spec.epochs)
    shape = None if model.is_server else read_dimensions(model)
    if shape is None:
        return StagePlan(name, train_steps=steps, seconds=None, memory_bytes=None)
    length = min(prompt + answer, spec.max_length)
    seconds = shape.parameters / EMBEDDED_PARAMETERS * steps * per_step * sequences * length / EMBEDDED_TRAIN_RATE
    answers = 1 if sequences == 1 else 2
    answer = min(answer, length)
    tokens = spec.batch_size * (length - answer + answers * answer)  # the prompt of a pair runs once
    scored = 0.0 if name == "reward" else spec.batch_size * answers * answer
    memory = training_bytes(shape, spec, tokens, scored, adapters=2 if name == "policy" else 1)
    return StagePlan(name, train_steps=steps, seconds=seconds, memory_bytes=round(memory))


def _rewarded(recipe: Recipe, prompts: int, prompt: float) -> StagePlan:
    """Training on the policy's own samples, with a base in memory for the rewards and one for gold."""
    config, online = recipe.policy, recipe.policy.online
    answer, completions = MEAN_FILL * online.max_tokens, prompts * online.num_generations
    training = _training("policy", config, recipe.trained, completions, prompt, answer, 1)
    sampling = _calls("policy", recipe.trained, math.ceil(completions * config.epochs), prompt, answer)
    shape = None if recipe.trained.is_server else read_dimensions(recipe.trained)
    if shape is None or training.seconds is None or sampling.seconds is None or training.memory_bytes is None:
        return training
    bases = 1 + (recipe.gold is not None)
    memory = training.memory_bytes + bases * weight_bytes(shape, recipe.reward.precision)
    return replace(training, seconds=2 * training.seconds + sampling.seconds, memory_bytes=round(memory))  # twice: reference and rewards


def _ppo(recipe: Recipe, prompts: int, prompt: float) -> StagePlan:
    """PPO: a step samples responses, asks every role about them, and trains two of the roles on them some times over."""
    config, ppo = recipe.policy, recipe.policy.ppo
    episodes = ppo.total_episodes or max(1, int(config.epochs * prompts))
    per_step = config.batch_size * config.gradient_accumulation * ppo.num_mini_batches
    steps = math.ceil(episodes / per_step)
    answer = min(MEAN_FILL * ppo.response_length, config.max_length)
    once = _training("policy", structs.replace(config, epochs=1.0), recipe.trained, steps * per_step, prompt, answer, 1)
    sampler = structs.replace(recipe.trained, precision=config.precision, batch_size=ppo.local_rollout_forward_batch_size)
    sampling = _calls("policy", sampler, steps * per_step, prompt, answer)
    shape = None if recipe.trained.is_server else read_dimensions(recipe.trained)
    if shape is None or once.seconds is None or sampling.seconds is None:
        return replace(once, train_steps=steps)
    frozen = 1 + recipe.reward.members + recipe.watched  # the reference, the reward models, gold
    passes = 2 * ppo.num_ppo_epochs + (2 + frozen) / 3  # policy and value function train; a forward pass alone is a third
    both = structs.replace(config.lora, rank=2 * config.lora.rank)  # one adapter of twice the rank weighs what two trained ones do
    tokens = config.batch_size * min(prompt + answer, config.max_length)
    training = training_bytes(shape, structs.replace(config, lora=both), tokens, 0.0, adapters=1 + math.ceil(frozen / 2))
    memory = max(training, sampling.memory_bytes or 0)
    return StagePlan("policy", train_steps=steps, seconds=passes * once.seconds + sampling.seconds, memory_bytes=round(memory))


def _reward(recipe: Recipe, preferences: int, prompt: float, answer: float) -> StagePlan:
    """Every member's training, one after the other. By source or principle the members share the labels out, about evenly."""
    config = recipe.reward
    part = 1 / config.members
    share = {"folds": 1 - part, "parts": part, "source": part, "principle": part}.get(config.slices, 1.0)
    one = _training("reward", config, recipe.trained, math.ceil(preferences * share), prompt, answer, 2)
    seconds = None if one.seconds is None else one.seconds * config.members
    return replace(one, train_steps=one.train_steps * config.members, seconds=seconds)


def _add(a: StagePlan, b: StagePlan) -> StagePlan:
    seconds = None if a.seconds is None or b.seconds is None else a.seconds + b.seconds
    return StagePlan(
        a.name,
        a.calls + b.calls,
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.train_steps + b.train_steps,
        seconds,
        None if a.memory_bytes is None or b.memory_bytes is None else max(a.memory_bytes, b.memory_bytes),
        a.cost + b.cost,
    )


def _judging(name: str, spec: ModelSpec, pairs: int, calls: int, text_tokens: float) -> StagePlan:
    """Every question is billed with its whole text; the local model computes a text once for all questions about it."""
    billed = _calls(name, spec, pairs * calls, text_tokens + QUESTION_TOKENS, 0)
    if billed.seconds is None:
        return billed
    computed = pairs * (2 * text_tokens + calls * QUESTION_TOKENS)
    return replace(billed, seconds=billed.seconds * computed / max(1, billed.prompt_tokens))


def _measured_scales(workspace: Workspace, model_fingerprint: str) -> dict[str, float]:
    """Return, per stage, measured seconds over planned ones in the newest run of this model that made its calls itself."""
    scales: dict[str, float] = {}
    for path in sorted((workspace.root / "runs").glob("*/manifest.json"), key=lambda p: p.stat().st_mtime):
        manifest = read_manifest(path)
        if manifest is None or manifest.model_fingerprint != model_fingerprint:
            continue
        try:
            planned = draft(load_recipe(path.parent / "recipe.yaml"), workspace)
        except CaiError:  # its prompts or constitution are gone: it can't be compared
            continue
        for stage in planned:
            entry = manifest.stage(stage.name)
            mostly_made = entry is not None and entry.calls_reused <= entry.calls_made / 10
            if entry is not None and entry.status == "done" and mostly_made and stage.seconds and stage.name != "report":
                scales[stage.name] = entry.seconds / stage.seconds
    return scales


def _scaled(stage: StagePlan, scale: float | None) -> StagePlan:
    return stage if scale is None or stage.seconds is None else replace(stage, seconds=stage.seconds * scale)
