"""What a plan says: counted work at a machine's rates, and what earlier runs on it took."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cai.core.manifest import Manifest, StageEntry, machine_facts, write_manifest
from cai.core.workspace import Workspace, init_workspace
from cai.judge.judge import Judge
from cai.judge.protocols import PROTOCOLS, asking_protocols
from cai.models.base import PairTokens, TextModel, Work
from cai.models.local.fingerprint import model_fingerprint
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.pipeline import plan
from cai.pipeline.costs import Costs, StagePlan, Tokens, joined
from cai.pipeline.memory import EMBEDDED_SHAPE
from cai.pipeline.plan import draft, plan_recipe
from cai.pipeline.speed import READ_PART, TRAIN_PART, forward_flop, step_seconds
from cai.recipe import FeedbackConfig, LoraSpec, ModelSpec, PolicyConfig, Recipe, SamplingSpec, SFTConfig, load_recipe
from tests.judge.judging import CONSTITUTION, TEMPLATES, pair
from tests.speeds import RATES, steady

ROOT = Path(__file__).parents[2]
SHAPE = EMBEDDED_SHAPE
PLANNED = Path(__file__).with_name("planned.yaml")
SIXTY, FORTY, HUNDRED = Tokens(60, 60), Tokens(40, 40), Tokens(100, 100)
WORDS = PairTokens(0, 0, question=30, comparison=40, statement=35, grading=45)
READ, TRAIN = READ_PART * RATES.flops, TRAIN_PART * RATES.flops


def costs(asked: int = 1, **recipe: Any) -> Costs:
    return Costs(Recipe(name="x", **recipe), steady, WORDS, asked)


def stage_plan(name: str, *overrides: str) -> StagePlan:
    recipe = load_recipe(PLANNED, ["policy.batch_size=8", *overrides])
    return next(s for s in draft(recipe, Workspace(ROOT), steady) if s.name == name)


def policy_plan(*overrides: str) -> StagePlan:
    return stage_plan("policy", *overrides)


def test_steps_are_counted_in_completions() -> None:
    two_epochs = policy_plan("policy.method=grpo", "policy.epochs=2.0", "policy.online.num_generations=4")
    assert two_epochs.train_steps == 32 * 2 * 4 / 8, "32 prompts, four completions each, eight a step"
    longer = policy_plan("policy.method=grpo", "policy.epochs=2.0", "policy.online={num_generations: 4, max_tokens: 256}")
    assert longer.train_steps == two_epochs.train_steps
    assert longer.seconds is not None and two_epochs.seconds is not None and longer.seconds > two_epochs.seconds
    for method, block, key in (("grpo", "online", "max_tokens"), ("ppo", "ppo", "response_length")):
        plain, thinks, long = (
            policy_plan(f"policy.method={method}", f"policy.{block}={{{limits}}}")
            for limits in (f"{key}: 128", f"{key}: 128, thinking_tokens: 256", f"{key}: 384")
        )
        assert plain.seconds is not None and thinks.seconds is not None and long.seconds is not None
        assert plain.seconds < thinks.seconds <= long.seconds, "a reasoning is sampled and trained"


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


def test_self_distillation_is_planned_by_its_most_steps_and_its_answers() -> None:
    whole, some, long = (
        policy_plan("policy.method=distill", f"policy.epochs={epochs}", f"policy.online.max_tokens={tokens}")
        for epochs, tokens in ((3.0, 64), (50.0, 64), (3.0, 256))
    )
    assert (whole.train_steps, some.train_steps, long.train_steps) == (12, 100, 12), "32 prompts, 8 a step; 100 steps are the most"
    assert whole.seconds is not None and some.seconds is not None and long.seconds is not None
    assert whole.seconds < long.seconds < some.seconds


def test_kto_takes_both_sides_of_a_pair() -> None:
    dpo, kto = policy_plan("policy.method=dpo"), policy_plan("policy.method=kto")
    assert (dpo.train_steps, kto.train_steps) == (7, 14), "53 of 58 pairs are trained on, 8 a step"


def test_completions_are_prompts_steps_and_tokens() -> None:
    sampling = SamplingSpec(max_tokens=100)
    cost = costs().answers(ModelSpec(batch_size=8), 16, SIXTY, sampling)
    tokens = 16 * 85  # MEAN_FILL
    assert (cost.calls, cost.prompt_tokens, cost.completion_tokens) == (16, 16 * 60, tokens)
    steps = 2 * 100 * step_seconds(SHAPE, RATES)  # two batches of as many steps as the longest has tokens
    head = 2 * SHAPE.hidden * SHAPE.vocabulary * tokens
    assert cost.seconds == pytest.approx((forward_flop(SHAPE, 16 * 60 + tokens, 60) + head) / READ + steps)
    twice = costs().answers(ModelSpec(batch_size=8), 8, SIXTY, sampling, per_prompt=2)
    assert twice.calls == 16 and cost.seconds - twice.seconds == pytest.approx(forward_flop(SHAPE, 8 * 60, 60) / READ)  # type: ignore[operator]


def test_a_text_runs_once_for_all_questions_about_it_and_a_server_is_billed_for_each() -> None:
    work = Work(4, 100, 6, 30)
    cost = costs().calls(ModelSpec(), work, 130)
    assert cost.calls == 24 and cost.prompt_tokens == 24 * 130
    assert cost.seconds == pytest.approx(forward_flop(SHAPE, 4 * (100 + 6 * 30), 130) / READ)
    server = costs().calls(ModelSpec(path="http://127.0.0.1:1/v1", prompt_price=2.0), work, 130)
    assert server.seconds is None and server.memory_bytes == 0 and server.cost == pytest.approx(24 * 130 * 2 / 1e6)
    scripted = costs().calls(ModelSpec(path="scripted"), work, 130)
    assert scripted.seconds == 0 and scripted.calls == 24


@pytest.mark.parametrize(
    ("protocol", "calls", "tokens"),
    [
        ("pointwise", 2 * 3, 50 + 40 + 30),
        ("pointwise-contrast", 4 * 3, 50 + 40 + 30),
        ("pairwise", 2 * 3, 50 + 2 * 40 + 40),
        ("rubric", 2 * 3, 50 + 40 + 45),
        ("likelihood", 4 * 3, 35 + 50 + 40),
        ("probe", 2, 50 + 40),
    ],
)
def test_protocols_ask_what_they_ask(protocol: Any, calls: int, tokens: int) -> None:
    cost = costs(3, feedback=FeedbackConfig(protocol=protocol)).judged(10, Tokens(50, 50), FORTY)
    assert cost.calls == 10 * calls
    assert cost.prompt_tokens == cost.calls * tokens


@pytest.mark.parametrize("protocol", asking_protocols())
def test_a_protocol_plans_the_calls_that_it_makes(protocol: Any) -> None:
    engine = ScriptedEngine()
    judge = Judge(FeedbackConfig(protocol=protocol), CONSTITUTION, TextModel(engine, CallStore(None), "test"), TEMPLATES, 0)
    asyncio.run(judge(pair()))
    planned = PROTOCOLS.get(protocol).work(WORDS, judge.config)
    assert engine.calls == len(CONSTITUTION.principles) * sum(w.texts * w.questions for w in planned)


def test_reasoning_is_written_and_then_read() -> None:
    config = FeedbackConfig(protocol="pairwise-cot", cot_max_tokens=100)
    cost = costs(feedback=config).judged(10, Tokens(50, 50), FORTY)
    assert cost.calls == 10 * 4 and cost.completion_tokens == 10 * 2 * 85


def test_training_is_counted_by_passes() -> None:
    config = SFTConfig(batch_size=4, epochs=2.0, lora=LoraSpec(layers=10))

    def cost(config: Any = config, answers: tuple[Tokens, ...] = (FORTY,), **more: Any) -> StagePlan:
        return costs().training(config, 20, SIXTY, answers, **more)

    one = cost()
    assert (one.train_steps, one.trained_tokens) == (10, 20 * 2 * 100)
    forward, backward = forward_flop(SHAPE, 4000, 100), forward_flop(SHAPE, 4000, 100, 10)
    head = 2 * 20 * 2 * 40 * SHAPE.hidden * SHAPE.vocabulary
    assert one.seconds == pytest.approx((forward + backward + 2 * head) / TRAIN)
    assert one.seconds is not None
    together, apart = (cost(PolicyConfig(batch_size=4, epochs=2.0, share_prompt=share), (FORTY, FORTY)) for share in ("always", "never"))
    assert (together.trained_tokens, apart.trained_tokens) == (20 * 2 * 140, 20 * 2 * 200)
    without = cost(scored=False).seconds
    assert without is not None and one.seconds - without == pytest.approx(2 * head / TRAIN), "a reward model scores no vocabulary"
    reference = cost(passes=1.0).seconds
    assert reference is not None and reference - one.seconds == pytest.approx((forward + head) / 2 / TRAIN)
    again = cost(structs.replace(config, gradient_checkpointing=True)).seconds
    assert again is not None and again - one.seconds == pytest.approx((forward + backward) / 2 / TRAIN), "half of them more"


def test_memory_is_that_of_the_longest_and_time_that_of_the_mean() -> None:
    def cost(prompt: Tokens, *answers: Tokens) -> StagePlan:
        return costs().training(PolicyConfig(batch_size=16, max_length=200, share_prompt="always"), 20, prompt, answers)

    def grown(longest: float, *answers: Tokens) -> float:
        even, uneven = cost(SIXTY, *answers), cost(Tokens(60, longest), *answers)
        assert even.seconds == uneven.seconds and even.trained_tokens == uneven.trained_tokens
        assert even.memory_bytes is not None and uneven.memory_bytes is not None
        return uneven.memory_bytes - even.memory_bytes

    single, both = grown(100, FORTY), grown(100, FORTY, FORTY)
    assert both == pytest.approx(single / 4, rel=0.01), "of 16 pairs end to end not all are long; of 16 padded rows all are"
    assert grown(500, FORTY) == pytest.approx(grown(160, FORTY)), "what is longer than max_length is cut"
    asked = [costs().calls(ModelSpec(batch_size=64), Work(64, 900, 1, 30), most + 30) for most in (900, 1800)]
    answered = [costs().answers(ModelSpec(batch_size=64), 64, Tokens(900, most), SamplingSpec()) for most in (900, 1800)]
    for even, uneven in (asked, answered):
        assert even.seconds == uneven.seconds and even.memory_bytes is not None and uneven.memory_bytes is not None
        cache = 64 * 900 * 2 * 30 * 3 * 64 * 4
        assert uneven.memory_bytes - even.memory_bytes in (pytest.approx(cache, rel=0.02), pytest.approx(cache / 2, rel=0.02))


def test_costs_add_up_and_the_unknown_stays_unknown() -> None:
    a = StagePlan("x", calls=1, seconds=1.0, memory_bytes=5, cost=0.5)
    assert joined("y", a, a, replace(a, memory_bytes=7)) == StagePlan("y", calls=3, seconds=3.0, memory_bytes=7, cost=1.5)
    assert joined("y", a, replace(a, seconds=None, memory_bytes=None)) == StagePlan("y", calls=2, seconds=None, memory_bytes=None, cost=1.0)


def test_more_of_anything_costs_more() -> None:
    base = {s: stage_plan(s) for s in ("critique", "feedback", "evaluate")}

    def grown(stage: str, *overrides: str) -> float:
        seconds, before = stage_plan(stage, *overrides).seconds, base[stage].seconds
        assert seconds is not None and before is not None
        return seconds / before

    assert 1.3 < grown("critique", "critique.rounds=2") < 2, "the verdict on the last revision is asked once"
    assert 1.2 < grown("feedback", "feedback.per_label=6") < 2, "a text runs once for all its questions"
    assert grown("evaluate", "reward.members=3") > 1.1
    judged_late = stage_plan("feedback", "critique.min_p_revised=0.0")
    assert judged_late.calls - base["feedback"].calls == 26 * 12, "revisions that `critique` judged are in the store"


def workspace_with_run(folder: Path, seconds: float, stages: tuple[str, ...], **machine: Any) -> Workspace:
    """A workspace whose run took some seconds in each of these stages, on this machine or another."""
    workspace = Workspace(folder)
    init_workspace(folder)
    run = workspace.run("before")
    run.path.mkdir()
    shutil.copy(PLANNED, folder / "runs" / "planned.yaml")
    shutil.copy(PLANNED, run.path / "recipe.yaml")
    entries = [StageEntry(stage, "done", "", seconds=seconds, calls_made=10) for stage in stages]
    facts = {**machine_facts(), **machine}
    write_manifest(run.manifest, Manifest("before", machine=facts, model_fingerprint=model_fingerprint(ModelSpec()), stages=entries))
    return workspace


def test_the_teacher_of_distilled_responses_takes_a_forward_pass() -> None:
    def sft(*overrides: str) -> StagePlan:
        return next(
            s for s in draft(load_recipe(ROOT / "runs" / "quickstart.yaml", list(overrides)), Workspace(ROOT), steady) if s.name == "sft"
        )

    soft, tokens, revised = sft(), sft("sft.soft_targets=false"), sft("sft.data=[critique]")
    assert soft.seconds is not None and tokens.seconds is not None and 1.1 * tokens.seconds < soft.seconds < 2 * tokens.seconds
    assert soft.train_steps == tokens.train_steps and sft("sft.data=[critique]", "sft.soft_targets=false") == revised


def test_an_earlier_run_on_this_machine_sets_the_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "probe", steady)
    here, elsewhere = workspace_with_run(tmp_path / "a", 1234.0, ("sft",)), workspace_with_run(tmp_path / "b", 1234.0, ("sft",), cpus=77)
    recipe = load_recipe(here.root / "runs" / "planned.yaml")
    told, untold = plan_recipe(recipe, here), plan_recipe(recipe, elsewhere)
    seconds = {p: {s.name: s.seconds for s in planned.stages} for p, planned in (("told", told), ("untold", untold))}
    assert seconds["told"].pop("sft") == pytest.approx(1234.0) and seconds["untold"].pop("sft") != pytest.approx(1234.0)
    assert seconds["told"] == seconds["untold"] == {s.name: s.seconds for s in draft(recipe, here, steady) if s.name != "sft"}
    assert "times of sft: what such work took" in told.basis and "(run before)" in told.basis and "(run" not in untold.basis
    assert "rough first estimate" in told.basis and "rough first estimate" in untold.basis
    longer = plan_recipe(load_recipe(here.root / "runs" / "planned.yaml", ["sft.epochs=6"]), here)
    assert next(s.seconds for s in longer.stages if s.name == "sft") == pytest.approx(2 * 1234, rel=0.05)
    assert (told.calls, told.memory_bytes) == (untold.calls, untold.memory_bytes)


def test_a_machine_that_has_run_it_all_is_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Any:
        raise AssertionError("probed")

    monkeypatch.setattr(plan, "probe", forbidden)
    stages = ("respond", "critique", "sft", "pairs", "feedback", "reward", "policy", "evaluate")
    workspace = workspace_with_run(tmp_path, 100.0, stages)
    planned = plan_recipe(load_recipe(workspace.root / "runs" / "planned.yaml"), workspace)
    assert planned.seconds == pytest.approx(8 * 100) and "estimate" not in planned.basis
    with pytest.raises(AssertionError, match="probed"):  # another method's policy, whose time that run says nothing of
        plan_recipe(load_recipe(workspace.root / "runs" / "planned.yaml", ["policy.method=kto"]), workspace)
    with pytest.raises(AssertionError, match="probed"):  # another judge
        plan_recipe(load_recipe(workspace.root / "runs" / "planned.yaml", ["feedback.judge={precision: bfloat16}"]), workspace)


def test_reused_calls_teach_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "probe", steady)
    workspace = workspace_with_run(tmp_path, 100.0, ())
    manifest = workspace.run("before").manifest
    entry = StageEntry("respond", "done", "", seconds=0.1, calls_made=1, calls_reused=31)
    write_manifest(manifest, Manifest("before", machine=machine_facts(), model_fingerprint=model_fingerprint(ModelSpec()), stages=[entry]))
    assert "(run before)" not in plan_recipe(load_recipe(workspace.root / "runs" / "planned.yaml"), workspace).basis


def test_a_server_is_counted_and_priced_and_its_time_stays_unknown() -> None:
    server = "model={path: 'http://127.0.0.1:1/v1', name: x, prompt_price: 1.0, completion_price: 2.0}"
    respond = stage_plan("respond", server, "weights={path: embedded}")
    assert respond.calls == 32 and respond.seconds is None
    assert respond.cost == pytest.approx((respond.prompt_tokens + 2 * respond.completion_tokens) / 1e6)
    assert stage_plan("sft", server, "weights={path: embedded}").seconds is not None
