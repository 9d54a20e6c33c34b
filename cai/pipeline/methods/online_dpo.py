"""Iterated (online) DPO: each round samples pairs from the current policy, labels them, and trains on them.

Each round writes to `models/policy/round-N/`: `pairs.jsonl`, `judgments.jsonl`, `preferences.jsonl` and the adapter. Sampling, judging,
mixing and training use the same functions as the other stages. A killed run resumes: samples and judgments are in the call store, and
training resumes from its checkpoint. With several processes, rank 0 samples and judges, and all ranks train.

Choices where the literature differs:

1. The reference model of every round is the SFT policy, so that β bounds the distance to one model over all rounds (Xiong et al. 2023,
   arXiv 2312.11456). `policy.rounds.reference: previous` uses the policy at the start of the round (Yuan et al. 2024, arXiv 2401.10020),
   which allows the same distance again in each round.
2. A round trains on its own pairs only, because earlier pairs were sampled from other policies.
3. The optimizer and the learning-rate schedule restart in each round.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cai.core.jsonl import read_records, write_records
from cai.data.mixture import mix
from cai.generate.pairs import PairTask, sample_pair
from cai.ids import at_most, derive_seed
from cai.judge.protocol import probability
from cai.pipeline.context import Context
from cai.pipeline.costs import Costs, StagePlan, joined, written
from cai.pipeline.policy_method import PolicyMethod, ensemble_settings, judge_sources, with_judge
from cai.pipeline.reward_models import load_rewards, reward_models
from cai.pipeline.rewarding import warn_if_unmonitored
from cai.pipeline.training import progress_of, remove_rounds, trained
from cai.recipe import Recipe
from cai.records import Judgment, Preference, Prompt, Provenance, ResponsePair
from cai.train.checkpoints import TrainResult
from cai.train.running import HISTORY, OnLog

PREFERENCES = "preferences.jsonl"
"""Training data of a round."""
RECORDS = ("pairs.jsonl", "judgments.jsonl", PREFERENCES)
"""Record files in a round's folder, next to the adapter."""
REWARD = "reward"
"""Protocol name in judgments by reward models."""


def online_dpo(c: Context) -> dict[str, int]:
    """Train in rounds."""
    warn_if_unmonitored(c)
    return {"rounds": c.recipe.policy.rounds.count, **trained(c, train_rounds(c, progress_of(c)), c.run.model("policy"))}


def train_rounds(c: Context, on_log: OnLog) -> TrainResult:
    """Train the policy in rounds from the SFT adapter; the last round's adapter becomes `models/policy`.

    Args:
        on_log: called after each step; steps are numbered across rounds.
    """
    from cai.train.dpo import train_dpo

    config, sft, out = c.recipe.policy.rounds, c.run.model("sft"), c.run.model("policy")
    remove_rounds(out, config.count)
    results: list[TrainResult] = []
    start = sft
    with asyncio.Runner() as runner:  # the engines' event loop; training runs outside it, so that Ctrl-C stops it at once
        for number in range(1, config.count + 1):
            folder = out / f"round-{number}"
            c.processes.on_rank_zero(partial(judge_round, c, runner, number, start, folder))
            preferences = list(read_records(folder / PREFERENCES, Preference))
            done = sum(result.steps for result in results)

            def log(step: int, total: int, metrics: dict[str, float], done: int = done) -> None:
                on_log(done + step, done + total, metrics)

            seed = derive_seed(c.recipe.seed, "policy", "round", number)
            reference = sft if config.reference == "sft" and start != sft else None
            results.append(train_dpo(c.recipe.policy, c.recipe.trained, start, preferences, folder, seed, log, reference=reference))
            start = folder
    if c.processes.is_rank_zero:
        publish(start, out)
        write_records(out / HISTORY, rounds_log(out, config.count))
    dropped = sum((Counter(result.dropped) for result in results), Counter[str]())
    return TrainResult(
        sum(result.steps for result in results),
        sum(result.examples for result in results),
        dict(dropped),
        results[-1].metrics,
        sum(result.seconds for result in results),
    )


def judge_round(c: Context, runner: asyncio.Runner, number: int, start: Path, folder: Path) -> None:
    """Write a round's training data, and free the memory of the models."""
    try:
        runner.run(judged_pairs(c, number, start, folder))
    finally:
        runner.run(c.session.close_models())


async def judged_pairs(c: Context, number: int, start: Path, folder: Path) -> None:
    """Sample a round's pairs from the policy at the start of the round, judge them, and write pairs, judgments and preferences."""
    config = c.recipe.policy.rounds
    prompts = round_prompts(list(c.read("prompts", Prompt)), config.prompts, number, c.recipe.seed)
    policy = await c.writer(replace(c.recipe.trained, adapter=str(start)))
    tasks = round_tasks(prompts, c.recipe.pairs.per_prompt, number)

    async def sample(task: PairTask) -> ResponsePair:
        return await sample_pair(task, policy, c.recipe.pairs)

    pairs = await c.session.each(tasks, sample, f"pairs of round {number}")
    await c.session.close_models()
    if config.labels == "reward":
        judgments = reward_judgments(c, pairs)
    else:
        judgments = await c.session.each(pairs, await c.judge(), f"judgments of round {number}", failure_of=lambda j: j.failed)
    every = replace(c.recipe.preferences, held_out_fraction=0.0)
    mixture = mix(
        every,
        pairs,
        judgments,
        seed=c.recipe.seed,
        evaluate=c.read("eval_prompts", Prompt),
        similarity=c.recipe.prompts.near_duplicates,
    )
    c.failures += mixture.dropped
    write_records(folder / "pairs.jsonl", pairs)
    write_records(folder / "judgments.jsonl", judgments)
    write_records(folder / PREFERENCES, mixture.train)


def round_prompts(prompts: Sequence[Prompt], limit: int | None, number: int, seed: int) -> list[Prompt]:
    """Return a round's prompts, in their order: all, or `limit` of them, chosen by a hash that includes the round."""
    return list(at_most(prompts, limit, f"round-{number}:{seed}"))


def round_tasks(prompts: Sequence[Prompt], per_prompt: int, number: int) -> list[PairTask]:
    """Return a round's pair tasks. Their numbers, and so their seeds, differ from those of the `pairs` stage and of other rounds."""
    return [PairTask(prompt, number * per_prompt + i) for prompt in prompts for i in range(per_prompt)]


def reward_judgments(c: Context, pairs: Sequence[ResponsePair]) -> list[Judgment]:
    """Label pairs by the run's reward models: the difference of the two aggregated scores is the log-odds that A is better."""
    from cai.models.local.fingerprint import model_fingerprint

    config = c.recipe.reward
    base = replace(c.recipe.trained, adapter=str(c.run.model(config.member_names[0])), precision=config.precision)
    scores = load_rewards(c.recipe, c.run).score([(p.prompt.messages, text) for p in pairs for text in (p.response_a, p.response_b)])
    by = Provenance(model_fingerprint(base), (), "", c.recipe.seed, c.settings_hash)
    return [
        Judgment(pair.id, (), REWARD, probability(a.value - b.value), None, None, None, by)
        for pair, a, b in zip(pairs, scores[::2], scores[1::2], strict=True)
    ]


def publish(source: Path, out: Path) -> None:
    """Copy a round's adapter to the policy's folder, without the round's records. Removes everything else except the rounds' folders."""
    for old in out.iterdir():
        if old.is_file():
            old.unlink()
        elif not old.name.startswith("round-"):
            shutil.rmtree(old)
    for file in source.iterdir():
        if file.is_file() and file.name not in RECORDS:
            shutil.copyfile(file, out / file.name)


def rounds_log(out: Path, count: int) -> list[dict[str, Any]]:
    """Return the training log of all rounds, with the column `round`; steps are numbered across rounds."""
    rows: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        done = rows[-1]["step"] if rows else 0
        found = read_records(out / f"round-{number}" / HISTORY, dict[str, Any])
        rows += [{**row, "step": done + row["step"], "round": number} for row in found]
    return rows


def online_dpo_reads(recipe: Recipe) -> tuple[str, ...]:
    """Return what a run's rounds read: the reward models too, where these label."""
    judges = reward_models(recipe) if recipe.policy.rounds.labels == "reward" else ()
    return ("data/prompts.jsonl", "data/eval_prompts.jsonl", "models/sft", *judges)


def online_dpo_work(c: Costs) -> StagePlan:
    """Return the cost of the rounds: each samples pairs, labels them and trains on them."""
    recipe, rounds, sampling = c.recipe, c.recipe.policy.rounds, c.recipe.pairs.sampling
    drawn = min(c.prompts, rounds.prompts or c.prompts) * recipe.pairs.per_prompt
    answer, samples = written(sampling.max_tokens), c.answers(c.adapted, drawn, c.prompt, sampling, 2)
    labels = c.judged(drawn, c.prompt, answer) if rounds.labels == "judge" else c.scores(2 * drawn, c.prompt, answer, 2)
    return joined("", *[samples, labels, c.pair_training(drawn)] * rounds.count)


METHOD = PolicyMethod(
    "online-dpo",
    online_dpo,
    online_dpo_reads,
    lambda recipe: (recipe.policy, recipe.pairs, recipe.feedback, recipe.preferences, ensemble_settings(recipe)),
    online_dpo_work,
    models=with_judge,
    sources=judge_sources,
    watch=False,
    rounds=True,
)
