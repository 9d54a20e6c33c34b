"""The public names, lazily; a recipe run from Python, in a script and inside a running event loop."""

import ast
import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

import cai
from cai.errors import DataError
from cai.pipeline.methods import METHODS
from cai.pipeline.run import RECORD_TYPES
from cai.pipeline.stages import STAGES
from cai.recipe import BeginningsConfig, BlendConfig, GoldConfig, OnlineConfig
from tests.models.serving import servers
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


def test_the_public_trainings_are_those_of_a_run() -> None:
    assert METHODS.get("grpo").run.keywords["method"] is cai.GRPO  # type: ignore[union-attr]
    assert METHODS.get("rloo").run.keywords["method"] is cai.RLOO  # type: ignore[union-attr]
    for method in METHODS.names():
        assert method in (ROOT / "docs" / "api.md").read_text().lower()


def test_a_policy_is_trained_on_its_own_samples_from_python(tiny_model_dir: Path, tmp_path: Path) -> None:
    online = OnlineConfig(num_generations=2, max_tokens=4)
    config = cai.PolicyConfig(method="grpo", online=online, batch_size=2, gradient_accumulation=1, max_length=64, precision="float32")
    job = cai.PolicyJob(config, cai.ModelSpec(path=str(tiny_model_dir)), None, tmp_path / "policy", seed=0)
    prompts = [cai.Prompt(f"p{i}", "helpful", (cai.Message("user", f"Question {i}?"),), "test") for i in range(2)]
    terms = (cai.RewardTerm(term="length", words=1),)
    result = cai.train_online(cai.GRPO, job, prompts, lambda: cai.RewardFunction(terms), "length")
    told = {p.id: (cai.Message("system", "Be brief."), *p.messages) for p in prompts}
    distilled = cai.train_self_distilled(replace(job, out=tmp_path / "distilled"), prompts, told)
    assert result.steps == 2 and distilled.steps == 1
    assert all((tmp_path / name / "adapter_model.safetensors").is_file() for name in ("policy", "distilled"))
    odd = replace(job, config=structs.replace(config, batch_size=3))
    with pytest.raises(cai.CaiError, match="can't be divided into groups of 2"):
        cai.train_online(cai.RLOO, odd, prompts, lambda: cai.RewardFunction(terms), "length")


def test_import_cai_loads_nothing() -> None:
    code = "import cai, sys; print(sorted(m for m in ('torch', 'transformers', 'numpy', 'msgspec', 'yaml') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=["none", "own", "policy"],
)
def test_waiting_threads_spin_briefly_unless_the_environment_says_otherwise(given: dict[str, str], found: str | None) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import cai, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=clean | given)
    assert done.stdout.strip() == str(found)


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


def test_every_record_file_that_a_stage_writes_has_a_type() -> None:
    sft = cai.SFTConfig(data=("critique", "distill"), beginnings=BeginningsConfig(prompts=()))
    recipe = cai.Recipe(name="all", sft=sft, gold=GoldConfig(), blend=BlendConfig(prompts=(), keep={}))
    written = {Path(name).stem for stage in STAGES for name in stage.writes(recipe) if name.startswith("data/")}
    assert written <= set(RECORD_TYPES) <= written | {"audit"}


def test_a_recipe_runs_inside_a_running_event_loop_as_in_a_notebook(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")

    async def cell() -> cai.Run:
        return cai.run(workspace.root / "runs" / "s.yaml", only=["respond"])

    assert len(asyncio.run(cell()).records("responses")) == 12


def test_models_judges_and_runs_are_measured_from_python(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = cai.run(workspace.root / "runs" / "s.yaml", only=DATA_STAGES)
    pairs = cai.load_pairs(workspace.root / "prompts" / "probe_pairs.jsonl").preferences[:8]
    constitution = cai.load_constitution(workspace.root / "constitution" / "starter.yaml")

    async def measured() -> tuple[cai.JudgeBench, cai.Evaluation, cai.AdherenceReport]:
        async with cai.Session("scripted", workspace=workspace) as session:
            bench = await cai.bench_judge(session, pairs, "pairwise", constitution)
            evaluation = await cai.evaluate_models(session, "scripted", None, constitution, limit=1)
            return bench, evaluation, await cai.adherence_of_models(session, "scripted", None, constitution, limit=1)

    bench, evaluation, adherence = asyncio.run(measured())
    assert [p.name for p in bench.protocols] == ["pairwise"] and bench.pairs == 8
    assert {p.id for p in adherence.principles} <= {p.id for p in constitution.principles} and evaluation.results
    with cai.Session(recipe=run.directory.path / "recipe.yaml", workspace=workspace) as session:
        found = cai.audit_run(session, run.directory, limit=0)
    assert found and run.records("audit") == found


def readme_program() -> str:
    """The first Python block of the README."""
    return (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


@pytest.mark.enable_socket
def test_the_readmes_lines_run_as_they_are_written(tmp_path: Path) -> None:
    with servers(1) as (server,):
        program = readme_program().replace("http://127.0.0.1:8000/v1", server.url)
        assert server.url in program
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    final, p_a = done.stdout.rsplit(maxsplit=1)
    assert final and 0 <= float(p_a) <= 1 and list(tmp_path.iterdir()) == []


@pytest.mark.enable_socket
def test_the_readmes_lines_run_with_a_top_level_await_as_in_a_notebook() -> None:
    with servers(1) as (server,):
        cell = readme_program().replace("http://127.0.0.1:8000/v1", server.url).replace("asyncio.run(main())", "await main()")
        code = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

        async def notebook() -> None:
            await eval(code, {})  # noqa: S307 - the README's own lines

        asyncio.run(notebook())
