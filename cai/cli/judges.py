"""Commands that measure judges on human labels: judge bench, calibrate and fit."""

from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from cai.cli.app import Json, app, open_session, print_json, say, show, show_results, warn
from cai.cli.models import ConstitutionFile, JudgeName, LabelledPairs, PairFormat, PairLimit, PerLabel, Principles, ProbeFile

judge = typer.Typer(name="judge", help="Measure AI judges on human labels.", no_args_is_help=True)
app.add_typer(judge)


@judge.command()
def bench(
    pairs: Annotated[Path, typer.Option(help="Labelled pairs: TRL, hh-rlhf, HHH or UltraFeedback; .gz is read", show_default=False)],
    protocol: Annotated[str, typer.Option(help="One protocol, several with commas, or all")] = "all",
    judge: JudgeName = "embedded",
    constitution: ConstitutionFile = Path("constitution/general.yaml"),
    format: PairFormat = "auto",
    limit: PairLimit = None,
    principles: Principles = "ensemble",
    per_label: PerLabel = 1,
    probe: ProbeFile = None,
    both_placements: Annotated[
        bool,
        typer.Option("--both-placements", help="Also with the instructions of system turns in the user's turn, where templates have some"),
    ] = False,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Measure the agreement of judging protocols with human labels, compared with trivial baselines, with 95 % intervals."""
    from cai.constitution.load import load_constitution
    from cai.core.console import plain_table
    from cai.evaluate.commands import bench_judge, labelled_pairs_of
    from cai.judge.choices import mass_warning
    from cai.recipe import FeedbackConfig
    from cai.workbench.settings import settings, with_probe

    asked = load_constitution(constitution)
    recipe = settings(model=judge, constitution=constitution, seed=seed, name="judge-bench")
    recipe = with_probe(replace(recipe, feedback=FeedbackConfig(principles=principles, per_label=per_label)), probe)
    session = open_session(recipe, constitution.parent)
    labelled = labelled_pairs_of(pairs, format, limit, session)
    result = session.run(lambda opened: bench_judge(opened, labelled, protocol, asked, both_placements), "bench")
    if json:
        print_json(result)
        return
    numbers = ("agrees", "95 % interval", "n", "position bias", "choices hold", "failed")
    table = plain_table("protocol", *numbers, "beats baselines", right=numbers, title=f"agreement with {pairs}, n = {result.pairs}")
    for group in (result.protocols, result.baselines):
        for r in group:
            bias = "" if r.position_bias is None else f"{r.position_bias:+.3f}"
            beats = "" if r.beats_baselines is None else "yes" if r.beats_baselines else "no"
            mass = "" if r.mass is None else f"{r.mass:.1%}"
            table.add_row(r.name, f"{r.accuracy:.1%}", f"{r.low:.1%} – {r.high:.1%}", str(r.n), bias, mass, str(r.failures), beats)
        table.add_section()
    show(table)
    for r in result.protocols:
        if warning := mass_warning(r.mass, r.name):
            warn(warning)
    for u in result.unmeasured:
        warn(f"{u.name}: not measured, all {u.failures} pairs failed: {u.reason}")
    for r in result.protocols:
        if r.failures:
            warn(f"{r.name}: {r.failures} of {result.pairs} pairs failed: {r.failure_details}")
    if not any(r.beats_baselines for r in result.protocols):
        warn("No protocol was shown to beat the trivial baselines. Do not train a model on labels from this judge.")


@judge.command()
def calibrate(
    pairs: LabelledPairs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Calibration file, for feedback.calibration", show_default=False)],
    protocol: Annotated[str | None, typer.Option(help="The judging protocol", show_default="as in recipes")] = None,
    judge: JudgeName = "embedded",
    constitution: ConstitutionFile = Path("constitution/general.yaml"),
    format: PairFormat = "auto",
    limit: PairLimit = None,
    principles: Principles = "ensemble",
    per_label: PerLabel = 1,
    length: Annotated[bool, typer.Option("--length", help="Also correct for length bias")] = False,
    probe: ProbeFile = None,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Calibrate a judge on human labels; the gain is measured by nested cross-validation."""
    from cai.constitution.load import load_constitution
    from cai.core.jsonl import refuse_overwriting
    from cai.evaluate.commands import calibrate_judge
    from cai.recipe import FeedbackConfig
    from cai.session import with_protocol
    from cai.workbench.settings import settings, with_probe

    refuse_overwriting([out], [constitution, *([probe] if probe else [])])
    asked = load_constitution(constitution)
    recipe = settings(model=judge, constitution=constitution, seed=seed, name="calibrate")
    recipe = replace(recipe, feedback=FeedbackConfig(principles=principles, per_label=per_label))
    recipe = with_probe(with_protocol(recipe, protocol), probe)
    session = open_session(recipe, constitution.parent)
    found = calibrate_judge(session, pairs, asked, out, use_length=length, format=format, limit=limit)
    if json:
        print_json(found)
        return
    show_results(found.measured, f"{found.protocol} on {found.pairs}, chosen: {found.method}, scale {found.scale:.3g}")
    for warning in found.warnings:
        warn(warning)
    say(f"{out}: set feedback.calibration to use it. It is valid only for this protocol, model and choice of principles.")


@judge.command()
def fit(
    pairs: LabelledPairs,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Probe's JSON file, for feedback.probe; its weights go beside it", show_default=False)
    ],
    judge: JudgeName = "embedded",
    format: PairFormat = "auto",
    limit: PairLimit = None,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Fit a linear probe on a local model's hidden states to human labels; it is measured by nested cross-validation."""
    from cai.evaluate.commands import fit_judge_probe
    from cai.workbench.settings import settings, with_float32

    found = fit_judge_probe(
        open_session(with_float32(settings(model=judge, seed=seed, name="judge-fit")), Path.cwd()), pairs, out, format=format, limit=limit
    ).facts
    if json:
        print_json(found)
        return
    show_results(found.measured, f"{found.n} pairs of {found.pairs}; chosen: layer {found.layer} of {found.layers}, {found.pooling}")
    for warning in found.warnings:
        warn(warning)
    say(f"{out}: set feedback.protocol: probe and feedback.probe to use it. It is valid only for {found.model_name} in {found.precision}.")
