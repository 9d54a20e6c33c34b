"""What `cai plan` predicts for a small real run against what the run takes, stage by stage.

    python -m bench.plan_accuracy [--recipe runs/smoke.yaml] [--set key=value ...] [--clock cpu]

The whole recipe runs in a fresh workspace on an empty call store; then this machine is probed and the plan drawn, as for a first run.
`planned` is what a user is told before the run, upper bounds of calls included; `counted` is that prediction with the trainings' real
number of examples in place of the most there could be. `--clock cpu` takes processor seconds of the process in place of the clock's, for a
machine that others use (with OMP_NUM_THREADS=1, for waiting threads spin).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from bench.table import Row
from cai.core.console import Reporter
from cai.core.manifest import read_manifest
from cai.core.workspace import Workspace, init_workspace
from cai.pipeline.driver import run_recipe
from cai.pipeline.plan import draft
from cai.pipeline.speed import probe
from cai.pipeline.stages import STAGES
from cai.recipe import load_recipe

SMOKE = Path(__file__).parent.parent / "runs" / "smoke.yaml"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class Stopwatch(Reporter):
    """Notes what each stage takes, and lets its entry in the manifest have its own peak of memory (on Linux)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # begin to count the peak anew: every stage has its own
        started = self.clock()
        with super().stage(name):
            yield
        self.seconds[name] = self.clock() - started


def measure(recipe_path: Path, overrides: list[str], clock: Callable[[], float]) -> dict[str, Any]:
    """Run a recipe, then plan it; return both, by stage."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        init_workspace(workspace.root)
        recipe = load_recipe(recipe_path, overrides)
        watch = Stopwatch(clock)
        run_recipe(recipe, workspace, STAGES, watch)
        manifest = read_manifest(workspace.run(recipe.name).manifest)
        assert manifest is not None
        planned = draft(recipe, workspace, cache(lambda precision: probe(precision, clock)))
    rows = []
    for stage in planned:
        steps = (entry := manifest.stage(stage.name)) and entry.counts.get("steps")
        whole = stage.seconds or 0.0
        counted = whole * steps / stage.train_steps if steps and stage.train_steps else whole
        rows.append(
            {
                "stage": stage.name,
                "planned_s": round(whole, 1),
                "counted_s": round(counted, 1),
                "measured_s": round(watch.seconds[stage.name], 1),
                "memory_gib": [round((stage.memory_bytes or 0) / 2**30, 2), round((entry.peak_memory_bytes if entry else 0) / 2**30, 2)],
            }
        )
    took = sum(watch.seconds.values())
    return {
        "stages": rows,
        "planned_over_measured": round(sum(r["planned_s"] for r in rows) / took, 3),
        "counted_over_measured": round(sum(r["counted_s"] for r in rows) / took, 3),
        "planned_gib": max(r["memory_gib"][0] for r in rows),
        "measured_gib": max(r["memory_gib"][1] for r in rows),
    }


def rows(quick: bool) -> list[Row]:
    """Return predicted over measured, in all and for each stage that takes a while."""
    smaller = ["prompts.train=[{path: prompts/harmful.jsonl, limit: 6}]", "evaluate.knowledge=0", "feedback.bench_limit=6"]
    found = measure(SMOKE, smaller if quick else [], time.process_time if quick else time.perf_counter)
    whole = found["counted_over_measured"]
    parts = [
        (r["stage"], r["counted_s"] / r["measured_s"], f"{r['counted_s']} s planned, {r['measured_s']} s")
        for r in found["stages"]
        if r["measured_s"] >= 2
    ]
    memory = found["planned_gib"] / found["measured_gib"]
    return [
        Row("plan_accuracy", "seconds of a small run, as planned", "measured", whole, whole, whole, 1, note="1 is right"),
        *(Row("plan_accuracy", f"… its {stage}", "measured", ratio, ratio, ratio, 1, note=said) for stage, ratio, said in parts),
        Row("plan_accuracy", "memory, as planned", "measured", memory, memory, memory, 1, note=f"{found['measured_gib']} GiB measured"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=SMOKE)
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    a = parser.parse_args()
    found = measure(a.recipe, a.overrides, CLOCKS[a.clock])
    for row in found.pop("stages"):
        print(json.dumps(row))
    print(json.dumps(found))
