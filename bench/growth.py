"""How a run's cost grows with its prompts, principles, rounds and lengths: what `cai plan` counts, against the calls that a run makes.

    python -m bench.growth [--prompts 24]

The stages that ask a model run whole, with the scripted model, which counts its calls and tokens; one setting at a time is doubled. The
plan's counts are upper bounds: a run drops revisions and reuses verdicts. So a row gives how much more the run made, over how much more the
plan had said: 1 where the plan has the growth right.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.table import Row
from cai.core.console import Reporter
from cai.core.manifest import read_manifest
from cai.core.workspace import Workspace, init_workspace
from cai.pipeline.driver import run_recipe
from cai.pipeline.plan import draft
from cai.pipeline.speed import nominal_rates
from cai.pipeline.stages import STAGES
from cai.recipe import Recipe, load_recipe

DATA_STAGES = ("respond", "critique", "pairs", "feedback")
RECIPE = """\
model: { path: scripted }
prompts: { train: [{ path: prompts/many.jsonl }], near_duplicates: null }
respond: { sampling: { max_tokens: 4 } }
critique: { drop_refusals: false, min_p_revised: 0.0, sampling: { max_tokens: 4 } }
pairs: { sampling: { max_tokens: 4 } }
feedback: { principles: sample, per_label: 2, bench_pairs: null }
max_failure_fraction: 1.0
"""
DOUBLED = {
    "twice the prompts": (),
    "twice the principles a label": ("feedback.per_label=4",),
    "twice the rounds": ("critique.rounds=2",),
    "twice the tokens a completion": ("respond.sampling.max_tokens=8", "critique.sampling.max_tokens=8", "pairs.sampling.max_tokens=8"),
}


def counts(prompts: int, overrides: tuple[str, ...] = ()) -> tuple[dict[str, int], dict[str, int]]:
    """Return calls and tokens as planned, and as made or reused by a run."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        init_workspace(workspace.root)
        with (workspace.root / "prompts" / "many.jsonl").open("w") as f:
            for i in range(prompts):
                message = {"role": "user", "content": f"What should I know before I do thing number {i}, and whom could I ask about it?"}
                f.write(json.dumps({"id": f"p{i}", "kind": "helpful", "messages": [message]}) + "\n")
        path = workspace.root / "runs" / "growth.yaml"
        path.write_text(RECIPE)
        recipe: Recipe = load_recipe(path, overrides)
        run = workspace.run(recipe.name)
        run.model("sft").mkdir(parents=True)  # `pairs` samples from whatever adapter is there, and a scripted model has none
        run_recipe(recipe, workspace, STAGES, Reporter(), only=DATA_STAGES)
        manifest = read_manifest(run.manifest)
        assert manifest is not None
        planned = [s for s in draft(recipe, workspace, nominal_rates) if s.name in DATA_STAGES]
        made = manifest.stages
    return (
        {"calls": sum(s.calls for s in planned), "completion_tokens": sum(s.completion_tokens for s in planned)},
        {
            "calls": sum(s.calls_made + s.calls_reused for s in made),
            "completion_tokens": sum(s.completion_tokens for s in made),
        },
    )


def rows(quick: bool) -> list[Row]:
    """Return the growth of each setting, run over plan."""
    return measure(12 if quick else 48)


def measure(prompts: int) -> list[Row]:
    """Return a row for the calls themselves, and one for each doubled setting."""
    planned, made = counts(prompts)
    share = made["calls"] / planned["calls"]
    found = [
        Row(
            "growth",
            f"calls of {prompts} prompts",
            "as planned",
            share,
            share,
            share,
            1,
            note=f"{planned['calls']:,} planned, {made['calls']:,} made or reused",
        )
    ]
    for what, overrides in DOUBLED.items():
        value = "completion_tokens" if "tokens" in what else "calls"
        more = counts(2 * prompts) if what == "twice the prompts" else counts(prompts, overrides)
        ratio = (more[1][value] / made[value]) / (more[0][value] / planned[value])
        note = f"{value.replace('_', ' ')} planned × {more[0][value] / planned[value]:.3g}, made × {more[1][value] / made[value]:.3g}"
        found.append(Row("growth", what, "as planned", ratio, ratio, ratio, 1, note=note))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24)
    for line in measure(parser.parse_args().prompts):
        print(json.dumps(asdict(line)))
