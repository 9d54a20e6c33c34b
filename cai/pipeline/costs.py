"""What each kind of work costs: counted calls, tokens and steps, and their seconds at this machine's speed. One plain function a kind.

Counts are upper bounds where a run may drop or reuse something. A server's seconds are unknown here (None): they hang on its hardware
and on who else it serves. `cai.pipeline.plan` puts these together into stages.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from msgspec import structs

from cai.evaluate.audit.rewriting import REWRITES
from cai.evaluate.audit.run import REWARD_ANSWERS
from cai.judge.protocols import PROTOCOLS
from cai.models.base import PairTokens, Work
from cai.pipeline.memory import Dimensions, generation_bytes, read_dimensions, scoring_bytes, training_bytes, weight_bytes
from cai.pipeline.speed import (
    Speed,
    completion_seconds,
    draw_seconds,
    loading_seconds,
    prompt_seconds,
    scoring_seconds,
    training_seconds,
)
from cai.recipe import FeedbackConfig, ModelSpec, Precision, Recipe, SamplingSpec, TrainSpec
from cai.train.reward.ensemble import CENTRE_PAIRS, KEPT_TOKENS
from cai.train.rl.terms import TERMS

SpeedOf = Callable[[Dimensions, Precision], Speed]
MEAN_FILL = 0.85
"""Part of `max_tokens` that an average completion uses. In the quickstart of docs/log.md: 0.92, 0.74, 0.82 and 0.94, by stage."""
TURN_TOKENS = 6
"""That a chat template puts around a turn, and after the last one to open the answer."""
SYSTEM_TOKENS = 24
"""Of the system prompt that some chat templates put in front by themselves; the local model runs it once for a batch."""
REWRITE_TOKENS = 25
"""That the audit's rewrite of an answer adds, on average; the one that says everything twice adds the answer too."""


@dataclass(frozen=True)
class StagePlan:
    """One stage's cost. `seconds` None where nothing is known about the model's speed (a server, a model that isn't on this disk)."""

    name: str
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    train_steps: int = 0
    trained_tokens: int = 0
    """Run forward and backward, over all steps, padding included."""
    seconds: float | None = 0.0
    memory_bytes: int | None = 0
    """At the peak; None where nothing here says what shape the model has. 0: no model in this process."""
    cost: float = 0.0


@dataclass(frozen=True)
class Tokens:
    """How long texts of one sort are. What they cost goes by the mean; the memory that they need, by the longest of a batch."""

    mean: float
    longest: float

    def __add__(self, other: "Tokens | float") -> "Tokens":
        mean, longest = (other.mean, other.longest) if isinstance(other, Tokens) else (other, other)
        return Tokens(self.mean + mean, self.longest + longest)

    def capped(self, most: float) -> "Tokens":
        """Return how long they are when cut."""
        return Tokens(min(self.mean, most), min(self.longest, most))


def written(max_tokens: int) -> Tokens:
    """Return how long completions are under a limit."""
    return Tokens(MEAN_FILL * max_tokens, max_tokens)


@dataclass(frozen=True)
class Wording:
    """Tokens, on average, of what is put around the texts of a run: a template's own and a principle's."""

    critique: float
    revise: float
    question: float
    """Asked of one response."""
    comparison: float
    """Asked of two."""
    statement: float


def add(a: StagePlan, *others: StagePlan) -> StagePlan:
    """Return what several pieces of work cost, one after the other."""
    for b in others:
        a = StagePlan(
            a.name,
            a.calls + b.calls,
            a.prompt_tokens + b.prompt_tokens,
            a.completion_tokens + b.completion_tokens,
            a.train_steps + b.train_steps,
            a.trained_tokens + b.trained_tokens,
            None if a.seconds is None or b.seconds is None else a.seconds + b.seconds,
            None if a.memory_bytes is None or b.memory_bytes is None else max(a.memory_bytes, b.memory_bytes),
            a.cost + b.cost,
        )
    return a


def opening(name: str, spec: ModelSpec, speed_of: SpeedOf) -> StagePlan:
    """Return what it costs to have a model ready to answer; one with an adapter has it merged."""
    shape = read_dimensions(spec)
    if shape is None:  # a server's is not opened here; one that is not on this disk is unknown, as its calls will say
        return StagePlan(name)
    return StagePlan(name, seconds=loading_seconds(speed_of(shape, spec.precision), shape, merged=spec.adapter is not None))


def answering(
    name: str, spec: ModelSpec, speed_of: SpeedOf, prompts: float, prompt: Tokens, sampling: SamplingSpec, per_prompt: int = 1
) -> StagePlan:
    """Return what completions cost.

    Args:
        name: of the stage.
        spec: the model.
        speed_of: this machine's speed with a shape.
        prompts: how many.
        prompt: length of one, template included.
        sampling: its longest completion, and what makes drawing dear.
        per_prompt: completions of each prompt, which runs once for them.
    """
    mean = written(sampling.max_tokens).mean
    calls = round(prompts * per_prompt)
    done = _billed(name, spec, calls, prompt.mean, mean)
    shape = read_dimensions(spec)
    if shape is None or not calls:
        return done
    speed = speed_of(shape, spec.precision)
    rows = min(calls, spec.batch_size)
    seconds = (
        prompt_seconds(speed, shape, prompts * (prompt.mean - SYSTEM_TOKENS), prompt.mean)
        + completion_seconds(speed, shape, calls, spec.batch_size, sampling.max_tokens, mean, prompt.mean)
        + calls * mean * draw_seconds(speed, sampling.temperature, sampling.top_p)
    )
    longest = min(prompt.longest + sampling.max_tokens, spec.max_length)
    memory = generation_bytes(shape, structs.replace(spec, batch_size=rows), longest, speed.device)
    return replace(done, seconds=seconds, memory_bytes=round(memory))


def asking(
    name: str,
    spec: ModelSpec,
    speed_of: SpeedOf,
    texts: float,
    text: Tokens,
    questions: float,
    question: float,
    prompt: float = SYSTEM_TOKENS,
) -> StagePlan:
    """Return what comparing the answers of questions about texts costs: every question is billed with its whole text, and the local
    model runs a text once for all questions about it, and once for two texts the prompt that both begin with."""
    calls = round(texts * questions)
    done = _billed(name, spec, calls, text.mean + question, 0)
    shape = read_dimensions(spec)
    if shape is None or not calls:
        return done
    speed = speed_of(shape, spec.precision)
    computed = texts * (text.mean - (SYSTEM_TOKENS + prompt) / 2 + questions * question)
    seconds = prompt_seconds(speed, shape, computed, text.mean) + calls * speed.head_seconds
    few = structs.replace(spec, batch_size=min(calls, spec.batch_size))
    memory = generation_bytes(shape, few, min(text.longest + question, spec.max_length), speed.device)
    return replace(done, seconds=seconds, memory_bytes=round(memory))


def judging(
    name: str,
    spec: ModelSpec,
    speed_of: SpeedOf,
    config: FeedbackConfig,
    words: Wording,
    pairs: float,
    asked: int,
    prompt: Tokens,
    response: Tokens,
) -> StagePlan:
    """Return what judging pairs costs by a protocol.

    Args:
        name: of the stage.
        spec: the judge.
        speed_of: this machine's speed with a shape.
        config: the protocol.
        words: tokens around the texts.
        pairs: how many.
        asked: principles a pair.
        prompt: length of a prompt.
        response: length of a response.
    """
    work = PROTOCOLS.get(config.protocol).work
    mean, longest = (work(_pair_tokens(words, prompt, response, of), config) for of in ("mean", "longest"))
    return priced(name, spec, speed_of, mean, longest, pairs, asked, prompt)


def priced(
    name: str,
    spec: ModelSpec,
    speed_of: SpeedOf,
    mean: Sequence[Work],
    longest: Sequence[Work],
    items: float,
    asked: int,
    prompt: Tokens,
) -> StagePlan:
    """Return what calls cost that a protocol or a reward term declares.

    Args:
        name: of the stage.
        spec: who is asked.
        speed_of: this machine's speed with a shape.
        mean: the calls about one item under one principle, for texts of mean length.
        longest: the same calls for the longest texts.
        items: how many pairs, or responses.
        asked: principles an item.
        prompt: length of a prompt.
    """
    done = StagePlan(name)
    for work, most in zip(mean, longest, strict=True):
        text = Tokens(work.text_tokens, most.text_tokens)
        if work.max_tokens:
            sampling = SamplingSpec(max_tokens=work.max_tokens)
            calls = work.texts * work.questions * items * asked
            done = add(done, answering(name, spec, speed_of, calls, text + work.question_tokens, sampling))
        elif work.question_tokens:
            questions = work.questions * asked
            done = add(done, asking(name, spec, speed_of, work.texts * items, text, questions, work.question_tokens, prompt.mean))
        else:
            done = add(done, asking(name, spec, speed_of, work.texts * items * asked, text, work.questions, 0))
    return done


def _pair_tokens(words: Wording, prompt: Tokens, response: Tokens, of: Literal["mean", "longest"]) -> PairTokens:
    return PairTokens(getattr(prompt, of), getattr(response, of), words.question, words.comparison, words.statement)


def asked_principles(config: FeedbackConfig, applying: int) -> int:
    """Return how many principles a pair is judged by."""
    return applying if config.principles == "ensemble" else min(config.per_label, applying)


def _billed(name: str, spec: ModelSpec, calls: int, prompt_tokens: float, completion_tokens: float) -> StagePlan:
    """Return calls, tokens and money; seconds and memory where no model of this process is asked."""
    prompt, completion = round(calls * prompt_tokens), round(calls * completion_tokens)
    cost = (prompt * spec.prompt_price + completion * spec.completion_price) / 1e6
    nothing = spec.path == "scripted" or not calls
    return StagePlan(
        name,
        calls,
        prompt,
        completion,
        seconds=0.0 if nothing else None,
        memory_bytes=0 if nothing or spec.is_server else None,
        cost=cost,
    )


def training(
    name: str,
    config: TrainSpec,
    model: ModelSpec,
    speed_of: SpeedOf,
    examples: float,
    prompt: Tokens,
    answers: tuple[Tokens, ...],
    *,
    scored: bool = True,
    reference_passes: float = 0.0,
    adapters: int = 1,
    lora_layers: int | None = None,
) -> StagePlan:
    """Return what a training costs.

    Args:
        name: of the stage.
        config: the recipe's block.
        model: what is trained.
        speed_of: this machine's speed with a shape.
        examples: how many there are.
        prompt: length of a prompt.
        answers: length of each completion of an example: one for SFT, two for a pair.
        scored: whether the completions' scores over the vocabulary are trained on; not for a reward model.
        reference_passes: forward passes of a reference over all examples.
        adapters: on the base.
        lora_layers: adapted layers, where an adapter that is there decides and not `config.lora`.
    """
    per_step = config.batch_size * config.gradient_accumulation
    steps = math.ceil(math.ceil(examples / per_step) * config.epochs)
    shape = None if model.is_server else read_dimensions(model)
    if shape is None or not examples:
        known = not examples or model.path == "scripted"
        return StagePlan(name, train_steps=steps, seconds=0.0 if known else None, memory_bytes=0 if known else None)
    speed = speed_of(shape, config.precision)
    shared = len(answers) > 1 and _shares_prompt(config, speed.device)

    def example(prompt: float, *answers: float) -> tuple[float, float, float]:
        """Return the tokens of an example, those of its completions, and those of its longest sequence."""
        answers = tuple(min(a, config.max_length) for a in answers)
        prompt = max(0.0, min(prompt, config.max_length - max(answers)))
        return prompt * (1 if shared else len(answers)) + sum(answers), sum(answers), prompt + max(answers)

    one, targets, length = example(prompt.mean, *(a.mean for a in answers))
    longest_one, most_targets, longest = example(prompt.longest, *(a.longest for a in answers))
    # sequences are padded to the longest of their batch; pairs that share a prompt lie end to end, and not all of a batch are long
    largest = one + (longest_one - one) / math.sqrt(config.batch_size) if shared else len(answers) * longest
    tokens, scores = examples * config.epochs * one, examples * config.epochs * targets * scored
    lora = config.lora if lora_layers is None else structs.replace(config.lora, layers=lora_layers)
    config = structs.replace(config, lora=lora)
    seconds = loading_seconds(speed, shape) + training_seconds(
        speed, shape, config, tokens, length, scores, reference_passes / config.epochs
    )
    memory = training_bytes(shape, config, config.batch_size * largest, config.batch_size * most_targets * scored, speed.device, adapters)
    return StagePlan(name, train_steps=steps, trained_tokens=round(tokens), seconds=seconds, memory_bytes=round(memory))


def _shares_prompt(config: TrainSpec, device: str) -> bool:
    """Return whether a training runs the prompt of a pair once for both sides (`cai.train.packing`); others have no pairs."""
    wanted = getattr(config, "share_prompt", "never")
    return bool(wanted == "always" or (wanted == "auto" and device == "cpu"))


def scoring(name: str, recipe: Recipe, speed_of: SpeedOf, texts: float, prompt: Tokens, answer: Tokens, per_prompt: float) -> StagePlan:
    """Return what it costs to load a run's reward models, and to score answers with every member, so many to a prompt, which runs once."""
    model, members = recipe.trained, recipe.reward.members
    shape = None if model.is_server else read_dimensions(model)
    if shape is None:
        known = model.path == "scripted"
        return StagePlan(name, seconds=0.0 if known else None, memory_bytes=0 if known else None)
    speed = speed_of(shape, recipe.reward.precision)
    text = (prompt + answer).capped(recipe.reward.max_length)
    tokens = texts * (text.mean - (1 - 1 / per_prompt) * max(0.0, text.mean - answer.mean))
    seconds = loading_seconds(speed, shape, merged=members == 1) + members * scoring_seconds(speed, shape, tokens, text.mean)
    memory = scoring_bytes(shape, recipe.reward.precision, min(texts * text.longest, KEPT_TOKENS), speed.device)
    return StagePlan(name, seconds=seconds, memory_bytes=round(memory))


def rewarding(recipe: Recipe, speed_of: SpeedOf, preferences: float, prompt: Tokens, answer: Tokens) -> StagePlan:
    """Return what training and measuring every reward model costs. By source or principle the members share the labels, about evenly."""
    config, part = recipe.reward, 1 / recipe.reward.members
    train = preferences * (1 - recipe.preferences.held_out_fraction)
    share = {"folds": 1 - part, "parts": part, "source": part, "principle": part}.get(config.slices, 1.0)
    one = training("reward", config, recipe.trained, speed_of, math.ceil(train * share), prompt, (answer, answer), scored=False)
    centred = scoring("reward", recipe, speed_of, 2 * (min(CENTRE_PAIRS, train) + preferences - train), prompt, answer, 2)
    members = add(*[add(one, centred)] * config.members)
    return add(members, scoring("reward", recipe, speed_of, 2 * (preferences - train), prompt, answer, 2))


def auditing(recipe: Recipe, speed_of: SpeedOf, prompts: int, prompt: Tokens, answer: Tokens) -> StagePlan:
    """Return what the audit of a run's files costs: the reward models score answers and rewrites of them."""
    answers = min(REWARD_ANSWERS, prompts)
    versions = 1 + len(REWRITES)
    added = (len(REWRITES) * REWRITE_TOKENS + answer.mean) / versions
    return scoring("evaluate", recipe, speed_of, answers * versions, prompt, answer + added, versions)


@dataclass(frozen=True)
class PolicyCosts:
    """What the cost of training a policy is worked out from."""

    recipe: Recipe
    speed_of: SpeedOf
    words: Wording
    prompts: int
    """That it may sample answers to."""
    pairs: float
    """That it may train on."""
    prompt: Tokens
    """Length of a prompt."""
    response: Tokens
    """Length of one of a pair's responses."""
    asked: int
    """Principles that the judge is asked about one pair or response."""


def on_pairs(costs: PolicyCosts, count: float, answers: int, passes: float) -> StagePlan:
    """Return what a training from the SFT adapter costs, whose shape it has; the frozen copy is a second adapter.

    Args:
        costs: of the policy.
        count: examples.
        answers: responses in an example.
        passes: forward passes of the reference over all examples.
    """
    return training(
        "policy",
        costs.recipe.policy,
        costs.recipe.trained,
        costs.speed_of,
        count,
        costs.prompt,
        (costs.response,) * answers,
        reference_passes=passes,
        adapters=2,
        lora_layers=costs.recipe.sft.lora.layers,
    )


def rounds(costs: PolicyCosts) -> StagePlan:
    """Return what DPO in rounds costs: each samples pairs, has them labelled, and trains on them."""
    recipe, speed_of, config = costs.recipe, costs.speed_of, costs.recipe.policy.rounds
    adapted = structs.replace(recipe.trained, adapter="models/sft")
    drawn = min(costs.prompts, config.prompts or costs.prompts) * recipe.pairs.per_prompt
    judge = recipe.judge
    a_round = add(
        opening("policy", adapted, speed_of),
        answering("policy", adapted, speed_of, drawn, costs.prompt, recipe.pairs.sampling, 2),
        judging("policy", judge, speed_of, recipe.feedback, costs.words, drawn, costs.asked, costs.prompt, costs.response)
        if config.labels == "judge"
        else scoring("policy", recipe, speed_of, 2 * drawn, costs.prompt, costs.response, 2),
        on_pairs(costs, drawn, 2, 1.0),
    )
    return add(*[a_round] * config.count)


def rewarded(costs: PolicyCosts) -> StagePlan:
    """Return what GRPO and RLOO cost: samples of the policy, scored by reward models and by the terms that ask the judge; a base in memory
    for the reward models, and one for gold."""
    recipe, speed_of, prompts, prompt = costs.recipe, costs.speed_of, costs.prompts, costs.prompt
    config, online = recipe.policy, recipe.policy.online
    completions = prompts * online.num_generations
    sampling = SamplingSpec(max_tokens=online.max_tokens, temperature=min(online.temperature, 5.0))
    answer = written(online.max_tokens)
    train = training("policy", config, recipe.trained, speed_of, completions, prompt, (answer,), reference_passes=config.epochs)
    samples = answering("policy", recipe.trained, speed_of, prompts * config.epochs, prompt, sampling, online.num_generations)
    scores = scoring("policy", recipe, speed_of, completions * config.epochs, prompt, answer, online.num_generations)
    judge = recipe.judge
    asked = StagePlan("policy")
    for term in online.rewards:
        work = TERMS.get(term.term).work
        mean, longest = (work(_pair_tokens(costs.words, prompt, answer, of)) for of in ("mean", "longest"))
        asked = add(asked, priced("policy", judge, speed_of, mean, longest, completions * config.epochs, costs.asked, prompt))
    both = add(train, replace(samples, calls=0, prompt_tokens=0, completion_tokens=0), scores, asked)
    shape = None if recipe.trained.is_server else read_dimensions(recipe.trained)
    if shape is None or both.memory_bytes is None:
        return both
    bases = 1 + (recipe.gold is not None)
    return replace(both, memory_bytes=round(both.memory_bytes + bases * weight_bytes(shape, recipe.reward.precision)))


def ppo(costs: PolicyCosts) -> StagePlan:
    """Return what PPO costs: a step samples responses, asks every role about them, and trains two of the roles on them some times over."""
    recipe, speed_of, prompts, prompt = costs.recipe, costs.speed_of, costs.prompts, costs.prompt
    config, settings = recipe.policy, recipe.policy.ppo
    episodes = settings.total_episodes or max(1, int(config.epochs * prompts))
    per_step = config.batch_size * config.gradient_accumulation * settings.num_mini_batches
    steps = math.ceil(episodes / per_step)
    answer = written(settings.response_length).capped(config.max_length)
    frozen = 1 + recipe.reward.members + recipe.wants_watch  # the reference, the reward models, gold
    # both trained roles go over every response some times; before, they and the frozen ones only look at it
    passes = 2 * settings.num_ppo_epochs
    once: Any = structs.replace(config, epochs=1.0)
    train = training(
        "policy", once, recipe.trained, speed_of, passes * steps * per_step, prompt, (answer,), reference_passes=(2 + frozen) / passes
    )
    sampler = structs.replace(recipe.trained, precision=config.precision, batch_size=settings.local_rollout_forward_batch_size)
    sampling = SamplingSpec(max_tokens=settings.response_length, temperature=settings.temperature)
    samples = answering("policy", sampler, speed_of, steps * per_step, prompt, sampling)
    both = replace(add(train, samples), calls=0, prompt_tokens=0, completion_tokens=0, train_steps=steps)
    shape = None if recipe.trained.is_server else read_dimensions(recipe.trained)
    if shape is None:
        return both
    wide = structs.replace(config, lora=structs.replace(config.lora, rank=2 * config.lora.rank))  # weighs what two trained ones do
    tokens = config.batch_size * (prompt + answer).capped(config.max_length).longest
    device = speed_of(shape, config.precision).device
    trained = training_bytes(shape, wide, tokens, 0.0, device, adapters=1 + math.ceil(frozen / 2))
    memory = max(trained, samples.memory_bytes or 0)
    return replace(both, memory_bytes=round(memory))
