"""Beginnings of responses, which a run learns before whole ones (`sft.beginnings`)."""

from pathlib import Path

import pytest

from cai.core.console import Reporter
from cai.core.workspace import Workspace
from cai.errors import RecipeError
from cai.models.local.fingerprint import model_fingerprint
from cai.pipeline.driver import run_recipe
from cai.pipeline.plan import draft
from cai.pipeline.stages import STAGES
from cai.recipe import ModelSpec, Recipe, load_recipe
from tests.pipeline.tiny_runs import CONSTITUTION, tiny_workspace
from tests.speeds import steady
from tests.workspaces import rows

OPENED = CONSTITUTION + "    check: { max_words: 40 }\n    applies_to: [harmful]\n    openings: [I can't., No.]\n"
PROMPTS = ", ".join(f"{{path: prompts/{name}.jsonl}}" for name in ("harmful", "helpful", "eval_harmful"))
BEGUN = f"sft.beginnings={{prompts: [{PROMPTS}], batch_size: 4}}"


@pytest.fixture
def workspace(tmp_path: Path, tiny_model_dir: Path) -> Workspace:
    made = tiny_workspace(tmp_path / "w", tiny_model_dir)
    (made.root / "constitution" / "opened.yaml").write_text(OPENED)
    config = "distill: { samples: 1, min_share: 0.0, drop_refusals: false, sampling: { max_tokens: 40 } }\n"
    (made.root / "runs" / "s.yaml").write_text((made.root / "runs" / "s.yaml").read_text() + config)
    return made


def recipe_of(workspace: Workspace, *overrides: str) -> Recipe:
    told = ["sft.data=[critique, distill]", "feedback.protocol=check", "constitution=constitution/opened.yaml", *overrides]
    return load_recipe(workspace.root / "runs" / "s.yaml", told)


def test_a_run_learns_the_beginnings_of_responses_first(workspace: Workspace) -> None:
    only, recipe = ("respond", "critique", "distill", "sft"), recipe_of(workspace, BEGUN)
    summary = run_recipe(recipe, workspace, STAGES, Reporter(), only=only)
    run, counts = workspace.run("s"), {s.name: s.counts for s in summary.stages}
    evaluated = {row["messages"][-1]["content"] for row in rows(run.data("eval_prompts"))}
    begun = rows(run.data("beginnings"))
    asked = [row["prompt"]["messages"][-1]["content"] for row in begun]
    assert counts["distill"]["beginnings"] == len(begun) >= 16 and not evaluated.intersection(asked)
    assert counts["sft"]["beginnings"] == len(begun) and counts["sft"]["beginning_steps"] == -(-len(begun) // 4) * 3
    assert all(row["truncated"] and row["source"] == "beginning" for row in begun)
    openings = {row["completion"] for row in begun if row["prompt"]["kind"] == "harmful"}
    assert openings == {"I can't.", "No."}, "the openings of the kind's principles, for which nothing is asked"
    helpful = [row for row in begun if row["prompt"]["kind"] == "helpful"]
    assert helpful and all(0 < len(row["completion"]) <= 5 for row in helpful), "five of the model's tokens, each a byte"
    assert all("Be kind." in row["parts"][0]["messages"][-1]["content"] for row in begun)
    weights = [model_fingerprint(ModelSpec(path=recipe.model.path, adapter=str(run.model(name)))) for name in ("beginnings", "sft")]
    assert len({*weights, model_fingerprint(ModelSpec(path=recipe.model.path))}) == 3, "whole responses are learned from there"
    again = run_recipe(recipe, workspace, STAGES, Reporter(), only=only)
    assert all(s.reused for s in again.stages)
    run_recipe(recipe_of(workspace, BEGUN, "sft.beginnings.epochs=1"), workspace, STAGES, Reporter(), only=only)
    assert model_fingerprint(ModelSpec(path=recipe.model.path, adapter=str(run.model("sft")))) != weights[1]


def test_without_beginnings_a_recipe_is_as_it_was(workspace: Workspace) -> None:
    recipe = recipe_of(workspace)
    stages = {s.name: s for s in STAGES}
    assert stages["distill"].settings(recipe) == recipe.distill and stages["sft"].writes(recipe) == ("models/sft",)


def test_a_plan_counts_what_no_opening_gives(workspace: Workspace) -> None:
    planned = {begun: {s.name: s for s in draft(recipe_of(workspace, *([BEGUN] * begun)), workspace, steady)} for begun in (False, True)}
    assert planned[True]["distill"].calls - planned[False]["distill"].calls == 8, "helpful prompts: harmful ones have openings"
    assert planned[True]["sft"].train_steps - planned[False]["sft"].train_steps == 3 * 6


def test_beginnings_need_distilled_responses(workspace: Workspace) -> None:
    with pytest.raises(RecipeError, match=r"sft.beginnings: they are those of distilled responses, and sft.data has no distill"):
        run_recipe(recipe_of(workspace, "sft.data=[critique]", BEGUN), workspace, STAGES, Reporter(), only=("respond",))
