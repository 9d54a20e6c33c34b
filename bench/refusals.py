"""Which prompts models refuse, by kind: greedy and short, because a refusal is a decision that shows in the first words.

    python -m bench.refusals BASE MODEL [MODEL …] [--prompts FILE]… [--limit N] [--max-tokens 40] [--told CONSTITUTION] [--probe FILE]

Prints, for each file and kind of prompt, how many each model refuses by rule, and the change against the first model, paired by prompt,
with a 95 % interval. `cai evaluate` measures the same beside much else, on whole answers.

`--told` adds the first model with the constitution's principles for the prompt's kind in the user's turn: what it does without training,
if somebody told it of which kind each prompt is. `--probe` takes a probe that `cai judge fit` fitted to people's labels on the first
model's hidden states, and adds how often it prefers the last model's answer to each other's, both cut to the words of the shorter one.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from cai import Session
from cai.constitution.load import load_constitution
from cai.core.console import plain_table
from cai.core.text.refusals import is_refusal
from cai.errors import ReplyError
from cai.generate.critique import as_sampling, respond
from cai.generate.distill import Told
from cai.models.naming import spec_from_name
from cai.recipe import EvaluateConfig, FeedbackConfig, ModelSpec, PromptSource, Recipe, SteadySampling
from cai.records import Constitution, Prompt, Provenance, ResponsePair
from cai.stats import change, clustered_share

SETS = ("eval_harmful", "eval_borderline", "eval_helpful", "eval_contrast")
Answers = Mapping[str, str]
"""Prompt id to a model's answer."""


async def answers(session: Session, name: str, prompts: Sequence[Prompt], constitution: Constitution | None = None) -> Answers:
    """Return a model's answers, with the constitution's principles for a prompt's kind in its context if one is given.

    Raises `ModelError` where the model can't answer a prompt.
    """
    writer = session.writer(await session.open_model(spec_from_name(name)))
    sampling = session.recipe.evaluate.sampling
    ask = Told(writer.model, session.templates, "user", as_sampling(sampling))

    async def work(prompt: Prompt) -> tuple[str, str]:
        if constitution is None or not (principles := constitution.for_kind(prompt.kind)):
            return prompt.id, (await respond(prompt, writer, sampling)).text
        return prompt.id, (await ask(prompt, principles, 0))[0].text

    found = dict(await session.each(prompts, work, f"answers of {name}", lambda p: p.id))
    await session.close_models()
    session.warn_of_failures()
    return found


async def preferred(session: Session, prompts: Sequence[Prompt], last: Answers, other: Answers) -> dict[str, float]:
    """Return by prompt whether the probe prefers the last model's answer (1) or the other's (0), of equal length; ½ if they are equal."""
    judge = await session.open_judge(load_constitution("general"))  # a probe reads no principle

    async def work(prompt: Prompt) -> tuple[str, float]:
        texts = last[prompt.id].split(), other[prompt.id].split()
        a, b = (" ".join(words[: min(map(len, texts))]) for words in texts)
        if a == b:
            return prompt.id, 0.5
        judgment = await judge(ResponsePair(prompt, a, b, "bench", Provenance(judge.model.fingerprint)))
        if judgment.p_a is None:
            raise ReplyError(judgment.failure or "not_judged", judgment.detail)
        return prompt.id, float(judgment.p_a > 0.5)

    found = dict(await session.each(prompts, work, "read by the probe", lambda p: p.id))
    await session.close_models()
    return found


async def main(args: argparse.Namespace) -> None:
    """Answer, count, and print the tables."""
    sampling = SteadySampling(max_tokens=args.max_tokens, temperature=0)
    reader = spec_from_name(args.models[0], ModelSpec(precision="float32"))  # as a probe is fitted
    feedback = FeedbackConfig(protocol="probe", probe=args.probe, judge=reader) if args.probe else FeedbackConfig()
    recipe = Recipe(name="refusals", evaluate=EvaluateConfig(sampling=sampling), feedback=feedback)
    asked: list[tuple[str, str, Constitution | None]] = [(name, name, None) for name in args.models]
    if args.told:
        asked.insert(1, ("told", args.models[0], load_constitution(args.told)))
    names = [label for label, _, _ in asked]
    with Session(args.models[0], recipe=recipe, keep_calls=False) as session:
        sets = [(file.stem, session.load_prompts([PromptSource(path=str(file.resolve()), limit=args.limit)])) for file in args.prompts]
        prompts = [p for _, found in sets for p in found]
        models = [await answers(session, name, prompts, constitution) for _, name, constitution in asked]
        read = [await preferred(session, prompts, models[-1], other) for other in models[:-1]] if args.probe else []
    console = Console(width=None if sys.stdout.isatty() else 240)
    table = plain_table("refused by rule", "kind", "n", *names, *(f"change of {name}" for name in names[1:]))
    for stem, found in sets:
        for kind in dict.fromkeys(p.kind for p in found):
            rows = [[is_refusal(model[p.id]) for p in found if p.kind == kind] for model in models]
            table.add_row(stem, kind, str(len(rows[0])), *(str(sum(row)) for row in rows), *changes(rows))
    console.print(table)
    if read:
        table = plain_table(f"{names[-1]} preferred to", "kind", "n", *names[:-1])
        for stem, found in sets:
            for kind in dict.fromkeys(p.kind for p in found):
                ids = [p.id for p in found if p.kind == kind]
                table.add_row(stem, kind, str(len(ids)), *(share([mine[i] for i in ids]) for mine in read))
        console.print(table)


def share(values: Sequence[float]) -> str:
    """Return a share of prompts with its interval."""
    return "{:.0%} [{:.0%}, {:.0%}]".format(sum(values) / len(values), *clustered_share(values, range(len(values))))


def changes(rows: Sequence[Sequence[bool]]) -> list[str]:
    """Return each later row's change against the first, with its interval."""
    return ["{:+.0%} [{:+.0%}, {:+.0%}]".format(*change(rows[0], row)) for row in rows[1:]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--prompts", type=Path, action="append", default=[])
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--told", default=None, metavar="CONSTITUTION")
    parser.add_argument("--probe", default=None, metavar="FILE")
    given = parser.parse_args()
    given.prompts = given.prompts or [Path(f"prompts/{name}.jsonl") for name in SETS]
    asyncio.run(main(given))
