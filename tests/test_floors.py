"""The floors of the house: a module imports only lower floors or its own folder, heavy libraries load when used; rules of the tests."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.floors import FLOOR_OF

ROOT = Path(__file__).parents[1]
LIGHT_FLOORS = (0, 1, 2, 3, 5, 7)
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "pyarrow",
    "openai",
)


def imports(tree: ast.AST, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything imported; `from cai import x` yields `cai.x`."""
    for node in ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "cai" else [module]
            yield from ((node.lineno, name) for name in names)
        elif top_level_only and isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            yield from imports(node, top_level_only=True)


def room_of(dotted: str) -> str:
    """The room of a module below `cai`: `models/` for `models.server`, `evaluate/audit/` for `evaluate.audit.run`, `ids` for `ids`."""
    parts = dotted.split(".")
    folders = (f"{'/'.join(parts[:n])}/" for n in (2, 1))
    return next((folder for folder in folders if folder in FLOOR_OF), parts[0])


def dotted_name(package: Path, path: Path) -> str:
    return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def faults(package: Path) -> list[str]:
    """Every import that breaks the floors, every module without one, and every heavy import where there may be none."""
    found = []
    for path in sorted(package.rglob("*.py")):
        name = dotted_name(package, path)
        if not name:
            continue
        room = room_of(name)
        if room not in FLOOR_OF:
            found.append(f"{name}: stands on no floor; put it into FLOORS")
            continue
        floor = FLOOR_OF[room]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, imported in imports(tree):
            if imported.startswith("."):
                found.append(f"{name}:{line}: relative import")
            if not imported.startswith("cai.") or imported == "cai.__version__":
                continue
            other = room_of(imported.removeprefix("cai."))
            if other not in FLOOR_OF:
                found.append(f"{name}:{line}: imports {imported}, which stands on no floor")
            elif FLOOR_OF[other] > floor or (FLOOR_OF[other] == floor and other != room and "/" in room + other):
                found.append(f"{name}:{line}: floor {floor} imports {imported} of floor {FLOOR_OF[other]}")
        if floor in LIGHT_FLOORS:
            top = imports(tree, top_level_only=True)
            found += [f"{name}:{line}: imports {imported} at once" for line, imported in top if imported.split(".")[0] in HEAVY]
    return found


def test_every_module_stands_on_a_floor_and_imports_only_lower_ones() -> None:
    assert len(list((ROOT / "cai").rglob("*.py"))) > 30
    assert faults(ROOT / "cai") == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    package = ROOT / "cai"
    graph = {}
    for path in package.rglob("*.py"):
        name = dotted_name(package, path)
        found = imports(ast.parse(path.read_text(encoding="utf-8")))
        graph[name] = {other.removeprefix("cai.") for _, other in found if other.startswith("cai.")} - {name}
    while leaves := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert graph == {}


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("ids.py", "from cai.recipe import Recipe", "ids:1: floor 0 imports cai.recipe of floor 3"),
        ("ids.py", "def f():\n    import cai.models.local.engine", "ids:2: floor 0 imports cai.models.local.engine of floor 4"),
        ("ids.py", "from cai import cli", "ids:1: floor 0 imports cai.cli of floor 14"),
        ("data/rows.py", "from cai.generate.pairs import x", "data.rows:1: floor 5 imports cai.generate.pairs of floor 5"),
        ("evaluate/run.py", "from cai.evaluate.audit.run import x", "evaluate.run:1: floor 9 imports cai.evaluate.audit.run of floor 10"),
        ("core/jsonl.py", "from cai.stats import x\nfrom cai.recipe import y", "core.jsonl:2: floor 2 imports cai.recipe of floor 3"),
        ("models/base.py", "from . import store", "models.base:1: relative import"),
        ("utils.py", "", "utils: stands on no floor; put it into FLOORS"),
        ("ids.py", "from cai.utils import x", "ids:1: imports cai.utils, which stands on no floor"),
        ("recipe.py", "try:\n    import torch.nn\nexcept ImportError:\n    pass", "recipe:2: imports torch.nn at once"),
    ],
)
def test_a_broken_floor_is_noticed(tmp_path: Path, file: str, text: str, fault: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert faults(tmp_path) == [fault]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models/local/engine.py", "from cai.models.base import x\nimport torch"),
        ("generate/pairs.py", "from cai.generate.critique import x\n\ndef f():\n    import torch"),
        ("core/manifest.py", "from cai import __version__"),
        ("pipeline/driver.py", "from cai.errors import x"),
    ],
)
def test_what_the_floors_allow(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert faults(tmp_path) == []


def loaded_by(modules: list[str]) -> list[str]:
    """The heavy libraries that a fresh interpreter has loaded after importing modules."""
    code = f"import {', '.join(modules)}\nimport sys\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_light_floors_load_nothing_heavy() -> None:
    package = ROOT / "cai"
    names = sorted(filter(None, (dotted_name(package, p) for p in package.rglob("*.py"))))
    light = [f"cai.{name}" for name in names if FLOOR_OF.get(room_of(name)) in LIGHT_FLOORS]
    assert len(light) > 15
    assert loaded_by(light) == []


def test_the_command_line_loads_nothing_heavy() -> None:
    assert loaded_by(["cai.cli", "cai.pipeline.driver"]) == []


def test_the_check_for_heavy_libraries_can_fail() -> None:
    assert "scipy" in loaded_by(["scipy"])


def test_a_class_name_has_one_owner() -> None:
    owners: dict[str, list[str]] = {}
    for path in sorted((ROOT / "cai").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(dotted_name(ROOT / "cai", path))
    assert len(owners) > 150
    assert {name: modules for name, modules in owners.items() if len(modules) > 1} == {}


def imported_tests(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of what is imported from modules of tests named `test_*.py`, or of such a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
            names = [module + alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if name.startswith(("tests.", ".")) and ".test_" in name)


def test_tests_share_what_they_share_in_modules_without_tests() -> None:
    modules = sorted((ROOT / "tests").rglob("*.py"))
    assert len(modules) > 200
    trees = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in modules}
    assert [f"{path}:{line}: {name}" for path, tree in trees.items() for line, name in imported_tests(tree)] == []


@pytest.mark.parametrize(
    "text",
    [
        "from tests.train.test_sft import kill_at",
        "def f():\n    from tests.train import builders, test_sft",
        "import tests.train.test_sft as sft",
        "from . import test_sft",
        "from .test_sft import kill_at",
    ],
)
def test_an_import_from_a_test_module_is_noticed(text: str) -> None:
    assert len(list(imported_tests(ast.parse(text)))) == 1


def test_a_test_is_about_one_thing() -> None:
    """A test with many asserts stops at the first that fails; what is slow to make can be a fixture that several tests share."""
    asserts = {
        f"{path.relative_to(ROOT)}: {node.name}": sum(isinstance(inner, ast.Assert) for inner in ast.walk(node))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert len(asserts) > 1500
    assert [name for name, count in asserts.items() if count > 20] == []
