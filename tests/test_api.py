"""The public names, lazily; a recipe run from Python, in a script and inside a running event loop."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import cai
from cai.errors import DataError
from tests.workspaces import DATA_STAGES, ROOT, make_workspace


def test_every_public_name_is_there_has_a_docstring_and_no_other_is() -> None:
    assert len(set(cai.__all__)) == len(cai.__all__) > 25
    for name in cai.__all__:
        found = getattr(cai, name)
        assert found.__doc__ and found.__module__.startswith("cai."), name
        assert name in dir(cai)
    with pytest.raises(AttributeError, match="no attribute 'sesion'"):
        _ = cai.sesion


def test_type_checkers_see_what_is_imported_lazily() -> None:
    homes = {name: module for module, names in cai._HOMES.items() for name in names}
    assert set(homes) == set(cai.__all__)
    text = (ROOT / "cai" / "__init__.py").read_text()
    checked = text[text.index("if TYPE_CHECKING") : text.index("_HOMES")]
    for name, module in homes.items():
        assert f"from {module} import" in checked and name in checked


def test_import_cai_loads_nothing() -> None:
    code = "import cai, sys; print(sorted(m for m in ('torch', 'transformers', 'numpy', 'msgspec', 'yaml') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_recipe_runs_from_python_and_gives_typed_records(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = cai.run(workspace.root / "runs" / "s.yaml", only=DATA_STAGES)
    assert [s.name for s in run.summary.stages] == list(DATA_STAGES)
    preferences = run.records("preferences")
    assert preferences and all(isinstance(p, cai.Preference) for p in preferences)
    assert run.dataset("preferences")["p_chosen"][:] == [p.p_chosen for p in preferences]
    with pytest.raises(DataError, match="no records 'preference'; a run has: prompts"):
        run.records("preference")
    with pytest.raises(DataError, match="has not run"):
        run.records("samples")


def test_a_recipe_runs_inside_a_running_event_loop_as_in_a_notebook(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")

    async def cell() -> cai.Run:
        return cai.run(workspace.root / "runs" / "s.yaml", only=["respond"])

    assert len(asyncio.run(cell()).records("responses")) == 12
