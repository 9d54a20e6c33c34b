"""Commands about constitutions: lint, show, import, diff, guidelines."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cai.cli import completing
from cai.cli.app import Json, Seed, app, open_session, print_json, say, warn
from cai.records import Constitution

constitution = typer.Typer(name="constitution", help="Check, show, import, compare and test constitutions.", no_args_is_help=True)
app.add_typer(constitution)
File = Annotated[Path, typer.Argument(help="A constitution's YAML file", show_default=False, autocompletion=completing.constitutions)]
Model = Annotated[str | None, typer.Option(help="embedded (the default), a folder, a Hub id or a server's URL#MODEL", show_default=False)]
JudgeName = Annotated[
    str | None, typer.Option("--judge", help="The judge; default: the recipe's judge, or the model itself", metavar="MODEL")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="Take model, sampling and judge from a recipe", show_default=False, autocompletion=completing.recipes),
]
Files = Annotated[list[Path], typer.Argument(help="Constitutions' YAML files", show_default=False, autocompletion=completing.constitutions)]
Protocol = Annotated[str | None, typer.Option(help="Judging protocol; default: the recipe's", show_default=False)]
OnlyPrinciples = Annotated[list[str] | None, typer.Option("--principle", help="Only this principle; may be repeated", show_default=False)]


@constitution.command()
def lint(files: Files, json: Json = False) -> None:
    """Find schema errors, near-duplicates, contradictions, unreachable principles and uncovered kinds of prompt."""
    from rich.console import Console
    from rich.text import Text

    from cai.constitution.lint import lint_file, lint_scope
    from cai.constitution.load import load_constitution
    from cai.core.console import plain

    found = {str(f): lint_file(f) for f in files}
    errors = sum(x.severity == "error" for findings in found.values() for x in findings)
    if json:
        print_json(found)
    else:
        console = Console()
        for path, findings in found.items():
            for x in findings:
                colour = "red" if x.severity == "error" else "yellow"
                console.print(Text.assemble(plain(f"{x.where}: "), (f"{x.severity}: ", colour), plain(x.message)))
            wrong = Counter(x.severity for x in findings)
            counted = ", ".join(f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in sorted(wrong.items()))
            console.print(Text.assemble(plain(f"{path}: "), (counted, "bold") if counted else ("clean", "green")))
            if not any(x.rule == "schema" for x in findings):
                console.print(plain(lint_scope(load_constitution(Path(path))), "dim"))
    if errors:
        raise typer.Exit(2)


@constitution.command()
def show(file: File, full: Annotated[bool, typer.Option("--full", help="Show every wording")] = False, json: Json = False) -> None:
    """Show the principles of a constitution with kinds, weights, and the share of prompts that draw each."""
    from rich.console import Console
    from rich.padding import Padding

    from cai.constitution.load import load_constitution
    from cai.core.console import plain
    from cai.records import DEFAULT_WORDING

    loaded = load_constitution(file)
    if json:
        print_json(loaded)
        return
    console = Console()
    console.print(plain(f"{loaded.name}  ({loaded.id}, {len(loaded.principles)} principles, hash {loaded.hash})", "bold"))
    console.print(plain(loaded.description.strip()))
    for p in loaded.principles:
        drawn = ", ".join(f"{share:.0%} of {kind}" for kind, share in loaded.draw_shares(p, p.applies_to).items())
        weight = f"; weight {p.weight:g}" if p.weight != 1 else ""
        by = "; a rule checks it" if p.check else ""
        texts = {"": p.statement, **({name: getattr(p, name) for name in (*DEFAULT_WORDING, "source")} if full else {})}
        console.print(plain(f"\n{p.id}", "bold"))
        for name, text in texts.items():
            if text:
                console.print(Padding(plain(f"{name}: {text}" if name else text), (0, 0, 0, 2)))
        console.print(Padding(plain(f"drawn for {drawn}{weight}{by}", "dim"), (0, 0, 0, 2)))


@constitution.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="The paper's or llm-swarm's JSON, a document (.md, .txt) or its review file", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="YAML file to write; standard output if not given")] = None,
    accept: Annotated[str | None, typer.Option(help="Proposals to accept from a review file: all, or numbers such as 1,3,5")] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Import principles from other projects' JSON, or let a model propose some from a document for a person to accept."""
    from cai.constitution.documents import SUFFIXES, read_document
    from cai.constitution.importers import dump_yaml, import_constitution
    from cai.constitution.proposals import Review, dump_review, load_review
    from cai.constitution.proposals import accept as accepted
    from cai.core.console import printable
    from cai.core.jsonl import write_text
    from cai.errors import ConstitutionError
    from cai.workbench.proposing import propose_in
    from cai.workbench.settings import settings

    if out is not None and out.exists():  # a person's file: a constitution is edited, a review marked
        raise ConstitutionError(f"{out}: is there already and would be overwritten. Choose another --out, or move it away.")
    kind = files[0].suffix.lower() if len(files) == 1 else ""
    if model is not None and kind not in SUFFIXES:
        raise ConstitutionError("--model needs one document (.md, .txt); other files are imported without a model")
    if accept is not None and kind not in (".yaml", ".yml"):
        raise ConstitutionError("--accept needs a review file: import the document first, read the proposals, then accept")
    if kind in SUFFIXES:
        document = read_document(files[0])
        if (code := document.language) not in ("en", None):
            warn(
                f"{files[0]}: is in another language ({code}) than the templates that ask a model for principles, which are in English "
                "only. The proposals, if any hold up, need rewording. Or write the principles yourself, a statement each, in a "
                "constitution with language: de, es or zh"
            )
        session = open_session(settings(model=model, name="import"), Path.cwd())
        imported: Constitution | Review = session.run(lambda opened: propose_in(opened, document), "import")
    elif kind in (".yaml", ".yml"):
        imported = accepted(load_review(files[0]), accept, files[0])
    else:
        imported = import_constitution(files)
    text = dump_review(imported) if isinstance(imported, Review) else dump_yaml(imported)
    if out is not None:
        write_text(out, text)
    if json:
        print_json(imported)
    elif out is None:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    elif isinstance(imported, Review):
        say(f"{out}: {len(imported.proposals)} proposals, none accepted yet; {len(imported.left_out)} dropped, with the reasons.")
        say(f"Mark the proposals that you accept, then run: cai constitution import {out} -o constitution/{imported.id}.yaml")
    else:
        say(f"{out}: {len(imported.principles)} principles. Check it with: cai constitution lint {out}")


@constitution.command()
def diff(
    before: Annotated[Path, typer.Argument(help="The old constitution", show_default=False, autocompletion=completing.constitutions)],
    after: Annotated[Path, typer.Argument(help="The new constitution", show_default=False, autocompletion=completing.constitutions)],
    sample: Annotated[
        int | None, typer.Option(help="Also show the changes on this many prompts (20 if only one of the options below is given)", min=1)
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Take the sample from this file")] = None,
    model: Model = None,
    judge: JudgeName = None,
    recipe: RecipeFile = None,
    against_run: Annotated[
        str | None,
        typer.Option(help="Take settings, responses and pairs from a run, and reuse its calls", autocompletion=completing.run_names),
    ] = None,
    show: Annotated[int, typer.Option(help="Number of changed labels and revisions to show", min=0)] = 5,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Compare two constitutions: their texts and, with --sample, the revisions and labels that change."""
    from rich.console import Console

    from cai.constitution.diff import diff_constitutions
    from cai.constitution.load import load_constitution
    from cai.core.workspace import find_run
    from cai.workbench.consequences import DEFAULT_SAMPLE, compare_on_sample
    from cai.workbench.settings import settings
    from cai.workbench.terminal import show_consequences, show_diff

    console = Console()
    old, new = load_constitution(before), load_constitution(after)
    text = diff_constitutions(old, new)
    if not json:
        console.print(*show_diff(text, console.is_terminal), sep="\n")
    if all(given is None for given in (sample, prompts, model, judge, recipe, against_run)):
        if json:
            print_json({"text": text})
        return
    run = None if against_run is None else find_run(against_run)
    chosen = settings(model=model, judge=judge, recipe=recipe, run=run, constitution=after, seed=seed, name="diff")
    session = open_session(chosen, after.parent if run is None else run.path)
    size = sample or DEFAULT_SAMPLE
    found = session.run(lambda opened: compare_on_sample(old, new, opened, size, prompts=prompts, run=run), "diff")
    if json:
        print_json(found)
    else:
        console.print(*show_consequences(found, console.is_terminal, show), sep="\n")


@constitution.command()
def guidelines(
    file: File,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.md or FILE.html; default: Markdown on standard output")] = None,
    examples: Annotated[
        str | None, typer.Option(help="Take the worked examples from a run", metavar="RUN", autocompletion=completing.run_names)
    ] = None,
    json: Json = False,
) -> None:
    """Render a constitution as annotation guidelines with worked examples."""
    from cai.constitution.load import load_constitution
    from cai.core.console import printable
    from cai.core.jsonl import refuse_overwriting
    from cai.core.workspace import find_run
    from cai.workbench.examples import write_guidelines

    refuse_overwriting([out], [file])
    made = write_guidelines(load_constitution(file), file.parent, out, None if examples is None else find_run(examples))
    if json:
        print_json(made)
    elif out is None:
        sys.stdout.write(printable(made.text) if sys.stdout.isatty() else made.text)
    else:
        missing = f"; without one: {', '.join(made.without_example)}" if made.without_example else ""
        say(f"{out}: {made.principles} principles, {made.examples} examples{missing}")
