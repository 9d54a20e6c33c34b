"""What a plan says: counted work at a speed, and what earlier runs on this machine have taught."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cai.core.manifest import Manifest, StageEntry, machine_facts, write_manifest
from cai.core.workspace import Workspace, init_workspace
from cai.models.local.loading import model_fingerprint
from cai.pipeline import plan
from cai.pipeline.costs import StagePlan, Tokens, Wording, add, answering, asking, judging, training
from cai.pipeline.memory import EMBEDDED_SHAPE
from cai.pipeline.plan import draft, plan_recipe
from cai.pipeline.speed import layer_flop
from cai.recipe import FeedbackConfig, LoraSpec, ModelSpec, PolicyConfig, SamplingSpec, SFTConfig, load_recipe
from tests.speeds import SPEED, steady

ROOT = Path(__file__).parents[2]
SHAPE = EMBEDDED_SHAPE
SIXTY, FORTY, HUNDRED = Tokens(60, 60), Tokens(40, 40), Tokens(100, 100)
WORDS = Wording(critique=50, revise=100, question=30, comparison=40, statement=35)


def stage_plan(name: str, *overrides: str) -> StagePlan:
    recipe = load_recipe(ROOT / "runs" / "quickstart.yaml", ["policy.batch_size=8", *overrides])
    return next(s for s in draft(recipe, Workspace(ROOT), steady) if s.name == name)


def policy_plan(*overrides: str) -> StagePlan:
    return stage_plan("policy", *overrides)


def test_steps_are_counted_in_completions() -> None:
    two_epochs = policy_plan("policy.method=grpo", "policy.epochs=2.0", "policy.online.num_generations=4")
    assert two_epochs.train_steps == 32 * 2 * 4 / 8, "32 prompts, four completions each, eight a step"
    longer = policy_plan("policy.method=grpo", "policy.epochs=2.0", "policy.online={num_generations: 4, max_tokens: 256}")
    assert longer.train_steps == two_epochs.train_steps
    assert longer.seconds is not None and two_epochs.seconds is not None and longer.seconds > two_epochs.seconds


def test_a_gold_model_is_one_more_base_in_memory() -> None:
    without, watched = policy_plan("policy.method=rloo"), policy_plan("policy.method=rloo", "gold={fraction: 0.3}")
    assert watched.memory_bytes is not None and without.memory_bytes is not None
    base = 134.5e6 * 2  # in bfloat16; twice that where the processor makes it float32
    assert 0.9 * base < watched.memory_bytes - without.memory_bytes < 2.2 * base
    assert watched.train_steps == without.train_steps


def test_ppo_is_planned_by_its_episodes_and_its_roles() -> None:
    ppo = policy_plan("policy.method=ppo", "policy.ppo={total_episodes: 100, num_mini_batches: 2}")
    assert ppo.train_steps == 7, "100 responses, 8 x 2 a step"
    longer = policy_plan("policy.method=ppo", "policy.ppo={total_episodes: 100, num_mini_batches: 2, num_ppo_epochs: 8}")
    wider = policy_plan("policy.method=ppo", "policy.ppo={total_episodes: 100, num_mini_batches: 2}", "reward.members=5")
    assert ppo.seconds is not None and longer.seconds is not None and wider.seconds is not None
    assert ppo.seconds < wider.seconds < longer.seconds and longer.train_steps == wider.train_steps == 7
    base = 134.5e6 * 2
    assert ppo.memory_bytes is not None and wider.memory_bytes is not None
    assert 0 < wider.memory_bytes - ppo.memory_bytes < base / 2, "a member more is an adapter, not a base"


def test_kto_takes_both_sides_of_a_pair() -> None:
    dpo, kto = policy_plan("policy.method=dpo"), policy_plan("policy.method=kto")
    assert (dpo.train_steps, kto.train_steps) == (8, 15), "58 of 64 pairs are trained on, 8 a step"


def test_a_forward_pass_is_two_flop_a_weight_and_what_attention_adds() -> None:
    weights = SHAPE.linear / SHAPE.layers
    assert layer_flop(SHAPE, 1, 0, layers=1) == 2 * weights
    # scores and mixtures: 2 products, 2 FLOP, over half of 100 tokens on average, 9 heads of 64
    assert layer_flop(SHAPE, 10, 100, layers=1) == pytest.approx(10 * (2 * weights + 2 * 2 * 50 * 9 * 64))


def test_completions_are_prompts_steps_tokens_and_draws() -> None:
    greedy = SamplingSpec(max_tokens=100, temperature=0)
    cost = answering("respond", ModelSpec(batch_size=8), steady, 16, SIXTY, greedy)
    tokens = 16 * 85  # MEAN_FILL
    assert (cost.calls, cost.prompt_tokens, cost.completion_tokens) == (16, 16 * 60, tokens)
    layers = 30 * (2 * 100 * 1e-3 + tokens * (1e-5 + (60 + 50) * 1e-7))  # two batches of as many steps as the longest has tokens
    own = 60 - 24  # a system prompt runs once for all
    assert cost.seconds == pytest.approx(layer_flop(SHAPE, 16 * own, 60) / 1e11 + layers + tokens * 1e-3)
    twice = answering("pairs", ModelSpec(batch_size=8), steady, 8, SIXTY, greedy, per_prompt=2)
    assert twice.calls == 16 and cost.seconds - twice.seconds == pytest.approx(layer_flop(SHAPE, 8 * own, 60) / 1e11)  # type: ignore[operator]
    nucleus = [
        answering("a", ModelSpec(), steady, 16, SIXTY, structs.replace(greedy, temperature=t, top_p=0.9)).seconds for t in (0.3, 1.0)
    ]
    assert nucleus[0] < nucleus[1] < nucleus[0] + tokens * 2e-3, "a hotter draw more often needs the whole vocabulary sorted"


def test_a_text_runs_once_for_all_questions_about_it_and_a_server_is_billed_for_each() -> None:
    cost = asking("feedback", ModelSpec(), steady, 4, HUNDRED, 6, 30)
    assert cost.calls == 24 and cost.prompt_tokens == 24 * 130
    assert cost.seconds == pytest.approx(layer_flop(SHAPE, 4 * (100 - 24 + 6 * 30), 100) / 1e11 + 24 * 1e-3)
    two_of_a_prompt = asking("feedback", ModelSpec(), steady, 4, HUNDRED, 6, 30, prompt=60)
    assert cost.seconds - two_of_a_prompt.seconds == pytest.approx(layer_flop(SHAPE, 2 * (60 - 24), 100) / 1e11)  # type: ignore[operator]
    server = asking("feedback", ModelSpec(path="http://127.0.0.1:1/v1", prompt_price=2.0), steady, 4, HUNDRED, 6, 30)
    assert server.seconds is None and server.memory_bytes == 0 and server.cost == pytest.approx(24 * 130 * 2 / 1e6)
    scripted = asking("feedback", ModelSpec(path="scripted"), steady, 4, HUNDRED, 6, 30)
    assert scripted.seconds == 0 and scripted.calls == 24


@pytest.mark.parametrize(
    ("protocol", "calls", "tokens"),
    [
        ("pointwise", 2 * 3, 50 + 40 + 30),
        ("pointwise-contrast", 4 * 3, 50 + 40 + 30),
        ("pairwise", 2 * 3, 50 + 2 * 40 + 40),
        ("likelihood", 4 * 3, 35 + 50 + 40),
    ],
)
def test_protocols_ask_what_they_ask(protocol: Any, calls: int, tokens: int) -> None:
    config = FeedbackConfig(protocol=protocol, principles="sample", per_label=3)
    cost = judging("feedback", ModelSpec(), steady, config, WORDS, 10, 3, Tokens(50, 50), FORTY)
    assert cost.calls == 10 * calls
    assert cost.prompt_tokens == cost.calls * tokens


def test_reasoning_is_written_and_then_read() -> None:
    config = FeedbackConfig(protocol="pairwise-cot", cot_max_tokens=100)
    cost = judging("feedback", ModelSpec(), steady, config, WORDS, 10, 1, Tokens(50, 50), FORTY)
    assert cost.calls == 10 * 4 and cost.completion_tokens == 10 * 2 * 85


def test_training_is_counted_by_passes() -> None:
    config = SFTConfig(batch_size=4, epochs=2.0, lora=LoraSpec(layers=10))

    def cost(**more: Any) -> StagePlan:
        return training(
            "sft", structs.replace(config, **more.pop("config", {})), ModelSpec(), steady, 20, SIXTY, more.pop("answers", (FORTY,)), **more
        )

    one = cost()
    assert (one.train_steps, one.trained_tokens) == (10, 20 * 2 * 100)
    loading = 1.0 + SHAPE.parameters * 4 / 1e9
    flop = layer_flop(SHAPE, 4000, 100, 10)
    assert one.seconds == pytest.approx(loading + 2 * flop / 5e10 + 2 * flop / 8e10 + 20 * 2 * 40 * 4e-3)
    assert one.seconds is not None
    pair, apart = (
        training("policy", PolicyConfig(batch_size=4, epochs=2.0, share_prompt=share), ModelSpec(), steady, 20, SIXTY, (FORTY, FORTY))
        for share in ("auto", "never")
    )
    assert (pair.trained_tokens, apart.trained_tokens) == (20 * 2 * 140, 20 * 2 * 200)
    without = cost(scored=False).seconds
    assert without is not None and one.seconds - without == pytest.approx(20 * 2 * 40 * 4e-3), "a reward model scores no vocabulary"
    reference = cost(reference_passes=1.0).seconds
    assert reference is not None and reference - one.seconds == pytest.approx(layer_flop(SHAPE, 2000, 100) / 8e10 + 800 * 4e-3 / 3)
    again = cost(config={"gradient_checkpointing": True}).seconds
    assert again is not None and again - one.seconds == pytest.approx(flop / 5e10), "half of forward and backward more"


def test_memory_is_that_of_the_longest_and_time_that_of_the_mean() -> None:
    def cost(prompt: Tokens, *answers: Tokens) -> StagePlan:
        config = PolicyConfig(batch_size=16, max_length=200)
        return training("policy", config, ModelSpec(), steady, 20, prompt, answers)

    def grown(longest: float, *answers: Tokens) -> float:
        even, uneven = cost(SIXTY, *answers), cost(Tokens(60, longest), *answers)
        assert even.seconds == uneven.seconds and even.trained_tokens == uneven.trained_tokens
        assert even.memory_bytes is not None and uneven.memory_bytes is not None
        return uneven.memory_bytes - even.memory_bytes

    single, pair = grown(100, FORTY), grown(100, FORTY, FORTY)
    assert pair == pytest.approx(single / 4, rel=0.01), "of 16 pairs end to end not all are long; of 16 padded rows all are"
    assert grown(500, FORTY) == pytest.approx(grown(160, FORTY)), "what is longer than max_length is cut"
    asked = [asking("feedback", ModelSpec(batch_size=64), steady, 64, Tokens(900, most), 1, 30) for most in (900, 1800)]
    answered = [answering("respond", ModelSpec(batch_size=64), steady, 64, Tokens(900, most), SamplingSpec()) for most in (900, 1800)]
    for even, uneven in (asked, answered):
        assert even.seconds == uneven.seconds and even.memory_bytes is not None and uneven.memory_bytes is not None
        cache = 64 * 900 * 2 * 30 * 3 * 64 * 4
        assert uneven.memory_bytes - even.memory_bytes in (pytest.approx(cache, rel=0.02), pytest.approx(cache / 2, rel=0.02))


def test_costs_add_up_and_the_unknown_stays_unknown() -> None:
    a = StagePlan("x", calls=1, seconds=1.0, memory_bytes=5, cost=0.5)
    assert add(a, a, replace(a, memory_bytes=7)) == StagePlan("x", calls=3, seconds=3.0, memory_bytes=7, cost=1.5)
    assert add(a, replace(a, seconds=None, memory_bytes=None)) == StagePlan("x", calls=2, seconds=None, memory_bytes=None, cost=1.0)


def test_more_of_anything_costs_more() -> None:
    base = {s: stage_plan(s) for s in ("critique", "feedback", "evaluate")}

    def grown(stage: str, *overrides: str) -> float:
        seconds, before = stage_plan(stage, *overrides).seconds, base[stage].seconds
        assert seconds is not None and before is not None
        return seconds / before

    assert 1.4 < grown("critique", "critique.rounds=2") < 2, "the verdict on the last revision is asked once"
    assert 1.2 < grown("feedback", "feedback.per_label=6") < 2, "a text runs once for all its questions"
    assert grown("evaluate", "reward.members=3") > 1.1
    judged_late = stage_plan("feedback", "critique.min_p_revised=0.0")
    assert judged_late.calls - base["feedback"].calls == 32 * 12, "revisions that `critique` judged are in the store"


def workspace_with_run(folder: Path, seconds: float, **machine: Any) -> Workspace:
    """A workspace whose quickstart took some seconds in its SFT stage, on this machine or another."""
    workspace = Workspace(folder)
    init_workspace(folder)
    run = workspace.run("before")
    run.path.mkdir()
    shutil.copy(folder / "runs" / "quickstart.yaml", run.path / "recipe.yaml")
    entry = StageEntry("sft", "done", "", seconds=seconds)
    write_manifest(
        run.manifest,
        Manifest("before", machine={**machine_facts(), **machine}, model_fingerprint=model_fingerprint(ModelSpec()), stages=[entry]),
    )
    return workspace


def test_a_finished_run_on_this_machine_corrects_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "measure_speed", steady)
    here, elsewhere = workspace_with_run(tmp_path / "a", 1234.0), workspace_with_run(tmp_path / "b", 1234.0, cpus=77)
    recipe = load_recipe(here.root / "runs" / "quickstart.yaml")
    told, untold = plan_recipe(recipe, here), plan_recipe(recipe, elsewhere)
    seconds = {p: {s.name: s.seconds for s in planned.stages} for p, planned in (("told", told), ("untold", untold))}
    assert seconds["told"].pop("sft") == pytest.approx(1234.0) and seconds["untold"].pop("sft") != pytest.approx(1234.0)
    assert seconds["told"] == seconds["untold"], "stages that were not run before are reckoned as they were"
    assert "times of sft: corrected" in told.basis and "corrected" not in untold.basis
    assert told.speeds == (SPEED,) and "float32 on cpu with 2 threads" in told.basis, "one probe serves all stages of one shape"
    longer = plan_recipe(load_recipe(here.root / "runs" / "quickstart.yaml", ["sft.epochs=6"]), here)
    assert next(s.seconds for s in longer.stages if s.name == "sft") == pytest.approx(2 * 1234, rel=0.05)
