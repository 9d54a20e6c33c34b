"""Small workspaces and scripted runs that several rooms' tests share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cai.core.console import Reporter
from cai.core.workspace import RunDirectory, Workspace, init_workspace
from cai.models.requests import Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.pipeline.driver import RunSummary, run_recipe
from cai.pipeline.stages import STAGES
from cai.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
DATA_STAGES = ("respond", "critique", "pairs", "feedback", "preferences")
"""What needs no weights."""
RECIPE = """\
model: { path: scripted }
prompts:
  train:
    - { path: prompts/harmful.jsonl, limit: 8 }
    - { path: prompts/helpful.jsonl, limit: 4 }
  evaluate: [{ path: prompts/eval_harmful.jsonl, limit: 4 }]
critique: { min_p_revised: 0.0, kinds: [harmful, borderline, helpful, other] }
feedback: { principles: sample, per_label: 1, bench_limit: 8 }
"""


class Interrupting(Reporter):
    """Ends the run after a number of answered calls, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def call(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def make_workspace(folder: Path, recipe: str = RECIPE, adapters: bool = True) -> Workspace:
    """A workspace with the shipped files and runs/s.yaml; with `adapters`, an empty SFT adapter, which a scripted model takes."""
    init_workspace(folder)
    (folder / "runs" / "s.yaml").write_text(recipe)
    workspace = Workspace(folder)
    if adapters:
        workspace.run("s").model("sft").mkdir(parents=True)
    return workspace


def recipe_of(workspace: Workspace, *overrides: str, name: str | None = None) -> Recipe:
    return load_recipe(workspace.root / "runs" / "s.yaml", overrides, name)


def run_data(
    workspace: Workspace, *overrides: str, only: Sequence[str] = DATA_STAGES, reporter: Reporter | None = None, name: str | None = None
) -> RunSummary:
    """Run the stages that need no weights, in this process."""
    return run_recipe(recipe_of(workspace, *overrides, name=name), workspace, STAGES, reporter or Reporter(), only=only)


def script(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Request], Reply]) -> None:
    """Let `path: scripted` answer from another function."""
    monkeypatch.setattr("cai.models.opening.ScriptedEngine", lambda name: ScriptedEngine(answer, name))


def data_bytes(run: RunDirectory) -> dict[str, bytes]:
    """Every record file of a run."""
    found = {p.name: p.read_bytes() for p in (run.path / "data").iterdir()}
    assert found
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def calls_made(summary: RunSummary) -> int:
    return sum(s.calls_made for s in summary.stages)


def start_cai(folder: Path, *args: str, **options: Any) -> "subprocess.Popen[str]":
    """Start `python -m cai` in a folder; `environment` is added to this process's own."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    here = {k: v for k, v in os.environ.items() if not k.startswith("COV")} | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    environment = here | pipes.pop("environment", {})
    return subprocess.Popen([sys.executable, "-m", "cai", *args], cwd=folder, env=environment, **pipes)


def cai(folder: Path, *args: str, stdin: str = "", timeout: float = 60, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `python -m cai` in a folder to its end; options as for `start_cai`."""
    process = start_cai(folder, *args, stdin=subprocess.PIPE, **options)
    out, err = process.communicate(stdin, timeout=timeout)
    return subprocess.CompletedProcess(args, process.returncode, out, err)
