"""The command about prompts: prompts generate."""

from pathlib import Path
from typing import Annotated

import typer

from cai.cli.app import Json, Seed, app, open_session, print_json, print_rows, say
from cai.cli.constitutions import File, Model, OnlyPrinciples, RecipeFile

prompts = typer.Typer(name="prompts", help="Write prompts for a constitution.", no_args_is_help=True)
app.add_typer(prompts)


@prompts.callback()
def _prompts() -> None:
    """Write prompts for a constitution."""


@prompts.command()
def generate(
    file: File,
    n: Annotated[int, typer.Option("-n", help="Number of prompts per principle, in equal parts for its kinds", min=1)] = 10,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSONL file to write; standard output if not given")] = None,
    model: Model = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only prompts of this kind: harmful, borderline or helpful; may be repeated", show_default=False),
    ] = None,
    principle: OnlyPrinciples = None,
    recipe: RecipeFile = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Let a model write prompts that exercise each principle, for each kind of prompt that it applies to.

    Near-copies of each other and of the workspace's prompts/*.jsonl are dropped and counted, so that no prompt that models are evaluated on
    is trained on. The file can be a recipe's `prompts.train`. Read it first: a small model writes many prompts beside the point.
    """
    from cai.constitution.load import load_constitution
    from cai.core.flow import in_words
    from cai.core.jsonl import write_records
    from cai.core.workspace import find_workspace
    from cai.errors import DataError
    from cai.records import LABELLED_KINDS
    from cai.workbench.prompt_writing import known_prompts, prompt_row, write_prompts
    from cai.workbench.settings import settings
    from cai.workbench.trial import chosen

    if wrong := set(kind or ()) - set(LABELLED_KINDS):
        raise DataError(f"--kind {wrong.pop()}: expected {' or '.join(LABELLED_KINDS)}")
    kinds = [k for k in LABELLED_KINDS if not kind or k in kind]
    loaded = chosen(load_constitution(file), principle or [])
    files = sorted((find_workspace(file.parent).root / "prompts").glob("*.jsonl"))
    if out is not None and out.exists():
        raise DataError(f"{out}: is there already and would be overwritten. People edit prompts: choose another --out, or move it away.")
    used = settings(model=model, recipe=recipe, constitution=file, seed=seed, name="prompts")
    session = open_session(used, file.parent)
    known = known_prompts(session, files)
    if recipe is not None:
        known += session.load_prompts(used.prompts.evaluate)
    found = session.run(lambda opened: write_prompts(opened, loaded, n, kinds, known), "prompts")
    rows = [prompt_row(p) for p in found.prompts]
    if out is not None:
        write_records(out, rows)
    if json:
        shown = {"coverage": found.coverage, "dropped": found.dropped, "failures": found.failures, "calls": found.calls}
        print_json({"out": None if out is None else str(out), "prompts": rows, **shown})
        return
    if out is None:
        print_rows(rows)
    covered = f"{len({p.category for p in found.prompts})} of {len(loaded.principles)} principles"
    said = [f"{'' if out is None else f'{out}: '}{len(rows)} prompts for {covered}"]
    if few := [f"{c.principle} ({c.kind}) {c.written} of {c.wanted}" for c in found.coverage if c.written < c.wanted]:
        said.append(f"fewer than wanted: {', '.join(few)}")
    if found.dropped:
        said.append(f"dropped: {', '.join(f'{reason} × {count}' for reason, count in found.dropped.items())}")
    if found.failures:
        said.append(f"{len(found.failures)} replies can't be used: {in_words(found.failures)}")
    if out is not None:
        said.append(f"Read them before you train on them: `prompts: {{ train: [{{ path: {out} }}] }}` in a recipe.")
    for line in said:
        say(line, err=out is None)
