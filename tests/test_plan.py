"""What a plan says of a policy that learns from its own samples."""

from pathlib import Path

from cai.plan import StagePlan, draft
from cai.recipe import load_recipe
from cai.workspace import Workspace

ROOT = Path(__file__).parents[1]


def policy_plan(*overrides: str) -> StagePlan:
    recipe = load_recipe(ROOT / "runs" / "quickstart.yaml", ["policy.batch_size=8", *overrides])
    return next(s for s in draft(recipe, Workspace(ROOT)) if s.name == "policy")


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
    assert kto.train_steps == 2 * dpo.train_steps
