"""Best of n: how far a reward can be followed before any RL, by another measure of the same samples.

    python -m bench.best_of_n MODEL [--reward SCORER]… [--gold SCORER]… [--constitution FILE] [--prompts FILE]… [--samples 32]

A model answers each prompt `--samples` times. Of n answers the one with the highest reward is taken, for n = 1, 2, 4 …; its KL from the
model is log n − (n − 1)/n nats. All subsets of n answers count (Stiennon et al. 2020, arXiv 2009.01325, appendix G.3 has the estimator).
A scorer is a reward model's folder (several are one ensemble) or the file of a probe that `cai judge fit` wrote. Without `--reward`, the
reward is the share of the constitution's checks that an answer follows. Gold is another scorer, fitted to other labels; each check is
measured beside it. Intervals are 95 %, over prompts.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import comb, log
from pathlib import Path

import numpy as np
from rich.console import Console

from cai import Session, load_constitution
from cai.core.console import plain_table
from cai.core.text.checks import check_share, follows
from cai.core.text.words import words
from cai.data.prompts import load_prompts
from cai.generate.critique import Writer, respond
from cai.judge.probe import check_probe, probe_score, read_probe
from cai.models.naming import spec_from_name
from cai.recipe import EvaluateConfig, ModelSpec, PromptSource, Recipe, SteadySampling
from cai.records import Constitution, Principle, Prompt, Response
from cai.stats import paired_bootstrap

Measures = Mapping[str, np.ndarray]
"""Name to a value of each answer, (P, N): prompts, answers; NaN where the measure doesn't apply to a prompt."""


def best_of(reward_N: np.ndarray, value_N: np.ndarray, n: int) -> float:
    """Return the expected value of the answer with the highest reward among n drawn without replacement; ties are broken by chance."""
    size = len(reward_N)
    weight_N = np.array([comb(rank, n - 1) for rank in range(size)], dtype=float) / comb(size, n)
    order = np.argsort(reward_N, kind="stable")
    _, tied = np.unique(reward_N[order], return_inverse=True)
    shared = np.bincount(tied, weight_N) / np.bincount(tied)
    return float((shared[tied] * value_N[order]).sum())


def curve(reward_PN: np.ndarray, measures: Measures) -> list[tuple[int, str, float, float, float]]:
    """Return n, measure, mean over prompts and its interval, for n = 1, 2, 4 … up to the number of answers."""
    rows = []
    for n in (1 << k for k in range(reward_PN.shape[1].bit_length())):
        for name, value_PN in measures.items():
            means = [best_of(r, v, n) for r, v in zip(reward_PN, value_PN, strict=True) if not np.isnan(v).any()]
            rows.append((n, name, *paired_bootstrap(means, 0)))
    return rows


async def sampled(session: Session, prompts: Sequence[Prompt], samples: int) -> list[list[Response]]:
    """Sample each prompt with as many seeds. Prompts without all answers are left out."""
    found: list[dict[str, Response]] = []
    for number in range(samples):
        writer = replace(session.writer(session.model), run_seed=number)

        async def work(prompt: Prompt, writer: Writer = writer) -> Response:
            return await respond(prompt, writer, session.recipe.evaluate.sampling)

        found.append({r.prompt.id: r for r in await session.each(prompts, work, f"sample {number + 1} of {samples}")})
    return [[answers[p.id] for answers in found] for p in prompts if all(p.id in answers for answers in found)]


def by_check(constitution: Constitution, answers: list[list[Response]]) -> Measures:
    """Return whether each answer follows each principle with a check."""

    def value(principle: Principle, r: Response) -> float:
        followed = follows(principle, r.prompt.kind, r.text) if r.prompt.kind in principle.applies_to else None
        return np.nan if followed is None else float(followed)

    return {p.id: np.array([[value(p, r) for r in rs] for rs in answers]) for p in constitution.principles if p.check}


async def scored(session: Session, scorers: Sequence[Path], answers: list[list[Response]]) -> np.ndarray:
    """Return the scores of a probe, or of reward models as one ensemble."""
    every = [r for rs in answers for r in rs]
    if scorers[0].suffix == ".json":
        probe = read_probe(scorers[0])
        reader = await session.open_model(spec_from_name(probe.facts.model_name, ModelSpec(precision=probe.facts.precision)))
        check_probe(probe, reader.fingerprint)
        read = await asyncio.gather(*(probe_score(probe, reader, r.prompt.messages, r.text) for r in every))
    else:
        read = [s.value for s in (await session.load_rewards(scorers)).score([(r.prompt.messages, r.text) for r in every])]
    return np.array(read).reshape(len(answers), -1)


async def main(args: argparse.Namespace) -> None:
    """Sample, score, and print the curve."""
    constitution = load_constitution(args.constitution)
    sources = [PromptSource(path=str(path), limit=args.limit) for path in args.prompts]
    recipe = Recipe(name="best-of-n", evaluate=EvaluateConfig(sampling=SteadySampling(max_tokens=args.max_tokens, top_p=0.95)))
    async with Session(args.model, recipe=recipe, keep_calls=False) as session:
        prompts = [p for source in sources for p in load_prompts(source, session.workspace.root, 0).prompts]
        answers = await sampled(session, prompts, args.samples)
        measures = by_check(constitution, answers)
        shares = np.array([[check_share(constitution, r.prompt.kind, r.text) or 0.0 for r in rs] for rs in answers])
        reward = await scored(session, args.reward, answers) if args.reward else shares
        gold = {"gold": await scored(session, args.gold, answers)} if args.gold else {}
    measures = {"reward": reward, **gold, **measures, "words": np.array([[float(len(words(r.text))) for r in rs] for rs in answers])}
    table = plain_table("n", "KL, nats", *measures, right=("n", "KL, nats", *measures))
    rows = curve(reward, measures)
    for n in dict.fromkeys(row[0] for row in rows):
        cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for at, _, mean, low, high in rows if at == n]
        table.add_row(str(n), f"{log(n) - (n - 1) / n:.2f}", *cells)
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(f"{args.model}: {len(answers)} prompts, {args.samples} answers each; reward: {args.reward or 'share of checks'}", table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--reward", type=Path, action="append", default=[])
    parser.add_argument("--gold", type=Path, action="append", default=[])
    parser.add_argument("--constitution", default="constitution/starter.yaml")
    parser.add_argument("--prompts", type=Path, action="append", default=[])
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=128)
    given = parser.parse_args()
    given.prompts = given.prompts or [Path(f"prompts/eval_{kind}.jsonl") for kind in ("harmful", "borderline", "helpful")]
    asyncio.run(main(given))
