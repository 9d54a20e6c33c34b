"""What reaches a tracker, read back from TensorBoard's own files; and what becomes of a run whose tracker can't be had, or fails."""

import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from cai.core.console import Reporter
from cai.core.jsonl import read_records
from cai.core.manifest import read_manifest
from cai.errors import RecipeError
from cai.pipeline.driver import run_recipe
from cai.pipeline.stages import STAGES
from cai.pipeline.tracking import PIPELINE, Tracking
from cai.recipe import Recipe
from cai.records import EvalResult
from tests.pipeline.tiny_runs import tiny_workspace
from tests.workspaces import make_workspace, recipe_of, run_data

Events = dict[str, dict[int, float]]


def events(folder: Path) -> Events:
    """Every number of one run on TensorBoard, with its steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: {e.step: e.value for e in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_a_whole_run_reaches_tensorboard(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = tiny_workspace(tmp_path / "w", tiny_model_dir)
    changes = ("report_to=tensorboard", "policy.method=ppo", "policy.ppo.response_length=8", "policy.watch={every_steps: 1, prompts: 4}")
    changes += (
        "gold={fraction: 0.4, lora: {rank: 4}}",
        "policy.ppo.num_ppo_epochs=1",
        "pairs.contrast=false",
        "pairs.sampling.max_tokens=4",
    )
    recipe = recipe_of(workspace, *changes)
    run_recipe(recipe, workspace, STAGES, Reporter())
    run = workspace.run("s")
    folder = run.path / "tensorboard"
    assert {p.name for p in folder.iterdir()} == {PIPELINE, "sft", "reward-0", "reward-1", "gold", "policy"}

    logged = list(read_records(run.metrics, dict[str, Any]))
    for part, stage, member, name in (
        ("sft", "sft", None, "loss"),
        ("reward-1", "reward", "reward-1", "loss"),
        ("policy", "policy", None, "objective/kl"),  # of PPO's own loop
    ):
        wanted = {r["step"]: r[name] for r in logged if r["stage"] == stage and r.get("member") == member}
        assert wanted and events(folder / part)[f"train/{name}"] == pytest.approx(wanted, rel=1e-5)

    looks = list(read_records(run.model("policy") / "frontier.jsonl", dict[str, Any]))
    policy = events(folder / "policy")
    assert len(looks) > 1
    for name in ("proxy", "gold", "kl", "words", "refusal_rate"):
        assert policy[f"watch/{name}"] == pytest.approx({p["step"]: p[name] for p in looks}, rel=1e-5)

    pipeline = events(folder / PIPELINE)
    manifest = read_manifest(run.manifest)
    assert manifest is not None
    for stage in manifest.stages[:-1]:
        assert pipeline[f"{stage.name}/calls_made"] == {0: stage.calls_made}
        assert {k: v for k, v in stage.counts.items() if pipeline[f"{stage.name}/{k}"] != {0: v}} == {}
    for result in read_records(run.data("evaluation"), EvalResult):
        name = f"evaluation/{result.model}/{result.name}"
        shown = [pipeline[name + end][0] for end in ("", "_low", "_high")]
        assert shown == pytest.approx([result.value, result.low, result.high], rel=1e-5)

    files = sorted(folder.rglob("*events*"))
    run_recipe(recipe, workspace, STAGES, Reporter())
    assert sorted(folder.rglob("*events*")) == files, "a finished run has nothing to say"


def test_the_tracker_decides_nothing(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    run_data(workspace)
    again = run_data(workspace, "report_to=tensorboard")
    assert all(s.reused for s in again.stages) and not (workspace.run("s").path / "tensorboard").exists()
    assert recipe_of(workspace).hash == recipe_of(workspace, "report_to=wandb").hash


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_there_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(RecipeError, match=rf"{tracker} is not installed. Install it: pip install 'cai\[{tracker}\]'"):
        run_data(workspace, f"report_to={tracker}")
    assert not workspace.run("s").manifest.exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="report_to"):
        recipe_of(make_workspace(tmp_path / "w"), "report_to=mlflow")


def test_a_tracker_that_cannot_be_opened_stops_the_run_at_its_start(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    workspace.run("s").path.mkdir(exist_ok=True)
    (workspace.run("s").path / "tensorboard").write_text("a file where its folder should be")
    with pytest.raises(RecipeError, match="report_to: tensorboard could not be opened"):
        run_data(workspace, "report_to=tensorboard")
    assert not workspace.run("s").data("prompts").exists()


def test_a_tracker_that_fails_on_the_way_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[tuple[str, dict[str, float]]] = []
    closed: list[str] = []

    class Fake(GeneralTracker):
        name, requires_logging_directory, tracker = "fake", False, None

        def __init__(self, part: str) -> None:
            super().__init__()
            self.part = part

        def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
            if self.part == "broken":
                raise OSError("gone")
            written.append((self.part, dict(values)))

        def finish(self) -> None:
            closed.append(self.part)
            if self.part == "broken":
                raise OSError("still gone")

    monkeypatch.setattr("cai.pipeline.tracking.open_tracker", lambda recipe, folder, part: Fake(part))
    told: list[str] = []
    with Tracking(Recipe(name="r", report_to="tensorboard"), tmp_path, told.append) as tracking:
        tracking.log("sft", {"a": 1, "never": float("nan")})
        tracking.finish()
        tracking.log("broken", {"a": 2})
        tracking.log("sft", {"a": 3})
    assert written == [("sft", {"a": 1.0})] and closed == ["sft", "broken"]
    assert len(told) == 1 and "OSError: gone" in told[0]
