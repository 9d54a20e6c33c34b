"""Commands that ask a model about a constitution: conflicts, try, validate, flip, adherence, draft."""

from pathlib import Path
from typing import Annotated

import typer

from cai.cli.app import Json, open_session, print_json
from cai.cli.constitutions import File, JudgeName, Model, OnlyPrinciples, Protocol, RecipeFile, RunName, constitution
from cai.cli.models import PairFormat, PairLimit
from cai.records import PromptKind

SHOWN_CONFLICTS = 10


@constitution.command()
def conflicts(file: File, model: Model = None, judge: JudgeName = None, recipe: RecipeFile = None, json: Json = False) -> None:
    """Ask a model which principles contradict each other. Its answers are a list to read, not a verdict."""
    from rich.console import Console

    from cai.constitution.load import load_constitution
    from cai.core.console import plain, plain_table
    from cai.workbench.conflicts import find_conflicts
    from cai.workbench.settings import settings

    loaded = load_constitution(file)
    used = settings(model=model, judge=judge, recipe=recipe, name="conflicts")
    found, unanswered = open_session(used, file.parent).run(lambda session: find_conflicts(session, loaded), "conflicts")
    if json:
        print_json({"conflicts": found, "unanswered": unanswered})
        return
    table = plain_table("principle", "and", "for", "contradict", right=("contradict",))
    for c in found[:SHOWN_CONFLICTS]:
        table.add_row(plain(c.first), plain(c.second), ", ".join(c.kinds), f"{c.p:.0%}")
    console = Console()
    console.print(table)
    likely = sum(c.p > 0.5 for c in found)
    console.print(
        plain(f"{len(found)} pairs asked about, {likely} of them likely to contradict each other, {unanswered} without an answer.")
    )


@constitution.command("try")
def try_(
    file: File,
    prompt: Annotated[str, typer.Option(help="Text of the prompt", show_default=False)],
    principle: OnlyPrinciples = None,
    kind: Annotated[PromptKind, typer.Option(help="Kind of prompt, which decides the principles that apply; other: all of them")] = "other",
    rounds: Annotated[int, typer.Option(help="Rounds of critique and revision", min=1)] = 1,
    model: Model = None,
    judge: JudgeName = None,
    recipe: RecipeFile = None,
    protocol: Protocol = None,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Try a constitution on one prompt: response, critique, revision, and the judge's probability that the revision is better."""
    from rich.console import Console

    from cai.constitution.load import load_constitution
    from cai.errors import ModelError
    from cai.session import Session
    from cai.workbench.settings import settings
    from cai.workbench.terminal import show_step
    from cai.workbench.trial import JudgedRevision, Step, chosen, steps

    console = Console()
    loaded = chosen(load_constitution(file), principle or [])
    recipe_used = settings(model=model, judge=judge, recipe=recipe, protocol=protocol, seed=seed, name="try")

    async def work(session: Session) -> list[Step]:
        found: list[Step] = []
        async for step in steps(prompt, loaded, session, kind=kind, rounds=rounds):
            if not json:
                console.print(*show_step(step), sep="\n")
            found.append(step)
        return found

    found = open_session(recipe_used, file.parent).run(work, "try")
    if json:
        print_json({"prompt": prompt, "response": found[0], "rounds": found[1:-1], "judge": found[-1]})
    if isinstance(judged := found[-1], JudgedRevision) and judged.p_revised is None:
        raise ModelError(f"the judge ({judged.protocol}) gave no verdict: {judged.failure}")


@constitution.command()
def validate(
    file: File,
    pairs: Annotated[Path, typer.Option(help="Human-labelled pairs, as for judge bench", show_default=False)],
    protocol: Protocol = None,
    principle: OnlyPrinciples = None,
    model: Model = None,
    judge: JudgeName = None,
    recipe: RecipeFile = None,
    format: PairFormat = "auto",
    kind: Annotated[PromptKind | None, typer.Option(help="Kind of prompt for pairs without one", show_default=False)] = None,
    limit: PairLimit = None,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Validate principles on human-labelled pairs: agreement, effect of removing each, and how much of people's choices they explain."""
    from rich.console import Console

    from cai.constitution.load import load_constitution
    from cai.workbench.settings import settings
    from cai.workbench.terminal import show_validation
    from cai.workbench.trial import chosen
    from cai.workbench.validation import LabelFile, validate_constitution

    loaded = chosen(load_constitution(file), principle or [])
    recipe_used = settings(model=model, judge=judge, recipe=recipe, protocol=protocol, seed=seed, name="validate")
    labelled = LabelFile(pairs, format, kind, limit)
    found = open_session(recipe_used, file.parent).run(lambda session: validate_constitution(loaded, labelled, session), "validate")
    if json:
        print_json(found)
    else:
        Console().print(*show_validation(found), sep="\n")


@constitution.command()
def flip(
    file: File,
    model: Model = None,
    judge: JudgeName = None,
    recipe: RecipeFile = None,
    limit: Annotated[int, typer.Option(help="Prompts per principle, chosen by hash", min=1)] = 48,
    json: Json = False,
) -> None:
    """Measure what can be taught: how often each principle in context changes what the model does, by placement."""
    from rich.console import Console

    from cai.constitution.load import load_constitution
    from cai.core.console import plain, plain_table
    from cai.session import Session
    from cai.workbench.flip import Flip, flip_rates
    from cai.workbench.settings import settings

    loaded = load_constitution(file)
    recipe_used = settings(model=model, judge=judge, recipe=recipe, name="flip")

    async def work(session: Session) -> list[Flip]:
        return await flip_rates(session, loaded, limit, judge=session.judge(loaded) if judge is not None else None)

    found = open_session(recipe_used, file.parent).run(work, "flip")
    if json:
        print_json(found)
        return
    numbers = ("n", "untold", "told", "change", "flipped", "reversed")
    table = plain_table("principle", "placement", *numbers, "can be taught", right=numbers)
    for f in found:
        change = f"{100 * (f.told - f.untold):+.0f} [{100 * f.low:+.0f}, {100 * f.high:+.0f}]"
        untold, told, flips, back = (f"{x:.0%}" for x in (f.untold, f.told, f.flipped, f.reversed))
        table.add_row(
            plain(f.principle_id),
            f.placement,
            str(f.n),
            untold,
            told,
            change,
            flips,
            back,
            "yes" if f.learnable else "no",
        )
    console = Console()
    console.print(table)
    if left := [p.id for p in loaded.principles if p.id not in {f.principle_id for f in found}]:
        console.print(plain(f"not measured, without a check{' ' if judge is None else ' or a prompt '}: {', '.join(left)}", "yellow"))


@constitution.command()
def adherence(run_name: RunName, json: Json = False) -> None:
    """Show how often held-out responses of a run's models follow each principle, and which principles were learned."""
    from rich.console import Console

    from cai.core.console import plain, plain_table
    from cai.core.jsonl import read_records
    from cai.core.workspace import find_run
    from cai.errors import DataError
    from cai.evaluate.adherence import TOLD, adherence_rows, trained_model
    from cai.evaluate.policies import AGAINST, MODELS
    from cai.records import EvalResult

    run = find_run(run_name)
    path = run.data("evaluation")
    rows = adherence_rows(list(read_records(path, EvalResult))) if path.exists() else []
    if not rows:
        raise DataError(f"{run.path}: adherence was not measured: no principle has a check, or the run was not evaluated yet")
    if json:
        print_json(rows)
        return
    models = [m for m in (AGAINST, TOLD, *MODELS[1:]) if m != "blend" or any(m in r.rates for r in rows)]
    table = plain_table("principle", *models, "n", "change", "verdict", right=(*models, "n", "change"))
    for row in rows:
        rates = [f"{row.rates[m].value:.0%}" if m in row.rates else "" for m in models]
        moved = row.changes.get(trained_model(row) or "")
        change = "" if moved is None else f"{100 * moved.value:+.0f} [{100 * moved.low:+.0f}, {100 * moved.high:+.0f}]"
        name = f"{row.id} (control)" if row.control else row.id
        table.add_row(plain(name), *rates, "" if moved is None else str(moved.n), change, "" if row.control else row.verdict or "")
    Console().print(table)


@constitution.command()
def draft(file: File, principle: OnlyPrinciples = None, model: Model = None, recipe: RecipeFile = None, json: Json = False) -> None:
    """Let a model draft requests and questions from the statements of principles that have none, or of the named ones.

    The drafts are written into the file, each marked by a comment. Read them before you use them.
    """
    from cai.constitution.editing import set_fields
    from cai.constitution.load import load_constitution
    from cai.core.jsonl import write_text
    from cai.session import Session
    from cai.workbench.settings import settings
    from cai.workbench.trial import chosen
    from cai.workbench.wording import Wording, draft_wording

    loaded = load_constitution(file)
    todo = chosen(loaded, principle).principles if principle else tuple(p for p in loaded.principles if not p.own_wording)

    async def work(session: Session) -> list[Wording]:
        return await session.each(todo, lambda p: draft_wording(session, p), "principles", lambda p: p.id, may_all_fail=True)

    session = open_session(settings(model=model, recipe=recipe, name="draft"), file.parent)
    found = session.run(work, "draft") if todo else []
    session.warn_of_failures()
    text, places = file.read_bytes().decode(), {p.id: i for i, p in enumerate(loaded.principles)}
    for one in found:
        text = set_fields(text, places[one.principle_id], one.texts, one.model)
    write_text(file, text)
    if json:
        print_json(found)
        return
    for one in found:
        without = f"; nothing usable for {', '.join(one.left_out)}" if one.left_out else ""
        typer.echo(f"{one.principle_id}: drafted {', '.join(one.texts) or 'nothing'}{without}")
    if not todo:
        typer.echo("Every principle has requests or questions of its own. Name those to draft again with --principle ID.")
