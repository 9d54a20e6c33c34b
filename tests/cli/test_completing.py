"""What the shell completes."""

from pathlib import Path

import pytest

from cai.cli import completing
from tests.workspaces import make_workspace


def test_files_runs_stages_and_keys_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w")
    (workspace.run("s").path / "recipe.yaml").write_text("seed: 1\n")
    monkeypatch.chdir(workspace.root)
    assert "runs/s.yaml" in completing.recipes("runs/") and completing.recipes("runs/s.") == ["runs/s.yaml"]
    assert "constitution/general.yaml" in completing.constitutions("")
    assert completing.run_names("") == ["s"] and completing.run_names("x") == []
    (tmp_path / "w" / "runs" / "s" / "models" / "policy").mkdir(parents=True)
    (tmp_path / "w" / "runs" / "s" / "models" / "policy" / "adapter_config.json").write_text("{}")
    assert completing.models("") == ["embedded", "runs/s/models/policy"] and completing.models("runs/s/") == ["runs/s/models/policy"]
    assert completing.stages("re") == ["respond", "reward", "report"]
    assert completing.recipe_keys("critique.r") == ["critique.rounds="]
    assert {"gold.learning_rate=", "model.path="} <= set(completing.recipe_keys(""))


def test_outside_a_workspace_nothing_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completing.recipes("") == completing.run_names("") == completing.constitutions("") == []
