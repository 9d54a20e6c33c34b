"""One session: models opened once over one store, the settings of a command, and what it says where something is not open."""

import asyncio
from pathlib import Path

import pytest

from cai.constitution.load import load_constitution
from cai.core.workspace import find_workspace
from cai.errors import ConstitutionError, DataError, ModelError, RecipeError
from cai.judge.calibration import Calibration, write_calibration
from cai.models.scripted import ScriptedEngine, default_script
from cai.recipe import ModelSpec, Recipe
from cai.session import Session
from cai.workbench.settings import run_of, settings
from tests.judge.judging import CONSTITUTION
from tests.sessions import ScriptedSession
from tests.workspaces import make_workspace


def test_a_prompt_is_answered_revised_and_judged() -> None:
    session = ScriptedSession()

    async def work(opened: Session) -> None:
        trace = await opened.critique_and_revise("How do I bake bread?", CONSTITUTION, rounds=2)
        judgment = await opened.judge(CONSTITUTION)(trace.pair)
        assert len(trace.rounds) == 2 and trace.pair.response_a == trace.response and trace.pair.response_b == trace.final
        assert judgment.p_a is not None and judgment.protocol == "pointwise-contrast"
        assert (await opened.sample_pair("How do I bake bread?")).response_a == (
            await opened.sample_pair("How do I bake bread?")
        ).response_a

    session.ask(work)
    assert session.usage.made == len(session.asked) and session.usage.reused == 2


def test_model_and_judge_share_an_engine_unless_the_recipe_names_another() -> None:
    opened: list[str] = []

    async def opener(spec: ModelSpec) -> ScriptedEngine:
        opened.append(spec.path)
        return ScriptedEngine(default_script, spec.path)

    async def engines(session: Session) -> tuple[str, str]:
        async with session:
            return session.model.engine.name, session.judge_model.engine.name

    assert asyncio.run(engines(Session("a", keep_calls=False, opener=opener))) == ("a", "a") and opened == ["a"]
    assert asyncio.run(engines(Session("a", judge="b", keep_calls=False, opener=opener))) == ("a", "b") and opened == ["a", "a", "b"]


def test_engines_are_closed_even_where_the_judge_cannot_be_opened() -> None:
    closed: list[str] = []

    class Closing(ScriptedEngine):
        async def close(self) -> None:
            closed.append(self.name)

    async def opener(spec: ModelSpec) -> ScriptedEngine:
        if spec.path == "gone":
            raise ModelError("gone: no such model")
        return Closing(default_script, spec.path)

    async def enter() -> None:
        async with Session("a", judge="gone", keep_calls=False, opener=opener):
            pytest.fail("opened")

    with pytest.raises(ModelError, match="no such model"):
        asyncio.run(enter())
    assert closed == ["a"]


def test_what_is_not_open_is_named() -> None:
    session = Session("scripted", keep_calls=False)
    with pytest.raises(ModelError, match="the session is not open"):
        _ = session.store
    with session, pytest.raises(ModelError, match=r"model is not open.*open_model"):
        _ = session.model
    with session, pytest.raises(ModelError, match=r"judge is not open.*open_judge"):
        session.judge(CONSTITUTION)


def test_an_empty_prompt_and_an_unknown_protocol_are_refused() -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        ScriptedSession().ask(lambda opened: opened.respond("  "))
    with pytest.raises(RecipeError, match=r"--protocol best: no judging protocol .best.; known: check, likelihood"):
        settings(protocol="best")


def test_outside_of_a_workspace_templates_are_the_packages_and_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError):
        find_workspace(Path.cwd())

    async def work() -> str:
        async with Session("scripted") as session:
            return (await session.respond("Hello?")).text

    assert asyncio.run(work())
    assert list(tmp_path.iterdir()) == []
    assert load_constitution("general").id == "general"
    with pytest.raises(ConstitutionError, match=r"no constitution 'generel'; there are: .*general"):
        load_constitution("generel")


def test_in_a_workspace_calls_are_kept_and_its_constitution_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "w", adapters=False)
    own = workspace.root / "constitution" / "general.yaml"
    own.write_text(own.read_text().replace("id: general", "id: mine", 1))
    monkeypatch.chdir(workspace.root / "runs")
    assert load_constitution("general").id == "mine"
    for expected in (1, 0):
        session = ScriptedSession(workspace=find_workspace(Path.cwd()))
        session.ask(lambda opened: opened.respond("Hello?"))
        assert len(session.asked) == expected


def test_settings_come_from_a_run_a_recipe_or_the_defaults(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run = workspace.run("s")
    (run.path / "recipe.yaml").write_text("seed: 7\nmodel: { path: scripted }\nfeedback: { judge: { path: scripted, name: strict } }\n")
    assert (settings(run=run).seed, settings(run=run).judge.name) == (7, "strict")
    assert settings(run=run, judge="http://127.0.0.1:1/v1#other").judge.name == "other"
    with pytest.raises(DataError, match="leave --model and --recipe out"):
        settings(run=run, model="embedded")
    assert settings(seed=3).judge == settings(seed=3).model == ModelSpec()
    assert settings(model="http://127.0.0.1:1/v1#m").judge.name == "m", "without a judge of its own the model judges"
    (run.model("policy")).mkdir(parents=True)
    found = run_of(str(run.model("policy")))
    assert found is not None and found.path == run.path and run_of("embedded") is None


def test_a_recipes_calibration_weighs_only_its_own_protocol(tmp_path: Path) -> None:
    fingerprint = ScriptedEngine(default_script, default_script.__name__).fingerprint
    write_calibration(tmp_path / "c.json", Calibration("pointwise", "ensemble", 1, fingerprint, "", scale=2.0, pooling="probabilities"))
    recipe = settings(calibration=tmp_path / "c.json", protocol="pointwise")

    async def work(opened: Session) -> tuple[bool, bool]:
        judges = opened.judge(CONSTITUTION), opened.judge(CONSTITUTION, protocol="pairwise")
        return judges[0].calibration is not None, judges[1].calibration is not None

    assert ScriptedSession(recipe=recipe).ask(work) == (True, False)
    assert Recipe(name="r").feedback.calibration is None
