"""The stage `blend` on a tiny real model: which share it chooses, from which prompts, and what the run then measures."""

import json
import shutil
from pathlib import Path

import pytest

from cai.core.console import Reporter
from cai.core.jsonl import read_records
from cai.core.workspace import Workspace, file_hash
from cai.errors import RecipeError
from cai.models.blend import blend_adapters
from cai.pipeline.blending import choose
from cai.pipeline.driver import RunSummary, run_recipe
from cai.pipeline.setup_check import check_setup
from cai.pipeline.stages import STAGES
from cai.records import BlendPoint
from tests.pipeline.tiny_runs import tiny_workspace
from tests.workspaces import recipe_of, rows

CHECKED = """\
id: short
name: Short
description: Two principles that a rule can check.
principles:
  - { id: brief, statement: Be brief., check: { max_words: 2 } }
  - { id: answer, statement: Answer., check: { min_words: 1 } }
"""


def blending(folder: Path, model: Path) -> Workspace:
    """A workspace whose eight prompts for a blend include two that were trained on or are evaluated on."""
    workspace = tiny_workspace(folder, model)
    (folder / "constitution" / "short.yaml").write_text(CHECKED)
    texts = ["A harmful question, short: 0?", "A eval_harmful question, short: 0?", *(f"What is {name}?" for name in ("ice", "tin", "rye"))]
    with (folder / "prompts" / "own.jsonl").open("w") as f:
        for i, text in enumerate(texts):
            f.write(json.dumps({"id": f"own-{i}", "kind": "harmful", "messages": [{"role": "user", "content": text}]}) + "\n")
    return workspace


class Warned(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def run_with(workspace: Workspace, keep: str, reporter: Reporter | None = None) -> RunSummary:
    blend = f"blend={{prompts: [{{path: prompts/own.jsonl}}], keep: {keep}, shares: [0.5], sampling: {{max_tokens: 12}}}}"
    return run_recipe(recipe_of(workspace, "evaluate.knowledge=0", blend), workspace, STAGES, reporter or Reporter())


def test_a_run_chooses_a_blend_on_prompts_of_its_own_and_measures_it_last(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = blending(tmp_path / "w", tiny_model_dir)
    run = workspace.run("s")
    first = run_with(workspace, "{answer: 0.5}")
    counts = {s.name: s.counts for s in first.stages}
    assert counts["blend"]["prompts"] == 3 and counts["blend"]["blends"] == 2
    repeats = {f["item_id"] for f in rows(run.failures) if f["stage"] == "blend"}
    assert repeats == {"own-0", "own-1"}, "prompts that were trained on, or are evaluated on, choose nothing"

    points = list(read_records(run.data("blend"), BlendPoint))
    [chosen] = [p for p in points if p.chosen]
    assert [p.share for p in points] == [0.5, 1.0] and chosen.share == choose(points, {"answer": 0.5}).share
    again = blend_adapters(run.model("sft"), run.model("policy"), chosen.share, tmp_path / "again")
    assert file_hash(again) == file_hash(run.model("blend"))
    assert {r["model"] for r in rows(run.data("evaluation")) if r["name"] == "adherence:brief"} >= {"base", "sft", "policy", "blend"}
    page = run.report.read_text()
    assert "Blend of SFT model and policy" in page and "cai chat runs/s/models/blend" in page
    assert not (run.unfinished / "blend-0.5").exists()
    assert all(s.reused for s in run_with(workspace, "{answer: 0.5}").stages if s.name != "report")

    before = file_hash(run.model("blend"))
    shutil.rmtree(run.model("blend"))  # as if the stage had been killed before its end
    resumed = {s.name: s for s in run_with(workspace, "{answer: 0.5}").stages}
    assert not resumed["blend"].reused and resumed["blend"].calls_made == 0 and resumed["evaluate"].reused
    assert file_hash(run.model("blend")) == before


def test_where_no_blend_keeps_what_it_must_the_policy_stays_as_it_was_trained(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = blending(tmp_path / "w", tiny_model_dir)
    with (workspace.root / "constitution" / "short.yaml").open("a") as f:
        f.write("  - { id: never, statement: Be long., check: { min_words: 500 } }\n")
    warned = Warned()
    run_with(workspace, "{never: 0.5}", warned)
    run = workspace.run("s")
    assert any("the policy stays as it was trained" in text for text in warned.said)
    assert not any(p.keeps for p in read_records(run.data("blend"), BlendPoint))
    weights = "adapter_model.safetensors"
    assert file_hash(run.model("blend") / weights) == file_hash(run.model("policy") / weights)


@pytest.mark.parametrize(
    ("keep", "problem"),
    [
        ("{kind: 0.5}", "kind: no principle with a check in this constitution; it has brief"),
        ("{brief: 0.5, answer: 1}", "none left"),
    ],
)
def test_what_a_blend_must_keep_is_checked_before_anything_runs(tmp_path: Path, tiny_model_dir: Path, keep: str, problem: str) -> None:
    workspace = blending(tmp_path / "w", tiny_model_dir)
    recipe = recipe_of(workspace, f"blend={{prompts: [{{path: prompts/none.jsonl}}], keep: {keep}}}")
    with pytest.raises(RecipeError) as caught:
        check_setup(recipe, workspace)
    assert problem in str(caught.value) and "blend.prompts" in str(caught.value)
