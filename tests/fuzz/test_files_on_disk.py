"""Files that something else may have written or damaged: adapters, calibrations, manifests, recipes, templates, constitutions."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from cai.constitution.load import load_constitution
from cai.core.manifest import Manifest, StageEntry, write_manifest
from cai.core.status import run_status
from cai.core.workspace import RunDirectory, Workspace, find_run
from cai.errors import CaiError, ConstitutionError, DataError, ModelError, RecipeError, TemplateError
from cai.judge.calibration import Calibration, read_calibration, write_calibration
from cai.models.local.fingerprint import model_fingerprint
from cai.models.naming import spec_from_name
from cai.models.opening import open_engine
from cai.models.templates import FIELDS, Templates, load_templates
from cai.pipeline.setup_check import check_setup
from cai.recipe import ModelSpec, Recipe, load_recipe
from tests.fuzz.fuzzing import AWKWARD, JSON, TEXT, depths, fuzz, mutated
from tests.workspaces import ROOT, make_workspace

pytestmark = pytest.mark.attack

JUNK = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'"\xff"', b'{"name": "\xff"}', b"[" * 100_000, b"\x80\x04\x95pickle", b"{}", b"7")
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere",
    "target_modules": ["q_proj", "v_proj"],
    "r": 4,
    "lora_alpha": 8,
}


def adapter(folder: Path, config: bytes, weights: bytes = b"") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


@depths(60)
def test_adapter_configs_name_a_local_base_or_are_refused(tmp_path: Path, tiny_model_dir: Path, examples: int) -> None:
    def check(value: Any) -> None:
        folder = adapter(tmp_path / "a", json.dumps(value).encode())
        with contextlib.suppress(ModelError):
            spec = spec_from_name(str(folder))
            assert not spec.is_server and spec.path != "scripted" and isinstance(spec.path, str) and spec.path
        with contextlib.suppress(ModelError):
            assert model_fingerprint(ModelSpec(path=str(tiny_model_dir), adapter=str(folder))).startswith("local:")

    bases = st.sampled_from(AWKWARD).map(lambda text: ADAPTER | {"base_model_name_or_path": text})
    fuzz(check, mutated(ADAPTER) | bases, examples)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_junk_for_a_configuration_is_a_model_error(tmp_path: Path, tiny_model_dir: Path, file: str, junk: bytes) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "m"))
    folder = adapter(tmp_path / "a", json.dumps(ADAPTER).encode())
    ((model if file == "config.json" else folder) / file).write_bytes(junk)
    if junk != b"{}":
        with pytest.raises(ModelError, match=file):
            model_fingerprint(ModelSpec(path=str(model), adapter=str(folder)))
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        model_fingerprint(ModelSpec(path=str(model)))


@pytest.mark.parametrize("base", ["http://127.0.0.1:1/v1", "https://example.org/v1", "scripted", "HTTP://127.0.0.1/v1"])
def test_an_adapter_cannot_send_prompts_to_a_server(tmp_path: Path, base: str) -> None:
    folder = adapter(tmp_path / "a", json.dumps(ADAPTER | {"base_model_name_or_path": base}).encode())
    with pytest.raises(ModelError, match=r"adapter_config\.json: .*not a model's folder or Hub id"):
        spec_from_name(str(folder))


@depths(60)
def test_mutated_calibrations(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "c.json"
    write_calibration(path, Calibration("pointwise", "ensemble", 1, "m", "c", 1.0, {"kind": 0.5}, fitted_on=("a",)))
    good = json.loads(path.read_text())

    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        with contextlib.suppress(DataError):
            assert read_calibration(path).hash

    fuzz(check, mutated(good), examples)


@pytest.mark.parametrize("junk", JUNK)
def test_a_run_directory_full_of_junk_is_named(tmp_path: Path, junk: bytes) -> None:
    run = RunDirectory(tmp_path / "runs" / "s")
    for name in ("manifest.json", "failures.jsonl", "progress.json"):
        shutil.rmtree(run.path, ignore_errors=True)
        run.path.mkdir(parents=True)
        write_manifest(run.manifest, Manifest("s", stages=[StageEntry("respond", "running", "f")]))
        (run.path / name).write_bytes(junk)
        with run.locked():
            try:
                assert run_status(run).stages
            except CaiError as e:
                assert name in str(e)
    (tmp_path / "c.json").write_bytes(junk)
    with pytest.raises(DataError, match=r"c\.json: not a calibration"):
        read_calibration(tmp_path / "c.json")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("fuzz") / "w")


def settings_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every setting's path in a recipe."""
    if not isinstance(value, dict):
        return [path]
    return [path, *(p for key, inner in value.items() for p in settings_of(inner, (*path, key)))]


@depths(50)
def test_any_setting_of_a_recipe_may_be_wrong(workspace: Workspace, examples: int) -> None:
    import msgspec

    recipe = workspace.root / "runs" / "s.yaml"
    paths = settings_of(msgspec.to_builtins(Recipe(name="s")))[1:]
    file = workspace.root / "runs" / "fuzz.yaml"

    def check(given: Any) -> None:
        path, value = given
        whole: Any = value
        for key in reversed(path):
            whole = {key: whole}
        file.write_text(json.dumps({"model": {"path": "scripted"}} | whole))
        try:
            check_setup(load_recipe(file), workspace, trains=False)
        except CaiError as e:
            assert str(e) and "\x1b" not in str(file)

    text = ("constitution", "templates"), ("model", "path"), ("model", "adapter"), ("name",), ("feedback", "calibration")
    paths_of_text = st.tuples(st.sampled_from(text), st.sampled_from(AWKWARD))
    sources = st.sampled_from(AWKWARD).map(lambda p: (("prompts", "train"), [{"path": p}]))
    fuzz(check, st.tuples(st.sampled_from(paths), JSON) | paths_of_text | sources, examples)
    assert recipe.exists()


@depths(80)
def test_run_names_stay_in_their_folder(workspace: Workspace, examples: int) -> None:
    def check(name: str) -> None:
        try:
            run = workspace.run(name)
        except RecipeError:
            pass
        else:
            assert run.path.parent == workspace.root / "runs" and run.path.name == name and name.isprintable() and name[0] != "."
        with contextlib.suppress(CaiError):
            find_run(str(workspace.root / "runs" / name) if "\x00" not in name else "x")

    pieces = st.lists(st.sampled_from(["a", "B", "0", ".", "..", "/", "\\", "-", "_", " ", "\n", "\x00", "é", "~", "s"]), max_size=70)
    fuzz(check, pieces.map("".join) | TEXT, examples)


@depths(50)
def test_any_template_loads_or_says_why(tmp_path: Path, examples: int) -> None:
    folder = Path(shutil.copytree(ROOT / "prompts" / "templates", tmp_path / "t"))
    words = st.sampled_from(["[[user]]", "[[turns conversation]]", "[[prefill]]", "[[", "{{ conversation }}", "{{ x }}", "{%", "}}", "\n"])

    def check(text: str) -> None:
        (folder / "respond.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(TemplateError):
            templates = load_templates(folder)
            assert isinstance(templates, Templates) and templates.respond.field_names <= FIELDS["respond"][0] | FIELDS["respond"][1]

    fuzz(check, st.lists(words | TEXT, max_size=12).map("".join), examples)


@depths(50)
def test_a_constitution_of_any_shape(tmp_path: Path, examples: int) -> None:
    import yaml

    good = yaml.safe_load((ROOT / "constitution" / "general.yaml").read_text())
    good["principles"] = good["principles"][:2]

    def check(value: Any) -> None:
        (tmp_path / "c.yaml").write_text(json.dumps(value))
        try:
            assert load_constitution(tmp_path / "c.yaml").hash
        except ConstitutionError as e:
            assert str(e).startswith(str(tmp_path / "c.yaml")) and len(str(e)) < 20_000

    fuzz(check, mutated(good), examples)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_are_refused_by_name(name: str, workspace: Workspace) -> None:
    import asyncio

    for load in (
        lambda: load_templates(Path(name)),
        lambda: spec_from_name(name),
        lambda: asyncio.run(open_engine(ModelSpec(path=name if "://" not in name else "./", adapter=name))),
        lambda: read_calibration(Path(name)),
        lambda: load_recipe(Path(name)),
    ):
        with contextlib.suppress(CaiError):
            load()
