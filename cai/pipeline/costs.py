"""What each kind of work costs at a machine's rates: model calls, trainings, reward scores. `cai.pipeline.plan` puts them together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from cai.judge.protocols import PROTOCOLS
from cai.models.base import PairTokens, Work
from cai.pipeline.memory import generation_bytes, read_dimensions, training_bytes
from cai.pipeline.speed import READ_PART, TRAIN_PART, Rates, device, forward_flop, step_seconds
from cai.recipe import ModelSpec, Precision, Recipe, SamplingSpec
from cai.train.reward.ensemble import CENTRE_PAIRS, KEPT_TOKENS
from cai.train.rl.terms import TERMS

MEAN_FILL = 0.85
"""Part of `max_tokens` that an average completion uses. In the quickstart of docs/log.md: 0.92, 0.74, 0.82 and 0.94, by stage."""
OPENING_SECONDS, LOADED_WEIGHTS = 2.0, 2e8
"""To open engines or make a trainer in a stage, and how many weights are read from files a second meanwhile."""


@dataclass(frozen=True)
class StagePlan:
    """One stage's cost. `seconds` None where nothing is known about the model's speed (a server, a model that isn't on this disk)."""

    name: str = ""
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


def joined(name: str, *pieces: StagePlan) -> StagePlan:
    """Return what several pieces of work cost, one after the other."""
    counts = ("calls", "prompt_tokens", "completion_tokens", "train_steps", "trained_tokens", "cost")
    sums: dict[str, Any] = {field: sum(getattr(p, field) for p in pieces) for field in counts}
    seconds: list[Any] = [p.seconds for p in pieces]
    memory: list[Any] = [p.memory_bytes for p in pieces]
    return StagePlan(
        name,
        **sums,
        seconds=None if None in seconds else sum(seconds),
        memory_bytes=None if None in memory else max(memory, default=0),
    )


def uncounted(asked: StagePlan) -> StagePlan:
    """Return what is asked of a model without a call: a trainer's own samples, reward models' scores."""
    return replace(asked, calls=0, prompt_tokens=0, completion_tokens=0)


@dataclass(frozen=True)
class Tokens:
    """How long texts of one sort are. Their cost goes by the mean; the memory that they need, by the longest."""

    mean: float
    longest: float

    def __add__(self, other: "Tokens | float") -> "Tokens":
        other = other if isinstance(other, Tokens) else Tokens(other, other)
        return Tokens(self.mean + other.mean, self.longest + other.longest)


def written(max_tokens: int) -> Tokens:
    """Return how long completions are under a limit."""
    return Tokens(MEAN_FILL * max_tokens, max_tokens)


@dataclass(frozen=True)
class Costs:
    """Costs of a recipe's kinds of work. A policy method works out the cost of its training with them."""

    recipe: Recipe
    rates_of: Callable[[Precision], Rates]
    words: PairTokens
    """Tokens of the templates in which a principle is asked about."""
    asked: int
    """Principles that a pair is judged by."""
    prompt: Tokens = Tokens(0, 0)
    """Length of a training prompt."""
    prompts: int = 0
    """Training prompts that a policy method may sample responses to."""
    pairs: float = 0.0
    """Preference pairs that it may train on."""

    @property
    def loading_seconds(self) -> float:
        """What a stage takes to load a model of the trained one's size, which it does at least once."""
        shape = read_dimensions(self.recipe.trained)
        return OPENING_SECONDS + shape.parameters / LOADED_WEIGHTS if shape else 0.0

    def calls(self, spec: ModelSpec, work: Work, longest: float) -> StagePlan:
        """Return what model calls cost, the longest of `longest` tokens. Each is billed with its whole text, which runs once here."""
        calls, length = round(work.texts * work.questions), work.text_tokens + work.question_tokens
        prompt, completion = round(calls * length), round(calls * MEAN_FILL * work.max_tokens)
        cost = (prompt * spec.prompt_price + completion * spec.completion_price) / 1e6
        done = StagePlan("", calls, prompt, completion, cost=cost)
        shape = read_dimensions(spec)
        if shape is None or not calls:
            return _unknown(spec, done, calls)
        rates = self.rates_of(spec.precision)
        flop = forward_flop(shape, work.texts * work.text_tokens + calls * work.question_tokens + completion, length)
        flop += 2.0 * shape.hidden * shape.vocabulary * completion
        steps = math.ceil(calls / spec.batch_size) * work.max_tokens
        seconds = flop / (READ_PART * rates.flops) + steps * step_seconds(shape, rates)
        rows = structs.replace(spec, batch_size=min(calls, spec.batch_size))
        memory = generation_bytes(shape, rows, min(longest, spec.max_length), device())
        return replace(done, seconds=seconds, memory_bytes=round(memory))

    def answers(self, spec: ModelSpec, prompts: float, prompt: Tokens, sampling: SamplingSpec, per_prompt: int = 1) -> StagePlan:
        """Return what completions of prompts cost."""
        most = sampling.max_tokens + sampling.thinking_tokens
        work = Work(prompts, prompt.mean, per_prompt, max_tokens=most)
        return self.calls(spec, work, prompt.longest + most)

    def judged(self, pairs: float, prompt: Tokens, response: Tokens) -> StagePlan:
        """Return what judging pairs costs by the recipe's protocol."""
        config = self.recipe.feedback
        protocol = PROTOCOLS.get(config.protocol)
        asked = self.asked if protocol.asks else 1
        return self.asked_of_judge(lambda tokens: protocol.work(tokens, config), asked, pairs, prompt, response)

    def asked_of_judge(
        self, work_of: Callable[[PairTokens], Sequence[Work]], asked: int, items: float, prompt: Tokens, response: Tokens
    ) -> StagePlan:
        """Return what calls of the judge cost that a protocol or a reward term declares.

        Args:
            work_of: the calls about one item under one principle.
            asked: principles that an item is judged by.
        """
        pieces = []
        for work, most in zip(
            work_of(replace(self.words, prompt=prompt.mean, response=response.mean)),
            work_of(replace(self.words, prompt=prompt.longest, response=response.longest)),
            strict=True,
        ):
            texts, questions = (1, asked) if work.question_tokens else (asked, 1)
            work = replace(work, texts=work.texts * items * texts, questions=work.questions * questions)
            pieces.append(self.calls(self.recipe.judge, work, most.text_tokens + most.question_tokens + most.max_tokens))
        return joined("", *pieces)

    def training(
        self,
        config: Any,
        examples: float,
        prompt: Tokens,
        answers: tuple[Tokens, ...],
        passes: float = 0,
        adapters: int = 1,
        scored: bool = True,
    ) -> StagePlan:
        """Return what a training costs.

        Args:
            answers: length of each completion of an example: one for SFT, two for a pair.
            passes: forward passes of a reference over all examples.
            adapters: on the base.
            scored: whether the completions' scores over the vocabulary are trained on; not for a reward model.
        """
        steps = math.ceil(math.ceil(examples / (config.batch_size * config.gradient_accumulation)) * config.epochs)
        shape = read_dimensions(self.recipe.trained)
        if shape is None or not examples:
            return _unknown(self.recipe.trained, StagePlan(train_steps=steps), examples)
        sharing = {"always": True, "auto": device() == "cpu"}.get(getattr(config, "share_prompt", "never"), False)
        shared = len(answers) > 1 and sharing  # the prompt of a pair runs once for both sides (`cai.train.packing`)

        def example(prompt: float, *answers: float) -> tuple[float, float, float]:
            """Return the tokens of an example, those of its completions, and those of its longest sequence."""
            answers = tuple(min(a, config.max_length) for a in answers)
            prompt = max(0.0, min(prompt, config.max_length - max(answers)))
            return prompt * (1 if shared else len(answers)) + sum(answers), sum(answers) * scored, prompt + max(answers)

        one, targets, length = example(prompt.mean, *(a.mean for a in answers))
        longest_one, most_targets, longest = example(prompt.longest, *(a.longest for a in answers))
        # sequences are padded to the longest of their batch; pairs that share a prompt lie end to end, and not all of a batch are long
        largest = one + (longest_one - one) / math.sqrt(config.batch_size) if shared else len(answers) * longest
        tokens, head = examples * config.epochs * one, 2.0 * shape.hidden * shape.vocabulary * examples * config.epochs * targets
        forward = forward_flop(shape, tokens, length)
        backward = forward_flop(shape, tokens, length, min(config.lora.layers or shape.layers, shape.layers))
        again = 1.5 if config.gradient_checkpointing else 1.0  # a forward pass more on two
        flop = (forward + backward) * again + 2 * head + (forward + head) * passes / config.epochs
        seconds = flop / (TRAIN_PART * self.rates_of(config.precision).flops)
        memory = training_bytes(shape, config, config.batch_size * largest, config.batch_size * most_targets, device(), adapters)
        return StagePlan(train_steps=steps, trained_tokens=round(tokens), seconds=seconds, memory_bytes=round(memory))

    @property
    def adapted(self) -> ModelSpec:
        """The trained model with an adapter of the run."""
        return structs.replace(self.recipe.trained, adapter="models/sft")

    def pair_training(self, examples: float, sides: int = 2, passes: float = 1.0) -> StagePlan:
        """Return the cost of a training on pairs from the SFT adapter, whose shape it has. A frozen copy is the reference.

        Args:
            passes: forward passes of the reference over all examples; DPO keeps its log-probabilities after the first epoch.
        """
        lora = structs.replace(self.recipe.policy.lora, layers=self.recipe.sft.lora.layers)
        answers = (written(self.recipe.pairs.sampling.max_tokens),) * sides
        return self.training(structs.replace(self.recipe.policy, lora=lora), examples, self.prompt, answers, passes, adapters=2)

    def term_calls(self, completions: float, answer: Tokens) -> list[StagePlan]:
        """Return the cost of what the recipe's reward terms ask the judge about completions of this length."""
        terms = [TERMS.get(reward.term) for reward in self.recipe.policy.online.rewards]
        return [
            self.asked_of_judge(term.work, self.asked if term.asks_principles else 1, completions, self.prompt, answer) for term in terms
        ]

    def scores(self, texts: float, prompt: Tokens, answer: Tokens, per_prompt: float) -> StagePlan:
        """Return what it costs to score answers with every reward model, so many to a prompt, which runs once."""
        config, longest = self.recipe.reward, min((prompt + answer).longest, self.recipe.reward.max_length)
        spec = structs.replace(
            self.recipe.trained,
            precision=config.precision,
            adapter=config.member_names[0] if config.members == 1 else None,  # a lone member is merged
            batch_size=max(1, int(KEPT_TOKENS / longest)),
        )
        read = min(answer.mean, config.max_length)
        one = self.calls(spec, Work(texts / per_prompt, min(prompt.mean, config.max_length - read), per_prompt, read), longest)
        return joined("", *[uncounted(one)] * config.members)

    def rewards(self, preferences: float, prompt: Tokens, answer: Tokens) -> StagePlan:
        """Return what every reward model costs. By source or principle the members share the labels, about evenly."""
        config, part = self.recipe.reward, 1 / self.recipe.reward.members
        train = preferences * (1 - self.recipe.preferences.held_out_fraction)
        share = {"folds": 1 - part, "parts": part, "source": part, "principle": part}.get(config.slices, 1.0)
        one = self.training(config, math.ceil(train * share), prompt, (answer, answer), scored=False)
        centred = self.scores(2 * (min(CENTRE_PAIRS, train) + preferences - train), prompt, answer, 2)
        return joined("", *[one, centred] * config.members, self.scores(2 * (preferences - train), prompt, answer, 2))


def _unknown(spec: ModelSpec, done: StagePlan, work: float) -> StagePlan:
    """Return what is counted, with seconds and memory that nothing here tells; a scripted model takes none."""
    nothing = spec.path == "scripted" or not work
    return replace(done, seconds=0.0 if nothing else None, memory_bytes=0 if nothing or spec.is_server else None)
