"""The audit of trained reward models: each member alone and the ensemble of them, from what a run left behind."""

from pathlib import Path

from cai.core.jsonl import write_records
from cai.core.workspace import RunDirectory
from cai.evaluate.audit.rewriting import REWRITES
from cai.evaluate.audit.run import audit_files
from cai.recipe import Recipe
from cai.records import Message, Prompt, Provenance, Response
from cai.train.reward.train import train_reward
from tests.train.builders import model_at, preferences, reward_config


def test_members_and_ensemble_are_probed_on_real_answers(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for i in range(2):
        train_reward(reward_config(epochs=2.0), model_at(tiny_model_dir), preferences(4), (), run.model(f"reward-{i}"), i)
    prompts = [Prompt(f"p{i}", "helpful", (Message("user", f"How is {i}?"),), "t") for i in range(22)]
    write_records(run.data("responses"), [Response(p, f"It is {p.id}. That is all.", False, Provenance("m")) for p in prompts])
    findings = audit_files(run, Recipe(name="r"))
    by_subject = {s: {f.check: f for f in findings if f.subject == s} for s in ("reward-0", "reward-1", "reward")}
    names = {f"reward_if_{name}" for name in REWRITES}
    assert all(found.keys() == names for found in by_subject.values()) and len(findings) == 3 * len(names)
    assert {f.n for f in findings} == {22}
    moved = [found["reward_if_lengthened"].value for found in by_subject.values()]
    assert len(set(moved)) == 3, "two members and their mean move by different amounts"
