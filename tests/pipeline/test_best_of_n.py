"""Best of n on a tiny model: what is trained on, what is left out, what is recorded, and going on after an interrupt."""

import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import torch

from cai.core.console import Reporter
from cai.core.jsonl import read_records
from cai.core.manifest import read_manifest
from cai.core.text.words import word_count
from cai.core.workspace import Workspace, file_hash
from cai.errors import CaiError, ReplyError, TrainingError
from cai.models.requests import CompleteRequest, Completion, Reply, Request
from cai.models.scripted import ScriptedEngine
from cai.pipeline.methods.best_of_n import SampledPrompt, ScoredSample, Summary, kl_bound, summarize, with_best
from cai.pipeline.plan import draft
from cai.pipeline.policy_method import SAMPLES
from cai.recipe import ModelSpec
from cai.records import SFTExample
from cai.train.reward.train import train_reward
from cai.train.sft import train_sft
from tests.pipeline.tiny_runs import tiny_workspace
from tests.speeds import steady
from tests.train.builders import BY, adapter, examples, model_at, preferences, prompt, reward_config, sft_config
from tests.workspaces import Interrupting, calls_made, recipe_of, rows, run_data

N = 4
BEST_OF_N = (
    "policy.method=best-of-n",
    f"policy.online={{num_generations: {N}, max_tokens: 24, rewards: [{{term: check}}]}}",
    "policy.precision=float32",
    "policy.learning_rate=0.01",
    "policy.batch_size=4",
    "policy.save_steps=1",
)
CHECKED = """\
id: checked
name: Checked
description: Responses are a number.
principles:
  - id: even
    statement: Say an even number.
    check: { contains_any: ["0", "2", "4", "6"] }
  - id: low
    statement: Say a low number.
    check: { contains_any: ["0", "1", "2", "3"] }
"""


def says_a_number(request: Request) -> Reply:
    """Say a number by the seed, and to some prompts always the same; a few replies are cut, empty or loop."""
    assert isinstance(request, CompleteRequest)
    number = Random(request.seed).randrange(12)
    if len(request.messages[-1].content) % 3 == 0:
        return Completion("It is 5.", False, 3, 4)
    if number == 8:
        return Completion("It is 0. And", True, 3, 4)
    if number == 9:
        return Completion("It is 0 and " * 9, False, 3, 30)
    if number == 10:
        raise ReplyError("empty_reply", "no text")
    return Completion(f"It is {number % 8}.", False, 3, 4)


@pytest.fixture(scope="module")
def start(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose run has answered its prompts and has an SFT adapter and reward models."""
    workspace = tiny_workspace(tmp_path_factory.mktemp("w") / "start", tiny_model_dir)
    (workspace.root / "constitution" / "short.yaml").write_text(CHECKED)
    run = workspace.run("s")
    train_sft(sft_config(), model_at(tiny_model_dir), examples(8), run.model("sft"), 0)
    for seed, name in enumerate((*recipe_of(workspace).reward.member_names, "gold")):
        train_reward(reward_config(), model_at(tiny_model_dir), preferences(4), (), run.model(name), seed)
    run_data(workspace, only=("respond",))
    return workspace.root


def policy(start: Path, folder: Path, *overrides: str, reporter: Reporter | None = None) -> tuple[Workspace, Any]:
    """Train the tiny model on samples that a script writes in the place of its SFT adapter: its own never end."""

    async def opened(spec: ModelSpec, loading: Any) -> ScriptedEngine:
        assert spec.adapter == str(Workspace(folder).run("s").model("sft"))
        return ScriptedEngine(says_a_number)

    if not folder.exists():
        shutil.copytree(start, folder)
    workspace = Workspace(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cai.session.open_engine", opened)
        return workspace, run_data(workspace, *BEST_OF_N, *overrides, only=("policy",), reporter=reporter)


@pytest.fixture(scope="module")
def calm(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Any]:
    return policy(start, tmp_path_factory.mktemp("calm") / "w")


def found(workspace: Workspace) -> tuple[list[ScoredSample], list[SFTExample], Summary]:
    folder = workspace.run("s").model("policy") / SAMPLES
    summary = msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)
    return list(read_records(folder / "samples.jsonl", ScoredSample)), list(read_records(folder / "best.jsonl", SFTExample)), summary


def share(text: str) -> float:
    return (any(c in text for c in "0246") + any(c in text for c in "0123")) / 2


def test_the_best_by_the_check_of_each_prompts_samples_is_trained_on(calm: tuple[Workspace, Any]) -> None:
    workspace, made = calm
    samples, best, summary = found(workspace)
    [counts] = [s.counts for s in made.stages]
    by_prompt: dict[str, list[ScoredSample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt_id, []).append(sample)
    assert len(by_prompt) == 12 and all([s.number for s in group] == list(range(N)) for group in by_prompt.values())
    assert len({s.seed for s in samples}) == len(samples) == 12 * N
    chosen = {e.prompt.id: e.completion for e in best}
    assert 3 <= len(chosen) < 12, "some prompts tell something, and some nothing"
    assert {s.dropped for s in samples} == {"", "truncated", "repetitive", "empty_reply"} and summary.all_equal >= 2
    for prompt_id, group in by_prompt.items():
        left = [s for s in group if not s.dropped]
        assert all(s.reward == share(s.text) == s.terms["check"] for s in left)
        worths = [share(s.text) for s in left]
        if len(set(worths)) > 1:
            assert chosen[prompt_id] == left[worths.index(max(worths))].text
        else:
            assert prompt_id not in chosen
    assert [e.completion for e in best] == [s.text for s in samples if s.best]
    assert {e.source for e in best} == {"best-of-n"} and not any(e.truncated for e in best)
    assert counts["examples"] == summary.chosen == len(best) == 12 - summary.all_equal - summary.too_few
    assert (counts["all_equal"], counts["too_few"], counts["texts"]) == (summary.all_equal, summary.too_few, 12 * N)
    assert counts["truncated"] == sum(s.dropped == "truncated" for s in samples)


def test_the_weights_move_and_the_sft_adapter_stays(calm: tuple[Workspace, Any], start: Path) -> None:
    workspace, _ = calm
    run, before = workspace.run("s"), Workspace(start).run("s")
    assert file_hash(run.model("sft")) == file_hash(before.model("sft"))
    old, new = adapter(run.model("sft")), adapter(run.model("policy"))
    assert old.keys() == new.keys() and all(not torch.equal(t, new[name]) for name, t in old.items())
    card = (run.model("policy") / "README.md").read_text()
    assert "best of its own 4 samples" in card and "best-of-n" in card


def test_what_a_researcher_asks_for_is_recorded(calm: tuple[Workspace, Any]) -> None:
    workspace, _ = calm
    samples, _, summary = found(workspace)
    assert summary.n == N and summary.kl_bound == pytest.approx(1.3862943611 - 0.75)
    left: dict[str, list[float]] = {}
    for s in samples:
        if s.reward is not None and not s.dropped:
            left.setdefault(s.prompt_id, []).append(s.reward)
    assert summary.reward == pytest.approx(sum(sum(g) / len(g) for g in left.values()) / len(left))
    assert summary.reward_best == pytest.approx(sum(map(max, left.values())) / len(left))
    assert summary.reward_best > summary.reward and summary.gold is None
    [row] = [r for r in rows(workspace.run("s").metrics) if r["stage"] == "policy" and "best_of_n/reward" in r]
    assert row["best_of_n/reward_best"] == summary.reward_best and row["best_of_n/kl_bound"] == summary.kl_bound


class Stopping(Reporter):
    """Ends the run where something is under way, as Ctrl-C does."""

    def __init__(self, at: str) -> None:
        self.at = at

    def progress(self, done: int, total: int, what: str) -> None:
        if what == self.at and done >= 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["sampling", "prompts scored", "steps"])
def test_an_interrupted_run_goes_on_and_makes_the_same_policy(calm: tuple[Workspace, Any], start: Path, tmp_path: Path, at: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        policy(start, tmp_path / "cut", reporter=Interrupting(5) if at == "sampling" else Stopping(at))
    manifest = read_manifest(Workspace(tmp_path / "cut").run("s").manifest)
    assert manifest is not None and manifest.stage("policy").status == "stopped"  # type: ignore[union-attr]
    cut, resumed = policy(start, tmp_path / "cut")
    whole, calm_run = calm
    answered = 12 * N - sum(s.dropped == "empty_reply" for s in found(whole)[0])
    assert calls_made(resumed) < calls_made(calm_run) == answered
    assert at == "sampling" or calls_made(resumed) == 0, "scores and training have nothing to ask again"
    mine, theirs = (w.run("s").model("policy") for w in (cut, whole))
    for name in (f"{SAMPLES}/samples.jsonl", f"{SAMPLES}/best.jsonl", f"{SAMPLES}/summary.json", "adapter_model.safetensors", "README.md"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    assert rows(cut.run("s").metrics)[-1] == rows(whole.run("s").metrics)[-1]


def test_reward_models_and_a_gold_model_score_where_the_recipe_has_them(start: Path, tmp_path: Path) -> None:
    terms = "[{term: model}, {term: length, words: 1, weight: 0.5}]"
    workspace, _ = policy(start, tmp_path / "w", f"policy.online.rewards={terms}", "gold={fraction: 0.5}")
    samples, best, summary = found(workspace)
    left = [s for s in samples if not s.dropped]
    for s in left:
        assert s.terms["length"] == -max(0, word_count(s.text) - 1)
        assert s.reward == pytest.approx(s.terms["model"] + 0.5 * s.terms["length"]) and s.gold is not None  # type: ignore[operator]
    assert len({s.gold for s in left}) > 1 and len(best) == summary.chosen > 4
    assert summary.gold is not None and summary.gold_best is not None
    assert all(s.gold is None and s.reward is None for s in samples if s.dropped)


def test_samples_that_say_nothing_end_the_run_before_it_trains(start: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"of 12 prompts none has samples that differ in reward \(\d+ with.*truncated.*\nFix: raise"):
        policy(start, tmp_path / "w", "policy.online.rewards=[{term: refusal}]")


def test_another_method_removes_the_samples(start: Path, tmp_path: Path) -> None:
    workspace, _ = policy(start, tmp_path / "w")
    folder = workspace.run("s").model("policy") / SAMPLES
    assert folder.is_dir()
    for name in ("preferences", "preferences_heldout"):
        workspace.run("s").data(name).write_bytes(b"")
    with pytest.raises(CaiError):  # there are no preferences
        policy(start, tmp_path / "w", "policy.method=dpo")
    assert not folder.exists()


def scored(*rewards: float | None, dropped: dict[int, str] | None = None, gold: tuple[float, ...] = ()) -> tuple[ScoredSample, ...]:
    samples = [ScoredSample("p", i, i, f"text {i}", reward=r, gold=gold[i] if gold else None) for i, r in enumerate(rewards)]
    return tuple(replace(s, dropped=(dropped or {}).get(s.number, "")) for s in samples)


@pytest.mark.parametrize(
    ("samples", "best"),
    [
        (scored(0.1, 0.7, 0.3), 1),
        (scored(0.1, 0.7, 0.7), 1),
        (scored(0.5, 0.5, 0.5), None),
        (scored(0.1, 0.9, dropped={1: "truncated"}), None),
        (scored(0.1, 0.9, 0.4, dropped={1: "repetitive"}), 2),
        (scored(0.1, None, 0.4, dropped={1: "unscored"}), 2),
        ((), None),
    ],
)
def test_the_best_is_the_first_of_the_highest_and_equal_ones_have_none(samples: tuple[ScoredSample, ...], best: int | None) -> None:
    assert [s.number for s in with_best(samples) if s.best] == ([] if best is None else [best])


def test_means_by_hand() -> None:
    """Rewards 1, 3 (best 3) and 2, 2 (best 2), and a prompt with one sample left, 5: means (2 + 2 + 5)/3 and (3 + 2 + 5)/3."""
    cut = scored(5.0, 9.0, dropped={1: "truncated"}, gold=(4.0, 0.0))
    groups = [scored(1.0, 3.0, gold=(6.0, 2.0)), scored(2.0, 2.0, gold=(1.0, 3.0)), cut]
    summary = summarize([SampledPrompt(prompt(i), with_best(g), BY) for i, g in enumerate(groups)], 2)
    assert (summary.prompts, summary.chosen, summary.all_equal, summary.too_few, summary.dropped) == (3, 1, 1, 1, {"truncated": 1})
    assert (summary.reward, summary.reward_best) == (pytest.approx(3.0), pytest.approx(10 / 3))
    assert (summary.gold, summary.gold_best) == (pytest.approx((4 + 2 + 4) / 3), pytest.approx((2 + 1 + 4) / 3))
    assert kl_bound(1) == 0.0


def test_a_plan_counts_samples_and_what_the_terms_ask(start: Path) -> None:
    workspace = Workspace(start)
    check, judged, grpo = (
        next(s for s in draft(recipe_of(workspace, *BEST_OF_N, *more), workspace, steady) if s.name == "policy")
        for more in ((), ("policy.online.rewards=[{term: constitution}]",), ("policy.method=grpo", "policy.batch_size=8"))
    )
    assert (check.calls, judged.calls, grpo.calls) == (12 * N, 12 * N * (1 + 2), 0), "two questions to a principle"
    assert (check.train_steps, grpo.train_steps) == (3, 6), "one of four samples is trained on"
    assert check.seconds is not None and judged.seconds is not None and check.seconds < judged.seconds
