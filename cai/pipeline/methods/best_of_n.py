"""Best of n (rejection sampling): fine-tune the SFT policy on the highest-rewarded of n samples to each prompt.

Askell et al. 2021 (arXiv 2112.00861) rank samples by a preference model, and Bai et al. 2022 (arXiv 2204.05862) compare such rejection
sampling with RL. Llama 2 (arXiv 2307.09288, §3.2.3) fine-tunes on the best sample, as here. Samples are scored by the terms of
`policy.online.rewards`, as for GRPO.

Choices where the literature differs:

1. One iteration, from the SFT adapter. Llama 2 samples again from the result.
2. A prompt whose samples all score the same says nothing about the reward, and is left out. So is one with fewer than two samples left.
3. The KL of the best of n from the model that wrote it is at most log n − (n − 1)/n nats (Beirami et al. 2024, arXiv 2401.01879). That is
   the distance of the data. Training on them may end nearer or farther.

`models/policy/samples/` has every sample with its rewards (`samples.jsonl`), what was trained on (`best.jsonl`) and the means
(`summary.json`). A killed run resumes: samples and the judge's answers are in the call store, and training resumes from its checkpoint.
Only the reward models' scores are computed again. With several processes, rank 0 samples and scores, and all ranks train.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import msgspec
from msgspec import structs

from cai.core.flow import together
from cai.core.jsonl import append_record, read_records, write_json, write_records
from cai.core.manifest import TEXTS, TRUNCATED
from cai.core.text.repetition import LOOPING, repeated_fraction
from cai.errors import ReplyError, TrainingError
from cai.generate.critique import Writer
from cai.ids import derive_seed
from cai.models.opening import release_memory
from cai.pipeline.context import Context
from cai.pipeline.costs import Costs, StagePlan, joined, written
from cai.pipeline.policy_method import (
    SAMPLES,
    PolicyMethod,
    ensemble_settings,
    needs_scorer,
    no_room,
    term_sources,
    with_judge,
)
from cai.pipeline.reward_models import gold_model, load_gold, reward_models
from cai.pipeline.rewarding import load_reward_function, open_asked, warn_if_unmonitored
from cai.pipeline.training import progress_of, trained
from cai.recipe import OnlineConfig, Recipe, SamplingSpec, SFTConfig, TrainSpec
from cai.records import Prompt, Provenance, SFTExample
from cai.train.cards import CardFacts, write_card
from cai.train.running import is_first_process

SOURCE = "best-of-n"
"""`source` of the examples."""
SCORED_AT_ONCE = 32
"""Prompts whose samples are scored together."""
Values = dict[int, float]
"""A number of each sample of a prompt, by the sample's number."""


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One of a prompt's samples."""

    prompt_id: str
    number: int
    seed: int
    text: str = ""
    reasoning: str = ""
    dropped: str = ""
    """Why it is left out: `truncated`, `repetitive`, `unscored`, or the reason of a reply that can't be used; empty if it isn't."""
    reward: float | None = None
    terms: dict[str, float | None] = field(default_factory=dict)
    """Unweighted."""
    gold: float | None = None
    best: bool = False
    """Whether it was trained on."""


@dataclass(frozen=True, slots=True)
class SampledPrompt:
    """A prompt with its samples, and the hash of the template and the model that wrote them."""

    prompt: Prompt
    samples: tuple[ScoredSample, ...]
    by: Provenance


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of samples and prompts, and mean rewards over all prompts with a scored sample."""

    n: int
    """Samples to a prompt."""
    prompts: int
    """Those that were sampled."""
    chosen: int
    """Those whose best sample is trained on."""
    all_equal: int
    """Those whose samples all have one reward."""
    too_few: int
    """Those with fewer than two samples left."""
    dropped: dict[str, int]
    """Samples that were left out, by reason."""
    kl_bound: float
    """log n − (n − 1)/n, in nats."""
    reward: float | None
    """Mean reward of the samples: the mean over prompts of each one's mean."""
    reward_best: float | None
    """Mean reward of each prompt's best sample."""
    gold: float | None = None
    """`reward`, by the gold reward model."""
    gold_best: float | None = None
    """Mean gold reward of the samples that are best by the reward."""


def best_of_n(c: Context) -> dict[str, int]:
    """Sample, score, and fine-tune on the best samples."""
    from cai.train.sft import train_sft

    config, out = c.recipe.policy, c.run.model("policy")
    folder = out / SAMPLES
    warn_if_unmonitored(c)
    c.processes.on_rank_zero(partial(choose_best, c, folder))
    examples = list(read_records(folder / "best.jsonl", SFTExample))
    summary = msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)
    shared = {name: getattr(config, name) for name in TrainSpec.__struct_fields__}
    sft = SFTConfig(**shared, soft_targets=False, thinking=True)
    result = train_sft(sft, c.adapted("sft"), examples, out, c.recipe.seed, progress_of(c))
    method = f"SFT of the SFT adapter on the best of its own {summary.n} samples, {in_words(summary)}"
    counts = trained(c, result, out)
    if is_first_process():
        write_card(out, CardFacts("policy", c.recipe.trained.path, method, {SOURCE: len(examples)}, config, result, c.recipe.seed))
        numbers = {f"best_of_n/{name}": value for name, value in msgspec.to_builtins(summary).items() if isinstance(value, int | float)}
        append_record(c.run.metrics, {"stage": c.stage, **numbers})
        c.tracking.log(c.stage, numbers)
    dropped = {f"samples_{reason}": count for reason, count in sorted(summary.dropped.items()) if reason != TRUNCATED}
    prompts = {"prompts": summary.prompts, "all_equal": summary.all_equal, "too_few": summary.too_few}
    return {**prompts, **dropped, **counts, TEXTS: summary.prompts * summary.n, TRUNCATED: summary.dropped.get(TRUNCATED, 0)}


def choose_best(c: Context, folder: Path) -> None:
    """Sample and score, and write the records that the training reads.

    Raises:
        TrainingError: no prompt has samples that differ in reward.
        CaiError: sampling or scoring failed.
    """
    with asyncio.Runner() as runner:
        try:
            sampled = runner.run(sample_all(c))
            runner.run(c.session.close_models())
            scored = score_all(c, sampled, runner)
        finally:
            runner.run(c.session.close_models())
    release_memory()
    picked = [replace(one, samples=with_best(one.samples)) for one in scored]
    summary = summarize(picked, c.recipe.policy.online.num_generations)
    write_records(folder / "samples.jsonl", [sample for one in picked for sample in one.samples])
    write_records(folder / "best.jsonl", [example_of(one, sample) for one in picked for sample in one.samples if sample.best])
    write_json(folder / "summary.json", summary)
    left_out = f"{summary.all_equal} with equal rewards, {summary.too_few} with fewer than two samples left"
    if not summary.chosen:
        raise TrainingError(
            f"best-of-n: of {summary.prompts} prompts none has samples that differ in reward ({left_out}; samples left out: "
            f"{summary.dropped or 'none'}).\nFix: raise policy.online.num_generations, temperature or max_tokens, or reward something in "
            "which samples differ (policy.online.rewards)"
        )
    c.reporter.say(f"  policy: {summary.chosen} of {summary.prompts} prompts ({left_out}); {in_words(summary)}")


async def sample_all(c: Context) -> list[SampledPrompt]:
    """Sample each training prompt from the SFT model."""
    work = partial(sample_prompt, writer=await c.writer(c.adapted("sft")), online=c.recipe.policy.online)
    return await c.session.each(list(c.read("prompts", Prompt)), work, "prompts sampled")


async def sample_prompt(prompt: Prompt, writer: Writer, online: OnlineConfig) -> SampledPrompt:
    """Sample one prompt `num_generations` times. Each sample has its own seed, so that raising the number only adds samples.

    Raises:
        ReplyError: there is no usable reply at all.
    """
    template = writer.templates.respond
    asked = template.render({"conversation": prompt.messages})
    sampling = SamplingSpec(max_tokens=online.max_tokens, thinking_tokens=online.thinking_tokens, temperature=online.temperature)
    failed: dict[int, ReplyError] = {}

    async def sample(number: int) -> ScoredSample:
        seed = derive_seed(writer.run_seed, prompt.id, SOURCE, number)
        try:
            said = await writer.text(asked, sampling, seed)
        except ReplyError as e:
            failed[number] = e
            return ScoredSample(prompt.id, number, seed, dropped=e.reason)
        rule = TRUNCATED if said.truncated else "repetitive" if repeated_fraction(said.text) > LOOPING else ""
        return ScoredSample(prompt.id, number, seed, said.text, said.reasoning, rule)

    samples = await together(sample(number) for number in range(online.num_generations))
    if len(failed) == len(samples):
        raise failed[0]
    by = Provenance(writer.model.fingerprint, (), template.hash, samples[0].seed, writer.recipe_hash)
    return SampledPrompt(prompt, tuple(samples), by)


def score_all(c: Context, sampled: Sequence[SampledPrompt], runner: asyncio.Runner) -> list[SampledPrompt]:
    """Score all samples that were not left out by the recipe's reward terms and, if there is one, the gold reward model."""
    rewards = load_reward_function(c, open_asked(c, runner), runner)
    gold = load_gold(c.recipe, c.run) if c.recipe.gold is not None else None
    scored: list[SampledPrompt] = []
    for start in range(0, len(sampled), SCORED_AT_ONCE):
        part = sampled[start : start + SCORED_AT_ONCE]
        kept = [(one.prompt, sample) for one in part for sample in one.samples if not sample.dropped]
        known: dict[tuple[str, int], ScoredSample] = {}
        if kept:
            found = rewards.score([(prompt, sample.text) for prompt, sample in kept])
            golds = [s.value for s in gold.score([(prompt.messages, sample.text) for prompt, sample in kept])] if gold else None
            for i, (_, sample) in enumerate(kept):
                terms = {name: values[i] for name, values in found.by_term.items()}
                worth = replace(sample, reward=found.totals[i], terms=terms, gold=golds[i] if golds else None)
                known[sample.prompt_id, sample.number] = worth if worth.reward is not None else replace(worth, dropped="unscored")
        scored += [replace(one, samples=tuple(known.get((s.prompt_id, s.number), s) for s in one.samples)) for one in part]
        c.reporter.progress(len(scored), len(sampled), "prompts scored")
    return scored


def with_best(samples: Sequence[ScoredSample]) -> tuple[ScoredSample, ...]:
    """Mark the sample with the highest reward; none where fewer than two are left, or all rewards are equal."""
    left = rewards_of(samples)
    if len(set(left.values())) < 2:
        return tuple(samples)
    return tuple(replace(sample, best=sample.number == best_number(left)) for sample in samples)


def rewards_of(samples: Sequence[ScoredSample]) -> Values:
    """Return the rewards of the samples that are left, by their number."""
    return {sample.number: sample.reward for sample in samples if sample.reward is not None and not sample.dropped}


def best_number(rewards: Values) -> int:
    """Return the number of the sample with the highest reward, the first of equal ones."""
    return max(rewards, key=lambda number: (rewards[number], -number))


def summarize(picked: Sequence[SampledPrompt], n: int) -> Summary:
    """Return counts and mean rewards.

    Args:
        picked: prompts with their scored samples.
        n: samples to a prompt, those that were left out included.
    """
    rewards = [rewards_of(one.samples) for one in picked]
    golds = [{sample.number: sample.gold for sample in one.samples if sample.gold is not None} for one in picked]
    (reward, reward_best), (gold, gold_best) = mean_and_best(rewards, rewards), mean_and_best(rewards, golds)
    return Summary(
        n=n,
        prompts=len(picked),
        chosen=sum(sample.best for one in picked for sample in one.samples),
        all_equal=sum(len(found) > 1 and len(set(found.values())) == 1 for found in rewards),
        too_few=sum(len(found) < 2 for found in rewards),
        dropped=dict(sorted(Counter(s.dropped for one in picked for s in one.samples if s.dropped).items())),
        kl_bound=kl_bound(n),
        reward=reward,
        reward_best=reward_best,
        gold=gold,
        gold_best=gold_best,
    )


def mean_and_best(rewards: Sequence[Values], values: Sequence[Values]) -> tuple[float, float] | tuple[None, None]:
    """Return a value's mean over the samples, and its mean for the samples with the highest reward; prompts count equally.

    Args:
        rewards: those of each prompt's samples, by their number.
        values: what is averaged, by the same numbers; prompts without are left out.

    >>> mean_and_best([{0: 1.0, 2: 3.0}, {}], [{0: 5.0, 2: 4.0}, {}])
    (4.5, 4.0)
    """
    known = [(left, value) for left, value in zip(rewards, values, strict=True) if left and value]
    if not known:
        return None, None
    return fmean(fmean(value[i] for i in left) for left, value in known), fmean(value[best_number(left)] for left, value in known)


def kl_bound(n: int) -> float:
    """Return the most that the best of n samples differs from the model that wrote them, as KL in nats.

    >>> round(kl_bound(1), 3), round(kl_bound(8), 3)
    (0.0, 1.204)
    """
    return math.log(n) - (n - 1) / n


def in_words(summary: Summary) -> str:
    """Return the mean rewards and the KL bound in words."""
    if summary.reward is None or summary.reward_best is None:
        return "no sample could be scored"
    gold = "" if summary.gold is None or summary.gold_best is None else f"; gold {summary.gold:.3f}, of the best {summary.gold_best:.3f}"
    return (
        f"mean reward {summary.reward:.3f}, of the best {summary.reward_best:.3f}{gold}; "
        f"best of {summary.n} is at most {summary.kl_bound:.2f} nats away"
    )


def example_of(one: SampledPrompt, sample: ScoredSample) -> SFTExample:
    """Return a sample as an example to train on."""
    return SFTExample(one.prompt, sample.text, (), SOURCE, replace(one.by, seed=sample.seed), reasoning=sample.reasoning)


def best_of_n_reads(recipe: Recipe) -> tuple[str, ...]:
    """Return what it reads: the reward models only where a term scores with them."""
    rewards = reward_models(recipe) if needs_scorer(recipe, "ensemble") else ()
    return ("data/prompts.jsonl", "models/sft", *rewards, *gold_model(recipe))


def best_of_n_work(c: Costs) -> StagePlan:
    """Return the cost of samples, their scores, and SFT on at most one of them to each prompt."""
    recipe, online = c.recipe, c.recipe.policy.online
    samples, answer = c.prompts * online.num_generations, written(online.max_tokens)
    sampling = SamplingSpec(max_tokens=online.max_tokens, thinking_tokens=online.thinking_tokens)
    one_model = replace(c, recipe=structs.replace(recipe, reward=structs.replace(recipe.reward, members=1)))
    scorers = [c] * needs_scorer(recipe, "ensemble") + [one_model] * (recipe.gold is not None)
    config = structs.replace(recipe.policy, lora=structs.replace(recipe.policy.lora, layers=recipe.sft.lora.layers))
    return joined(
        "",
        c.answers(c.adapted, c.prompts, c.prompt, sampling, online.num_generations),
        *[scorer.scores(samples, c.prompt, answer, online.num_generations) for scorer in scorers],
        *c.term_calls(samples, answer),
        c.training(config, c.prompts, c.prompt, (written(online.most_tokens),)),
    )


def best_of_n_problems(recipe: Recipe) -> list[str]:
    """Say what is wrong with its settings."""
    problems = no_room(recipe, "online.max_tokens", recipe.policy.online)
    if not any(term.weight for term in recipe.policy.online.rewards):
        problems.append("policy.online.rewards: every weight is 0, so that no sample is better than another")
    return problems


METHOD = PolicyMethod(
    "best-of-n",
    best_of_n,
    best_of_n_reads,
    lambda recipe: (recipe.policy, ensemble_settings(recipe), recipe.feedback),
    best_of_n_work,
    models=with_judge,
    sources=term_sources,
    problems=best_of_n_problems,
    watch=False,
    samples=True,
)
