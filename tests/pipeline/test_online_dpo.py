"""DPO in rounds on a tiny model: who starts where, who judges, what is kept, and going on after an interrupt."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cai.core.console import Reporter
from cai.core.jsonl import read_records
from cai.core.manifest import read_manifest
from cai.core.workspace import Workspace
from cai.pipeline.methods.online_dpo import round_prompts, round_tasks
from cai.pipeline.plan import draft
from cai.pipeline.training import remove_rounds
from cai.records import Failure, Judgment, Preference, ResponsePair
from cai.train.reward.train import train_reward
from cai.train.sft import train_sft
from tests.pipeline.tiny_runs import ROUNDS, tiny_workspace
from tests.speeds import steady
from tests.train.builders import adapter, examples, model_at, preferences, prompt, reward_config, sft_config
from tests.workspaces import Interrupting, calls_made, recipe_of, rows, run_data


@pytest.fixture(scope="module")
def start(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose run has answered its prompts and has an SFT adapter and reward models."""
    workspace = tiny_workspace(tmp_path_factory.mktemp("w") / "start", tiny_model_dir)
    run = workspace.run("s")
    train_sft(sft_config(), model_at(tiny_model_dir), examples(4), run.model("sft"), 0)
    for seed, name in enumerate(recipe_of(workspace).reward.member_names):
        train_reward(reward_config(), model_at(tiny_model_dir), preferences(4), (), run.model(name), seed)
    run_data(workspace, only=("respond",))
    return workspace.root


def policy(start: Path, folder: Path, *overrides: str, reporter: Reporter | None = None) -> tuple[Workspace, Any]:
    if not folder.exists():
        shutil.copytree(start, folder)
    workspace = Workspace(folder)
    return workspace, run_data(workspace, *ROUNDS, *overrides, only=("policy",), reporter=reporter)


@pytest.fixture(scope="module")
def calm(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Any]:
    return policy(start, tmp_path_factory.mktemp("calm") / "w")


def records(round_folder: Path, name: str, kind: Any) -> list[Any]:
    return list(read_records(round_folder / f"{name}.jsonl", kind))


def test_each_round_samples_from_the_last_ones_policy_and_keeps_what_it_made(calm: tuple[Workspace, Any]) -> None:
    workspace, made = calm
    out, sft = workspace.run("s").model("policy"), workspace.run("s").model("sft")
    [counts] = [s.counts for s in made.stages]
    pairs = [records(out / f"round-{n}", "pairs", ResponsePair) for n in (1, 2)]
    preferences = [records(out / f"round-{n}", "preferences", Preference) for n in (1, 2)]
    not_made = [f for f in read_records(workspace.run("s").failures, Failure) if f.stage == "policy" and "#" in f.item_id]
    assert sum(map(len, pairs)) + len(not_made) == 2 * 12 and min(map(len, pairs)) > 6
    assert (counts["rounds"], counts["examples"]) == (2, sum(map(len, preferences)))
    samplers = [{p.provenance.model for p in of_round} for of_round in pairs]
    assert all(len(s) == 1 for s in samplers) and samplers[0] != samplers[1]
    assert not {p.provenance.seed for p in pairs[0]} & {p.provenance.seed for p in pairs[1]}
    assert {p.source for of_round in preferences for p in of_round} == {"ai:pointwise-contrast"}
    for first, second in ((sft, out / "round-1"), (out / "round-1", out / "round-2")):
        assert any(not torch.equal(t, adapter(second)[name]) for name, t in adapter(first).items())
    assert all(torch.equal(t, adapter(out)[name]) for name, t in adapter(out / "round-2").items())
    assert {f.name for f in out.iterdir() if f.is_dir()} == {"round-1", "round-2"}
    assert "the SFT adapter that it started from" in (out / "round-1" / "README.md").read_text()
    assert "reference: the adapter in sft" in (out / "README.md").read_text()


def test_a_later_round_has_the_reference_that_the_recipe_says(calm: tuple[Workspace, Any], start: Path, tmp_path: Path) -> None:
    """Both take the same first round; in the second one margins begin at 0 only against the round's own start."""
    workspace, _ = calm
    other, _ = policy(start, tmp_path / "previous", "policy.rounds.reference=previous")
    first_steps = []
    for w in (workspace, other):
        steps = [r for r in read_records(w.run("s").metrics, dict[str, Any]) if r["stage"] == "policy"]
        assert [r["step"] for r in steps] == list(range(1, len(steps) + 1))
        first_steps.append(next(r for r in steps if r["round"] == 2)["rewards/margins"])
    assert abs(first_steps[0]) > 1e-3 and first_steps[1] == pytest.approx(0.0, abs=1e-5)
    assert "the SFT adapter that it started from" in (other.run("s").model("policy") / "README.md").read_text()


@pytest.mark.parametrize("after", [5, 80])
def test_an_interrupted_run_goes_on_and_makes_the_same_policy(calm: tuple[Workspace, Any], start: Path, tmp_path: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        policy(start, tmp_path / "cut", reporter=Interrupting(after))
    manifest = read_manifest(Workspace(tmp_path / "cut").run("s").manifest)
    assert manifest is not None and manifest.stage("policy").status == "stopped"  # type: ignore[union-attr]
    cut, resumed = policy(start, tmp_path / "cut")
    whole, calm_run = calm
    assert calls_made(resumed) < calls_made(calm_run)
    for name in ("round-1/preferences.jsonl", "round-2/pairs.jsonl", "round-2/preferences.jsonl"):
        assert (cut.run("s").model("policy") / name).read_bytes() == (whole.run("s").model("policy") / name).read_bytes()
    logs = [[(r["round"], r["step"], r["loss"]) for r in rows(w.run("s").metrics) if r["stage"] == "policy"] for w in (cut, whole)]
    assert logs[0] == logs[1] and {r[0] for r in logs[0]} == {1, 2}, "a round that was finished before is in the log too"
    mine, theirs = (load_file(w.run("s").model("policy") / "adapter_model.safetensors") for w in (cut, whole))
    assert all(torch.equal(t, theirs[name]) for name, t in mine.items())


def test_reward_models_judge_where_the_recipe_says(start: Path, tmp_path: Path) -> None:
    workspace, made = policy(start, tmp_path / "w", "policy.rounds.count=1", "policy.rounds.labels=reward", "policy.rounds.prompts=6")
    folder = workspace.run("s").model("policy") / "round-1"
    judgments = records(folder, "judgments", Judgment)
    assert len(judgments) == 6 and {j.protocol for j in judgments} == {"reward"}
    assert len({j.p_a for j in judgments}) > 1 and all(0.0 < j.p_a < 1.0 for j in judgments)
    assert calls_made(made) == 12, "two samples a pair and no question"
    by_pair = {j.pair_id: j.p_a for j in judgments}
    for pair in records(folder, "pairs", ResponsePair):
        [preference] = [p for p in records(folder, "preferences", Preference) if p.prompt.id == pair.prompt.id]
        assert preference.chosen == (pair.response_a if by_pair[pair.id] > 0.5 else pair.response_b)
        assert preference.source == "ai:reward"


def test_rounds_draw_other_prompts_and_pairs_have_numbers_of_their_own() -> None:
    prompts = [prompt(i) for i in range(40)]
    drawn = [round_prompts(prompts, 10, number, 0) for number in (1, 2)]
    assert [len(d) for d in drawn] == [10, 10] and drawn[0] != drawn[1] and drawn[0] == round_prompts(prompts, 10, 1, 0)
    assert round_prompts(prompts, None, 1, 0) == prompts == round_prompts(prompts, 99, 1, 0)
    numbers = [[t.number for t in round_tasks(prompts[:2], 3, n)] for n in (1, 2)]
    assert numbers == [[3, 4, 5] * 2, [6, 7, 8] * 2]


def test_rounds_of_an_earlier_recipe_go(tmp_path: Path) -> None:
    for name in ("round-1", "round-2", "round-10", "checkpoints"):
        (tmp_path / name).mkdir()
    remove_rounds(tmp_path, beyond=1)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["checkpoints", "round-1"]


def test_a_plan_counts_what_the_rounds_ask(start: Path) -> None:
    workspace = Workspace(start)
    costs = [
        next(s for s in draft(recipe_of(workspace, *ROUNDS, *more), workspace, steady) if s.name == "policy")
        for more in ((), ("policy.rounds.labels=reward",), ("policy.method=dpo",))
    ]
    assert [c.calls for c in costs] == [2 * 12 * (2 + 4), 2 * 12 * 2, 0], "two samples, and four questions to a principle"
