"""Several seeds: a run per seed, and the spread of the evaluation over them."""

import json
from pathlib import Path
from statistics import stdev

import pytest
from scipy.stats import t

from cai.core.jsonl import write_records
from cai.errors import DataError, RecipeError
from cai.pipeline.run import run, run_seeds
from cai.pipeline.seeds import seed_recipes, spread, write_spread
from cai.records import EvalResult
from tests.workspaces import cai, make_workspace, recipe_of


def result(value: float, name: str = "over_refusal") -> EvalResult:
    return EvalResult(name, "policy", value, 12, value - 0.1, value + 0.2)


def test_the_spread_is_over_seeds_and_the_other_interval_over_prompts() -> None:
    (found,) = spread({0: [result(0.2), result(1.0, "only_here")], 1: [result(0.4)], 2: [result(0.3)]})
    assert (found.name, found.model, found.n, found.values) == ("over_refusal", "policy", 12, {"0": 0.2, "1": 0.4, "2": 0.3})
    half = float(t.ppf(0.975, 2)) * stdev([0.2, 0.4, 0.3]) / 3**0.5
    assert (found.mean, found.std) == (pytest.approx(0.3), pytest.approx(0.1))
    assert (found.low, found.high) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    assert (found.prompts_low, found.prompts_high) == (pytest.approx(0.2), pytest.approx(0.5))


def test_every_seed_is_a_run_of_its_own(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", adapters=False)
    recipe = recipe_of(workspace, "seeds=[0,3]")
    assert [(r.name, r.seed, r.seeds) for r in seed_recipes(recipe)] == [("s-seed-0", 0, ()), ("s-seed-3", 3, ())]
    with pytest.raises(DataError, match="s-seed-0, s-seed-3: no evaluation results yet"):
        write_spread(recipe, workspace)
    for name, value in (("s-seed-0", 0.1), ("s-seed-3", 0.3)):
        (workspace.run(name).path / "data").mkdir(parents=True)
        write_records(workspace.run(name).data("evaluation"), [result(value)])
    path, (found,) = write_spread(recipe, workspace)
    assert path == workspace.root / "runs" / "s" / "seeds.jsonl" and found.mean == pytest.approx(0.2)
    with pytest.raises(RecipeError, match=r"several seeds\. Run it with cai\.run_seeds"):
        run(recipe, workspace=workspace)


def test_each_seed_runs_from_python(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", adapters=False)
    found = run_seeds(workspace.root / "runs" / "s.yaml", overrides=["seeds=[0,3]"], only=["respond"])
    assert [r.directory.path.name for r in found.runs] == ["s-seed-0", "s-seed-3"] and found.spread == ()
    first, second = ([r.text for r in one.records("responses")] for one in found.runs)
    assert first != second
    for one, value in zip(found.runs, (0.1, 0.3), strict=True):
        write_records(one.directory.data("evaluation"), [result(value)])
    (over,) = run_seeds(workspace.root / "runs" / "s.yaml", overrides=["seeds=[0,3]"], start="report").spread
    assert over.mean == pytest.approx(0.2) and over.values == {"0": 0.1, "3": 0.3}
    for spoilt, problem in (("seeds=[]", "has no seeds"), ("seeds=[1,1]", "has a seed twice")):
        with pytest.raises(RecipeError, match=problem):
            run_seeds(workspace.root / "runs" / "s.yaml", overrides=[spoilt], only=["respond"])


def test_the_command_runs_each_seed(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", adapters=False)
    done = cai(workspace.root, "run", "runs/s.yaml", "--set", "seeds=[0,1]", "--only", "respond", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 2
    texts = [workspace.run(f"s-seed-{seed}").data("responses").read_text() for seed in (0, 1)]
    assert texts[0] != texts[1]
    twice = cai(workspace.root, "run", "runs/s.yaml", "--set", "seeds=[1,1]", "--only", "respond")
    assert twice.returncode == 2 and "has a seed twice" in twice.stderr
