"""What the training stages leave beside a training's own folder. The trainings themselves are in test_stages and tests/train."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai.core.jsonl import read_records, write_records
from cai.core.workspace import Workspace
from cai.pipeline.methods import METHODS, is_watched
from cai.pipeline.methods.online_dpo import rounds_log
from cai.pipeline.training import policy_stage, trained
from cai.recipe import GoldConfig, PolicyConfig, Recipe
from cai.train.checkpoints import TrainResult
from cai.train.monitor import FRONTIER
from cai.train.running import HISTORY


def context(folder: Path, recipe: Recipe) -> Any:
    return SimpleNamespace(run=Workspace(folder).run("s"), stage="policy", recipe=recipe)


def test_the_runs_log_has_every_step_of_every_round_however_often_it_was_killed(tmp_path: Path) -> None:
    c = context(tmp_path, Recipe(name="s"))
    out = c.run.model("policy")
    for number, steps in ((1, 3), (2, 2)):
        write_records(out / f"round-{number}" / HISTORY, [{"loss": 0.5, "step": i + 1} for i in range(steps)])
    write_records(out / HISTORY, rounds_log(out, 2))
    write_records(c.run.metrics, [{"stage": "sft", "step": 1}, {"stage": "policy", "step": 9}])
    assert trained(c, TrainResult(5, 7, {"too_long": 1}), out) == {"examples": 7, "steps": 5, "dropped_too_long": 1}
    found = [(r["stage"], r.get("round"), r["step"]) for r in read_records(c.run.metrics, dict[str, Any])]
    assert found == [("sft", None, 1), *[("policy", 1, i) for i in (1, 2, 3)], *[("policy", 2, i) for i in (4, 5)]]


def test_what_was_seen_of_an_earlier_policy_is_not_shown_as_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = replace(METHODS.get("dpo"), run=lambda c: {})
    monkeypatch.setattr("cai.pipeline.training.METHODS", SimpleNamespace(get=lambda name: idle))
    watched = Recipe(name="s", gold=GoldConfig(fraction=0.5))
    for recipe, stays in ((watched, True), (Recipe(name="s"), False)):
        c = context(tmp_path, recipe)
        frontier = c.run.model("policy") / FRONTIER
        write_records(frontier, [])
        policy_stage(c)
        assert frontier.exists() is stays


def test_rounds_say_that_no_gold_model_watches_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(name="s", gold=GoldConfig(fraction=0.5), policy=PolicyConfig(method="online-dpo"))
    told: list[str] = []
    c = context(tmp_path, recipe)
    c.reporter = SimpleNamespace(say=lambda text, style="": told.append(text), progress=lambda *a: None)
    monkeypatch.setattr("cai.pipeline.methods.online_dpo.train_rounds", lambda c, on_log: TrainResult(0, 0))
    write_records(c.run.model("policy") / HISTORY, [])
    write_records(c.run.model("policy") / FRONTIER, [])
    policy_stage(c)
    assert not is_watched(recipe) and not (c.run.model("policy") / FRONTIER).exists()
    assert len(told) == 1 and "online-dpo has no watch" in told[0]
