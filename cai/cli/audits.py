"""`cai audit`: looks for reward hacking and similar failures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cai.cli.app import Json, app, open_session, print_json, say
from cai.cli.runs import RunName

if TYPE_CHECKING:
    from rich.console import Console

    from cai.records import AuditFinding

Prompts = Annotated[
    list[str] | None,
    typer.Option(help="Prompts for the refusal rates instead of the shipped ones; XSTest and OR-Bench files are read", metavar="FILE"),
]
AuditJudge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="Let this model also judge the answers against the base model's: embedded, a folder, a Hub id or a server's URL#MODEL",
        metavar="MODEL",
    ),
]
_COLOURS = {"found": "bold red", "suspect": "yellow", "ok": "green", "not enough data": "dim", "not measured": "dim"}


@app.command()
def audit(
    run_name: RunName,
    limit: Annotated[
        int | None, typer.Option(help="Number of probes per set, chosen by hash; 0: check only the run's files and reward models", min=0)
    ] = None,
    prompts: Prompts = None,
    judge: AuditJudge = None,
    json: Json = False,
) -> None:
    """Check a run for reward hacking: its models, labels, judge and reward models. Every check has a threshold and an interval."""
    from rich.console import Console

    from cai.core.workspace import find_run
    from cai.errors import DataError
    from cai.evaluate.audit.run import audit_run
    from cai.workbench.settings import settings

    directory = find_run(run_name)
    with open_session(settings(run=directory), directory.path) as session:
        findings = audit_run(session, directory, limit, prompts or (), judge)
    if not findings:
        raise DataError(f"nothing to audit in {directory.path}: no labels, judgments, answers or reward models, and no model was probed")
    if json:
        print_json({"findings": findings})
        return
    show(findings, Console())
    say(f"all findings with examples: {directory.data('audit')}. Add them to the report with: cai report {run_name}")


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def diagnose() -> None:
    """Removed: an audit measures the same."""
    from cai.errors import RecipeError

    raise RecipeError("cai diagnose is gone: cai audit RUN measures the same, and cai report RUN says what to do next")


def show(findings: "Sequence[AuditFinding]", console: "Console") -> None:
    """Print findings, one table per family."""
    from cai.core.console import plain, plain_table

    families: dict[str, list[AuditFinding]] = {}
    for f in findings:
        families.setdefault(f"{f.subject}, against {f.against}" if f.against else f.subject, []).append(f)
    for title, family in families.items():
        table = plain_table("check", "value", "95 % interval", "level", "n", "verdict", right=("value", "level", "n"), title=title)
        for f in family:
            sign = "+" if f.against else ""
            numbers = (f"{f.value:{sign}.2f}", f"{f.low:{sign}.2f} – {f.high:{sign}.2f}", f"{f.level:.2f}", str(f.n))
            if f.verdict == "not measured":
                numbers = ("", "", "", "0")
            table.add_row(f.check.replace("_", " "), *numbers, plain(f.verdict, _COLOURS[f.verdict]))
        console.print(table)
        standing_out = {f.group for f in family if f.verdict in ("found", "suspect")}
        for f in family:
            if f.note and (f.group in standing_out or f.verdict == "not measured"):
                console.print(plain(f"{f.check.replace('_', ' ')}: {f.note}"))
