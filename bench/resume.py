"""How long a finished run of many scripted items takes to resume: with its manifest, and with nothing but the call store.

    python -m bench.resume [--items 10000]

The model answers at once, so this is our own time: reading, hashing, looking up, writing.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from bench.table import Row, row
from cai.core.console import Reporter
from cai.core.workspace import Workspace, init_workspace
from cai.pipeline.driver import RunSummary, run_recipe
from cai.pipeline.stages import STAGES
from cai.recipe import load_recipe

DATA_STAGES = ("respond", "critique", "pairs", "feedback", "preferences")
RECIPE = """\
model: {{ path: scripted }}
prompts:
  train: [{{ path: prompts/many.jsonl }}]
critique: {{ min_p_revised: 0.0 }}
feedback: {{ principles: sample, per_label: 1, bench_pairs: null }}
max_failure_fraction: 1.0
name: resume-{items}
"""


def measure(items: int) -> dict[str, float]:
    """Return calls and seconds of a first run, of a resume with the manifest, and of one from the call store alone."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        init_workspace(workspace.root)
        with (workspace.root / "prompts" / "many.jsonl").open("w") as f:
            for i in range(items):
                kind = ("harmful", "borderline", "helpful")[i % 3]
                f.write(json.dumps({"id": f"p{i}", "kind": kind, "messages": [{"role": "user", "content": f"Question {i}?"}]}) + "\n")
        recipe_path = workspace.root / "runs" / "resume.yaml"
        recipe_path.write_text(RECIPE.format(items=items))
        recipe = load_recipe(recipe_path)
        run = workspace.run(recipe.name)

        def timed() -> tuple[float, RunSummary]:
            started = time.perf_counter()
            # The SFT policy is skipped: `pairs` samples from whatever adapter is there, and a scripted model has none.
            summary = run_recipe(recipe, workspace, [s for s in STAGES if s.name in DATA_STAGES], Reporter())
            return time.perf_counter() - started, summary

        run.model("sft").mkdir(parents=True)
        first, summary = timed()
        calls = sum(s.calls_made for s in summary.stages)
        with_manifest, again = timed()
        assert all(s.reused for s in again.stages)
        before = {p.name: p.read_bytes() for p in (run.path / "data").iterdir()}
        run.manifest.unlink()
        shutil.rmtree(run.path / "data")
        from_store, replay = timed()
        assert sum(s.calls_made for s in replay.stages) == 0
        assert before == {p.name: p.read_bytes() for p in (run.path / "data").iterdir()}
        return {"items": items, "calls": calls, "first_s": first, "resume_s": with_manifest, "from_store_s": from_store}


def rows(quick: bool) -> list[Row]:
    """Return the seconds of both ways to resume."""
    found = measure(500 if quick else 10_000)
    what = f"resuming {found['items']:,} items ({found['calls']:,} calls)"
    return [
        row("resume", what, "", [found["resume_s"]], "s"),
        row("resume", f"{what}, the call store alone left", "", [found["from_store_s"]], "s"),
        row(
            "resume",
            f"{what}, the call store alone left",
            "the first run, whose model answers at once",
            [found["first_s"] / found["from_store_s"]],
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    print(json.dumps({k: round(v, 2) for k, v in measure(parser.parse_args().items).items()}))
