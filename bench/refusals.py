"""Which prompts models refuse, by kind: greedy and short, because a refusal is a decision that shows in the first words.

    python -m bench.refusals BASE MODEL [MODEL …] [--prompts FILE]… [--limit N] [--max-tokens 40]

Prints, for each file and kind of prompt, how many each model refuses by rule, and the change against the first model, paired by prompt,
with a 95 % interval. `cai evaluate` measures the same beside much else, on whole answers.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from rich.console import Console

from cai import Session
from cai.core.console import plain_table
from cai.core.text.refusals import is_refusal
from cai.generate.critique import respond
from cai.models.naming import spec_from_name
from cai.recipe import EvaluateConfig, PromptSource, Recipe, SteadySampling
from cai.records import Prompt, Response
from cai.stats import change

SETS = ("eval_harmful", "eval_borderline", "eval_helpful", "eval_contrast")


async def refused(session: Session, name: str, prompts: list[Prompt]) -> list[bool]:
    """Return whether a model refuses each prompt. Raises `ModelError` where it can't answer one."""
    writer = session.writer(await session.open_model(spec_from_name(name)))

    async def work(prompt: Prompt) -> Response:
        return await respond(prompt, writer, session.recipe.evaluate.sampling)

    found = {r.prompt.id: is_refusal(r.text) for r in await session.each(prompts, work, f"answers of {name}")}
    await session.close_models()
    session.warn_of_failures()
    return [found[p.id] for p in prompts]


async def main(args: argparse.Namespace) -> None:
    """Answer, count, and print the table."""
    recipe = Recipe(name="refusals", evaluate=EvaluateConfig(sampling=SteadySampling(max_tokens=args.max_tokens, temperature=0)))
    table = plain_table("prompts", "kind", "n", *args.models, *(f"change of {name}" for name in args.models[1:]))
    with Session(args.models[0], recipe=recipe, keep_calls=False) as session:
        sets = [(file.stem, session.load_prompts([PromptSource(path=str(file.resolve()), limit=args.limit)])) for file in args.prompts]
        prompts = [p for _, found in sets for p in found]
        verdicts = [await refused(session, name, prompts) for name in args.models]
    by_id = [{p.id: yes for p, yes in zip(prompts, model, strict=True)} for model in verdicts]
    for stem, found in sets:
        for kind in dict.fromkeys(p.kind for p in found):
            base, *others = ([model[p.id] for p in found if p.kind == kind] for model in by_id)
            changes = ("{:+.0%} [{:+.0%}, {:+.0%}]".format(*change(base, other)) for other in others)
            table.add_row(stem, kind, str(len(base)), *(str(sum(model)) for model in (base, *others)), *changes)
    Console(width=None if sys.stdout.isatty() else 240).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--prompts", type=Path, action="append", default=[])
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--max-tokens", type=int, default=40)
    given = parser.parse_args()
    given.prompts = given.prompts or [Path(f"prompts/{name}.jsonl") for name in SETS]
    asyncio.run(main(given))
