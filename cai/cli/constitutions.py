"""Commands about constitutions: lint, show, import."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cai.cli import Json, app, print_json

constitution = typer.Typer(name="constitution", help="Check, read and import constitutions.", no_args_is_help=True)
app.add_typer(constitution)
File = Annotated[Path, typer.Argument(help="A constitution's YAML file", show_default=False)]


@constitution.command()
def lint(files: Annotated[list[Path], typer.Argument(help="Constitutions' YAML files", show_default=False)], json: Json = False) -> None:
    """Find schema errors, near-duplicates, contradictions, unreachable principles and kinds of prompt that nothing covers."""
    from rich.console import Console
    from rich.text import Text

    from cai.console import plain
    from cai.constitution.lint import lint_file

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
            if not findings:
                console.print(Text.assemble(plain(f"{path}: "), ("clean", "green")))
    if errors:
        raise typer.Exit(2)


@constitution.command()
def show(file: File, full: Annotated[bool, typer.Option("--full", help="Show every wording")] = False, json: Json = False) -> None:
    """Show a constitution's principles: kinds, weights, and the share of prompts that each is drawn for."""
    from rich.console import Console

    from cai.console import plain, plain_table
    from cai.constitution.load import load_constitution
    from cai.constitution.show import constitution_rows

    loaded = load_constitution(file)
    if json:
        print_json(loaded)
        return
    console = Console()
    console.print(plain(f"{loaded.name}  ({loaded.id}, {len(loaded.principles)} principles, hash {loaded.hash})", "bold"))
    console.print(plain(loaded.description.strip()))
    table = plain_table("principle", "statement", "weight", "drawn for", right=("weight",))
    for row in constitution_rows(loaded):
        shares = "\n".join(f"{share:.0%} of {kind}" for kind, share in row.shares)
        table.add_row(plain(row.id), plain(row.statement), f"{row.weight:g}", shares)
    console.print(table)
    if full:
        for p in loaded.principles:
            console.print(plain(f"\n{p.id}", "bold"))
            for field in ("statement", "critique", "revision", "ask_positive", "ask_negative", "compare", "source"):
                console.print(plain(f"  {field}: {getattr(p, field)}"))


@constitution.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="The paper's JSON files, or llm-swarm's", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="YAML file to write; standard output if not given")] = None,
    json: Json = False,
) -> None:
    """Read principles from the Constitutional AI paper's JSON files or llm-swarm's JSON into a constitution."""
    from cai.constitution.importers import dump_yaml, import_constitution
    from cai.jsonl import write_text

    imported = import_constitution(files)
    if out is not None:
        write_text(out, dump_yaml(imported))
    if json:
        print_json(imported)
    elif out is None:
        sys.stdout.write(dump_yaml(imported))
    else:
        typer.echo(f"{out}: {len(imported.principles)} principles. Check it with: cai constitution lint {out}")
