"""Commands that ask a model about a constitution: stress, try, validate, learn, flip, adherence, draft."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cai.cli.app import Json, Seed, open_session, print_json, say, show
from cai.cli.constitutions import File, JudgeName, Model, OnlyPrinciples, Protocol, RecipeFile, constitution
from cai.cli.models import PairFormat, PairLimit
from cai.records import PromptKind

if TYPE_CHECKING:
    from rich.table import Table

    from cai.evaluate.adherence_table import AdherenceReport

SHOWN_COLLISIONS = 10
ROOM_FOR_ALL = 90
"""Characters of a line from which the table of adherence has all five models."""


@constitution.command()
def stress(
    file: File,
    model: Model = None,
    judge: JudgeName = None,
    recipe: RecipeFile = None,
    n: Annotated[int, typer.Option("-n", help="Show this many pairs, the likeliest first, each with a request", min=0)] = (
        SHOWN_COLLISIONS
    ),
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Show where principles collide: the pairs that a model finds most contradictory, each with a request on which they do.

    The requests and the probabilities are a model's. They are there to be read; they are not a verdict.
    """
    from rich.padding import Padding

    from cai.constitution.load import load_constitution
    from cai.core.console import plain, plain_table
    from cai.core.flow import in_words
    from cai.workbench.settings import settings
    from cai.workbench.stress import find_collisions

    loaded = load_constitution(file)
    used = settings(model=model, judge=judge, recipe=recipe, constitution=file, seed=seed, name="stress")
    found = open_session(used, file.parent).run(lambda session: find_collisions(session, loaded, n), "stress")
    if json:
        print_json(found)
        return
    table = plain_table("principle", "and", "for", "contradict", right=("contradict",))
    for c in found.conflicts[:n]:
        table.add_row(plain(c.first), plain(c.second), ", ".join(c.kinds), f"{c.p:.0%}")
    show(table)
    if written := [c for c in found.conflicts if c.request is not None]:
        show(plain("Requests on which they would collide, as the model writes them. Read them: they are not a verdict.", "bold"))
    for c in written:
        show(plain(f"{c.first} and {c.second}"), Padding(plain(c.request or ""), (0, 0, 0, 2)))
    likely = sum(c.p > 0.5 for c in found.conflicts)
    failed = f" {len(found.failures)} requests can't be used: {in_words(found.failures)}." if found.failures else ""
    show(
        plain(
            f"{len(found.conflicts)} pairs asked about, {likely} of them likely to contradict each other, "
            f"{found.unanswered} without an answer.{failed}"
        )
    )


@constitution.command(hidden=True)
def conflicts(file: File, model: Model = None, judge: JudgeName = None, recipe: RecipeFile = None, json: Json = False) -> None:
    """The earlier name of `cai constitution stress`."""
    say("cai constitution conflicts is now called cai constitution stress; use that name.", err=True)
    stress(file, model, judge, recipe, SHOWN_COLLISIONS, None, json)


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
    seed: Seed = None,
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
    recipe_used = settings(model=model, judge=judge, recipe=recipe, constitution=file, protocol=protocol, seed=seed, name="try")

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
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Validate principles on human-labelled pairs: agreement, effect of removing each, and how much of people's choices they explain."""

    from cai.constitution.load import load_constitution
    from cai.workbench.settings import settings
    from cai.workbench.terminal import show_validation
    from cai.workbench.trial import chosen
    from cai.workbench.validation import LabelFile, validate_constitution

    loaded = chosen(load_constitution(file), principle or [])
    recipe_used = settings(model=model, judge=judge, recipe=recipe, constitution=file, protocol=protocol, seed=seed, name="validate")
    labelled = LabelFile(pairs, format, kind, limit)
    found = open_session(recipe_used, file.parent).run(lambda session: validate_constitution(loaded, labelled, session), "validate")
    if json:
        print_json(found)
    else:
        show(*show_validation(found))


@constitution.command()
def learn(
    pairs: Annotated[Path, typer.Option(help="Human-labelled pairs, as for judge bench", show_default=False)],
    model: Model = None,
    n: Annotated[int, typer.Option("-n", help="Write at most this many principles", min=1)] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="YAML file to write; nothing is written if not given", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="Use this many pairs, chosen by hash: half to learn from, half to measure on", min=2)] = 200,
    judge: JudgeName = None,
    recipe: RecipeFile = None,
    protocol: Protocol = None,
    format: PairFormat = "auto",
    language: Annotated[Literal["en", "de", "es", "zh"], typer.Option(help="Language of the pairs, for templates and questions")] = "en",
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Learn principles from human-labelled pairs: a model says what rule explains each choice, and the rules are measured on other pairs.

    Rules that agree with people more than the trivial rules do are written as a draft of a constitution, for a person to read and edit.
    """

    from cai.constitution.importers import dump_yaml
    from cai.core.jsonl import write_text
    from cai.core.workspace import find_workspace
    from cai.errors import DataError
    from cai.workbench.learning import learn as learn_from
    from cai.workbench.settings import in_language, settings
    from cai.workbench.terminal import show_learned
    from cai.workbench.validation import LabelFile

    if out is not None and out.exists():
        raise DataError(f"{out}: already exists; nothing was changed. People edit a draft, so none is written over: name a new file.")
    used = settings(model=model, judge=judge, recipe=recipe, protocol=protocol, seed=seed, name="learn")
    used = used if recipe is not None else in_language(used, language, find_workspace(Path.cwd()))
    labelled = LabelFile(pairs, format, None, limit)
    found = open_session(used, Path.cwd()).run(lambda session: learn_from(labelled, session, n, language), "learn")
    draft = None if found.constitution is None else dump_yaml(found.constitution, language, found.comments)
    if out is not None and draft is not None:
        write_text(out, draft)
    if json:
        import msgspec

        print_json({"out": None if draft is None or out is None else str(out), **msgspec.to_builtins(found)})
        return
    show(*show_learned(found))
    if found.constitution is None:
        return
    count = len(found.constitution.principles)
    if out is None:
        say(f"Write the best {count} with -o FILE: the calls are kept, so it takes no others.")
    else:
        say(f"{out}: {count} principles, learned. Read and edit each, then check the file with: cai constitution lint {out}")


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

    from cai.constitution.load import load_constitution
    from cai.core.console import plain, plain_table
    from cai.session import Session
    from cai.workbench.flip import Flip, flip_rates
    from cai.workbench.settings import settings

    loaded = load_constitution(file)
    recipe_used = settings(model=model, judge=judge, recipe=recipe, constitution=file, name="flip")

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
    show(table)
    if left := [p.id for p in loaded.principles if p.id not in {f.principle_id for f in found}]:
        show(plain(f"not measured, without a check{' ' if judge is None else ' or a prompt '}: {', '.join(left)}", "yellow"))


@constitution.command()
def adherence(
    target: Annotated[
        str, typer.Argument(help="A run, several seeds of one (NAME of NAME-seed-N), or a constitution's YAML file", metavar="RUN|FILE")
    ],
    model: Annotated[str | None, typer.Option(help="With a file: the model to measure", metavar="MODEL")] = None,
    against: Annotated[str | None, typer.Option(help="With a file: the model to compare it with", metavar="MODEL")] = None,
    judge: JudgeName = None,
    prompts: Annotated[list[Path] | None, typer.Option(help="With a file: measure on these prompts, instead of the shipped ones")] = None,
    limit: Annotated[int | None, typer.Option(help="With a file: number of prompts per set", min=1)] = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Show how often held-out responses follow each principle: those of a run's models, or of any model under a constitution file.

    A run shows which principles were learned. With a file, the model is asked now, also with each principle in context. Principles without
    a check need a --judge, which is first measured on human labels.
    """
    from rich.console import Console

    from cai.constitution.load import load_constitution
    from cai.errors import RecipeError
    from cai.evaluate.adherence_table import adherence_of_run
    from cai.evaluate.commands import adherence_of_models
    from cai.workbench.settings import settings, with_prompts

    if Path(target).suffix not in (".yaml", ".yml"):
        if model or against or judge or prompts or limit or seed is not None:
            raise RecipeError(f"{target}: a run was measured with its own models and prompts. --model and the like go with a constitution")
        report = adherence_of_run(target)
    else:
        if model is None:
            raise RecipeError(f"{target}: which model? Name it with --model, or name a run instead of the file")
        loaded = load_constitution(Path(target))
        used = with_prompts(settings(judge=judge, constitution=Path(target), seed=seed, name="adherence"), prompts or ())
        session = open_session(used, Path(target).parent)
        report = session.run(
            lambda opened: adherence_of_models(opened, model, against, loaded, judge is not None, limit), "adherence", open_models=False
        )
        session.warn_of_failures()
    if json:
        print_json(report)
        return
    console = Console()
    console.print(_adherence_table(report, console.width))


def _adherence_table(report: "AdherenceReport", width: int) -> "Table":
    from cai.core.console import plain, plain_table

    rows = (*report.principles, *report.controls)
    models = [m for m in ("base", "told", "sft", "policy", "blend") if any(getattr(r, m) is not None for r in rows)]
    if "blend" in models and width < ROOM_FOR_ALL:
        models.remove("sft")
    table = plain_table("principle", *models, "n", "change", "verdict", right=(*models, "n", "change"))
    for number, r in enumerate(rows):
        if number == len(report.principles):
            table.add_row(plain("controls:"))
        rates = ["" if (rate := getattr(r, m)) is None else f"{rate:.0%}" for m in models]
        interval = "" if r.low is None or r.high is None else f" [{100 * r.low:+.0f}, {100 * r.high:+.0f}]"
        change = "" if r.change is None else f"{100 * r.change:+.0f}{interval}"
        verdict = "" if number >= len(report.principles) or r.verdict is None else r.verdict.replace("_", " ")
        table.add_row(plain(r.id), *rates, str(r.n), change, verdict)
    return table


@constitution.command()
def draft(file: File, principle: OnlyPrinciples = None, model: Model = None, recipe: RecipeFile = None, json: Json = False) -> None:
    """Let a model draft requests and questions from the statements of principles that have none, or of the named ones.

    The drafts are written into the file, each marked by a comment. Read them before you use them.
    """
    from cai.constitution.editing import set_fields
    from cai.constitution.load import language_of, load_constitution
    from cai.core.jsonl import write_text
    from cai.session import Session
    from cai.workbench.settings import settings
    from cai.workbench.trial import chosen
    from cai.workbench.wording import Wording, draft_wording, refuse_untranslated

    loaded = load_constitution(file)
    todo = chosen(loaded, principle).principles if principle else tuple(p for p in loaded.principles if not p.own_wording)

    async def work(session: Session) -> list[Wording]:
        refuse_untranslated(session, language_of(file))
        return await session.each(todo, lambda p: draft_wording(session, p), "principles", lambda p: p.id, may_all_fail=True)

    session = open_session(settings(model=model, recipe=recipe, constitution=file, name="draft"), file.parent)
    found = session.run(work, "draft") if todo else []
    session.warn_of_failures()
    changed = []
    if found:  # the file may have been edited meanwhile
        text, now = file.read_bytes().decode(), {p.id: (i, p) for i, p in enumerate(load_constitution(file).principles)}
        asked = {p.id: p for p in todo}
        for one in found:
            index, there = now.get(one.principle_id, (0, None))
            if there == asked[one.principle_id]:
                text = set_fields(text, index, one.texts, one.model)
            else:
                changed.append(one.principle_id)
        write_text(file, text)
    if changed:
        session.reporter.warn(f"changed while the model wrote, so nothing was put there: {', '.join(changed)}. Run the command again")
        found = [one for one in found if one.principle_id not in changed]
    if json:
        print_json(found)
        return
    for one in found:
        without = f"; nothing usable for {', '.join(one.left_out)}" if one.left_out else ""
        say(f"{one.principle_id}: drafted {', '.join(one.texts) or 'nothing'}{without}")
    if not todo:
        say("Every principle has requests or questions of its own. Name those to draft again with --principle ID.")
