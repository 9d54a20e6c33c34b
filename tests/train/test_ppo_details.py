"""The numbered details of PPO that `cai/train/rl/ppo.py` lists, a test each, on a tiny model. Their arithmetic is in `test_ppo_math.py`."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

import cai.train.rl.ppo_update as ppo_update
from cai.models.local.encoding import Encoder
from cai.models.local.loading import load_tokenizer
from cai.recipe import LoraSpec, PolicyConfig, PPOSpec, RewardConfig
from cai.train.reward.ensemble import read_centre
from cai.train.rl.ppo_update import World, is_critic, make_batch, make_optimizer, update
from cai.train.rl.rollout import Episode, Task, encode_prompts, evaluate_responses, sample, tasks
from cai.train.rl.shared_base import POLICY, SharedBase, load_shared_base
from cai.train.running import quiet_training
from tests.train.builders import model_at, ppo_config, prompt

END = 2
ALONE = World(0, 1, 0, 1000)


def load(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> SharedBase:
    with quiet_training():
        return load_shared_base(model_at(tiny_model_dir), "float32", sft, members, LoraSpec(rank=4))


@pytest.fixture
def shared(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> SharedBase:
    """The tiny model with all roles on."""
    return load(tiny_model_dir, sft, members)


@pytest.fixture(scope="module")
def still(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> SharedBase:
    """The same, for tests that change no weight."""
    return load(tiny_model_dir, sft, members)


@pytest.fixture(scope="module")
def todo(tiny_model_dir: Path) -> list[Task]:
    """Eight responses to sample, to prompts of different lengths."""
    tokenizer = load_tokenizer(model_at(tiny_model_dir))
    rows, _ = encode_prompts(tokenizer, [prompt(i, "why? " * (1 + i % 3)) for i in range(8)], 500)
    return tasks(rows, 0, 0, 8)


@lru_cache
def encoder_at(folder: str) -> Encoder:
    return Encoder(load_tokenizer(model_at(Path(folder))))


def rollout(
    shared: SharedBase, todo: list[Task], *, length: int = 10, temperature: float = 0.7, ends: tuple[int, ...] = (END,), at_once: int = 64
) -> list[Episode]:
    responses = sample(shared, todo, frozenset(ends), max_tokens=length, temperature=temperature, at_once=at_once)
    return evaluate_responses(
        shared, todo, responses, encoder=encoder_at(shared.causal.name_or_path), temperature=temperature, at_once=at_once
    )


def frequent_tokens(episodes: list[Episode]) -> tuple[int, ...]:
    """Tokens that some responses hold and others don't: taken as end tokens, they end some early."""
    return tuple(sorted({e.response_ids[3] for e in episodes[:4]}))


def train_once(shared: SharedBase, episodes: list[Episode], config: PolicyConfig, world: World = ALONE) -> dict[str, float]:
    batch = make_batch(episodes, config.ppo, RewardConfig(), shared.device)
    return update(shared, make_optimizer(config, shared), batch, config, 1, 0, world)


def test_01_the_policy_starts_at_the_reference(shared: SharedBase, todo: list[Task]) -> None:
    episodes = rollout(shared, todo)
    assert all(e.logps == e.ref_logps for e in episodes)
    told = train_once(shared, episodes, ppo_config(batch_size=8, ppo=PPOSpec(num_ppo_epochs=1), warmup_fraction=0.0))
    assert told["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert told["policy/clipfrac_avg"] == 0.0
    after = rollout(shared, todo)
    assert any(e.logps != e.ref_logps for e in after), "it has moved"


def test_02_the_value_function_starts_as_the_reward_model_and_is_not_the_policy(shared: SharedBase, todo: list[Task]) -> None:
    episodes = rollout(shared, todo)
    for e in episodes:  # the last value is that of the state before the last token
        assert e.values[-1] == pytest.approx(float(shared.scores([e.ids[:-1]])[0, 0]), abs=1e-4)
    before = {n: p.detach().clone() for n, p in shared.trained().items()}
    train_once(shared, episodes, ppo_config(batch_size=8, ppo=PPOSpec(vf_coef=0.0)))
    for name, p in shared.trained().items():
        assert torch.equal(p, before[name]) == name.startswith("value.head") or ".value." in name, name
        assert torch.equal(p, before[name]) == (".policy." not in name), name


def test_03_dropout_is_off_in_training_too(tiny_model_dir: Path, members: tuple[Path, ...]) -> None:
    with quiet_training():
        shared = load_shared_base(model_at(tiny_model_dir), "float32", None, members, LoraSpec(rank=4, dropout=0.5))
    with torch.no_grad():
        for name, p in shared.trained().items():
            if "lora_B" in name:
                p.fill_(0.1)
    with shared.training():
        a, b = (shared.hidden("policy", [[3, 40, 41]]) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(a, shared.hidden("policy", [[3, 40, 41]]))


def test_04_padding_changes_nothing(still: SharedBase, todo: list[Task]) -> None:
    together, alone = rollout(still, todo), rollout(still, todo, at_once=1)
    for a, b in zip(together, alone, strict=True):
        assert a.response_ids == b.response_ids
        assert a.scores == pytest.approx(b.scores, abs=1e-4)
        for name in ("logps", "ref_logps", "values", "entropies"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-4)


def test_05_log_probabilities_are_those_of_the_distribution_that_was_sampled_from(still: SharedBase, todo: list[Task]) -> None:
    [episode] = rollout(still, todo[:1], temperature=0.5)
    with still.using("policy"), torch.no_grad():
        logits = still.causal(torch.tensor([episode.ids])).logits[0]
    start = len(episode.prompt_ids)
    for t, token in enumerate(episode.response_ids):
        wanted = torch.log_softmax(logits[start - 1 + t] / 0.5, -1)
        assert episode.logps[t] == pytest.approx(float(wanted[token]), abs=1e-4)
        assert episode.entropies[t] == pytest.approx(float(-(wanted.exp() * wanted).sum()), abs=1e-3)


def test_06_a_response_ends_with_its_first_end_token_and_that_token_counts(still: SharedBase, todo: list[Task]) -> None:
    whole = rollout(still, todo)
    ends = frequent_tokens(whole)
    cut = rollout(still, todo, ends=ends)
    for a, b in zip(whole, cut, strict=True):
        first = next((t for t, token in enumerate(a.response_ids) if token in ends), None)
        assert b.response_ids == (a.response_ids if first is None else a.response_ids[: first + 1])
        assert b.ended == (first is not None)
    assert {e.ended for e in cut} == {True, False} or all(e.ended for e in cut)
    batch = make_batch(cut, PPOSpec(), RewardConfig(), still.device)
    assert batch.mask_BT.sum(1).tolist() == [len(e.response_ids) for e in cut]
    assert not batch.advantages_BT[~batch.mask_BT].any()


def test_07_the_score_is_paid_at_the_last_token_and_nowhere_else(still: SharedBase, todo: list[Task]) -> None:
    episodes = rollout(still, todo, ends=frequent_tokens(rollout(still, todo)))
    spec = PPOSpec(kl_coef=0.0, gamma=1.0, lam=1.0, missing_eos_penalty=None)
    batch = make_batch(episodes, spec, RewardConfig(), still.device)
    for e, returns in zip(episodes, batch.returns_BT.tolist(), strict=True):
        mean = sum(e.scores) / 2
        assert returns[: len(e.response_ids)] == pytest.approx([mean] * len(e.response_ids), abs=1e-4), "nothing is paid before the end"
    short = make_batch(episodes, PPOSpec(kl_coef=0.0, gamma=0.0, lam=0.0, missing_eos_penalty=None), RewardConfig(), still.device)
    for e, returns in zip(episodes, short.returns_BT.tolist(), strict=True):
        n = len(e.response_ids)
        assert returns[:n] == pytest.approx([0.0] * (n - 1) + [sum(e.scores) / 2], abs=1e-4)


def test_08_a_response_that_does_not_end_pays_and_is_scored_as_if_it_had_ended(still: SharedBase, todo: list[Task]) -> None:
    episodes = rollout(still, todo, ends=frequent_tokens(rollout(still, todo)))
    for e in episodes:
        assert e.scores == pytest.approx(still.scores([[*(e.ids[:-1] if e.ended else e.ids), END]])[:, 0].tolist(), abs=1e-4)
    free, paying = (make_batch(episodes, PPOSpec(kl_coef=0.0, missing_eos_penalty=x), RewardConfig(), still.device) for x in (None, 3.0))
    cut = sum(not e.ended for e in episodes)
    assert 0 < cut < len(episodes)
    taken = free.metrics["objective/rlhf_reward"] - paying.metrics["objective/rlhf_reward"]
    assert taken == pytest.approx(3.0 * cut / len(episodes), abs=1e-4)
    assert free.metrics["response/eos_rate"] == pytest.approx(1 - cut / len(episodes))


def test_08_a_response_that_ends_inside_its_reasoning_is_empty_and_pays(still: SharedBase, todo: list[Task]) -> None:
    encoder = encoder_at(still.causal.name_or_path)
    texts = ["<think>\nHm", "<think>\nHm\n</think>\n\nYes.", "Yes.", ""]
    responses = [([*encoder.answer_ids(text), END], True) for text in texts]
    episodes = evaluate_responses(still, todo[:4], responses, encoder=encoder, temperature=0.7, at_once=64)
    assert [e.ended for e in episodes] == [False, True, True, True]
    for e, answer in zip(episodes, ("", "Yes.", "Yes.", ""), strict=True):
        seen = [*e.prompt_ids, *encoder.answer_ids(answer), END]
        assert e.scores == pytest.approx(still.scores([seen])[:, 0].tolist(), abs=1e-4), "reward models see no reasoning"
    free, paying = (make_batch(episodes, PPOSpec(kl_coef=0.0, missing_eos_penalty=x), RewardConfig(), still.device) for x in (None, 3.0))
    assert free.metrics["objective/rlhf_reward"] - paying.metrics["objective/rlhf_reward"] == pytest.approx(3.0 / 4, abs=1e-4)


def test_09_scores_are_counted_from_each_members_centre(shared: SharedBase, todo: list[Task], members: tuple[Path, ...]) -> None:
    episodes = rollout(shared, todo)
    assert [read_centre(m) for m in members] == [0.25, 1.25]
    for name, folder in zip(shared.members, members, strict=True):
        with torch.no_grad():
            shared.heads[name].bias += read_centre(folder)
    uncentred = rollout(shared, todo)
    for a, b in zip(uncentred, episodes, strict=True):
        assert [x - y for x, y in zip(a.scores, b.scores, strict=True)] == pytest.approx([0.25, 1.25], abs=1e-5)


def test_10_each_token_is_taxed_with_its_own_kl(shared: SharedBase, todo: list[Task]) -> None:
    with torch.no_grad():
        for name, p in shared.trained().items():
            if ".policy." in name:
                p += 0.05
    episodes = rollout(shared, todo)
    spec = PPOSpec(kl_coef=0.5, gamma=0.0, lam=0.0, missing_eos_penalty=None)  # so that a return is a token's own reward
    batch = make_batch(episodes, spec, RewardConfig(), shared.device)
    for e, returns in zip(episodes, batch.returns_BT.tolist(), strict=True):
        taxes = [-0.5 * (a - b) for a, b in zip(e.logps, e.ref_logps, strict=True)]
        taxes[-1] += sum(e.scores) / 2
        assert returns[: len(taxes)] == pytest.approx(taxes, abs=1e-4)
    mean = sum(sum(e.logps) - sum(e.ref_logps) for e in episodes) / len(episodes)
    assert batch.metrics["objective/kl"] == pytest.approx(mean, abs=1e-4)
    assert mean > 0.1


def test_11_values_are_of_the_state_before_a_token_and_0_after_the_last(still: SharedBase, todo: list[Task]) -> None:
    episodes = rollout(still, todo[:2], length=2)
    spec = PPOSpec(kl_coef=0.0, gamma=0.9, lam=0.8, missing_eos_penalty=None)
    batch = make_batch(episodes, spec, RewardConfig(), still.device)
    for e, returns in zip(episodes, batch.returns_BT.tolist(), strict=True):
        (v0, v1), score = e.values, sum(e.scores) / 2
        a1 = score - v1
        a0 = 0.9 * v1 - v0 + 0.9 * 0.8 * a1
        assert returns == pytest.approx([a0 + v0, a1 + v1], abs=1e-4)


def test_12_advantages_are_whitened_over_the_batch(still: SharedBase, todo: list[Task]) -> None:
    episodes = rollout(still, todo, ends=frequent_tokens(rollout(still, todo)))
    batch = make_batch(episodes, PPOSpec(), RewardConfig(), still.device)
    assert float(batch.advantages_BT[batch.mask_BT].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(batch.advantages_BT[batch.mask_BT].std()) == pytest.approx(1.0, abs=1e-4)


def test_13_clipping_ends_the_gradient(shared: SharedBase, todo: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    config = ppo_config(batch_size=8, learning_rate=5e-2, warmup_fraction=0.0, ppo=PPOSpec(num_ppo_epochs=4))
    told = train_once(shared, rollout(shared, todo), config)
    assert 0.0 < told["policy/clipfrac_avg"] < 1.0
    assert 0.0 < told["val/clipfrac_avg"] <= 1.0
    assert told["policy/approxkl_avg"] > 1e-4


def test_14_every_pass_takes_every_episode_once_in_an_order_of_its_own(
    shared: SharedBase, todo: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    episodes, plain = rollout(shared, todo, length=3), shared.hidden
    number = {tuple(episode.ids): i for i, episode in enumerate(episodes)}
    assert len(number) == 8, "no two are alike"

    def noted(name: str, rows: Any) -> Any:
        if name == POLICY:
            seen.append([number[tuple(ids)] for ids in rows])
        return plain(name, rows)

    monkeypatch.setattr(shared, "hidden", noted)
    config = ppo_config(batch_size=2, gradient_accumulation=2, ppo=PPOSpec(num_ppo_epochs=3, num_mini_batches=2))
    train_once(shared, episodes, config)
    flat = [i for micro in seen for i in micro]
    passes = [flat[k : k + 8] for k in (0, 8, 16)]
    assert [sorted(p) for p in passes] == [list(range(8))] * 3
    assert len({tuple(p) for p in passes}) == 3
    assert {len(m) for m in seen} == {2}


def test_15_adam_has_the_literatures_epsilon_no_decay_and_a_rate_that_falls_to_nothing(shared: SharedBase, todo: list[Task]) -> None:
    config = ppo_config(batch_size=8, learning_rate=1e-3, warmup_fraction=0.0, ppo=PPOSpec(num_ppo_epochs=1))
    groups = make_optimizer(config, shared).param_groups
    assert [(g["eps"], g["weight_decay"]) for g in groups] == [(1e-5, 0.0)] * 2
    episodes = rollout(shared, todo, length=2)
    rates = [train_once(shared, episodes, config, World(0, 1, at, 4))["lr"] for at in (0, 2, 3)]
    assert rates == pytest.approx([1e-3, 5e-4, 2.5e-4])


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_15_the_8_bit_optimizers_have_it_too(shared: SharedBase, todo: list[Task], optimizer: str) -> None:
    config = ppo_config(batch_size=8, warmup_fraction=0.0, optimizer=optimizer, ppo=PPOSpec(num_ppo_epochs=1))
    with quiet_training():
        groups = make_optimizer(config, shared).param_groups
        assert [(g["eps"], g["weight_decay"]) for g in groups] == [(1e-5, 0.0)] * 2
        before = {n: p.detach().clone() for n, p in shared.trained().items()}
        train_once(shared, rollout(shared, todo, length=3), config)
    assert any(not torch.equal(p, before[n]) for n, p in shared.trained().items())


def test_16_gradients_are_clipped_over_all_trained_weights_together(shared: SharedBase) -> None:
    config = ppo_config(learning_rate=1.0)
    trained = shared.trained()
    optimizer = torch.optim.SGD([{"params": [p for n, p in trained.items() if is_critic(n) is critic]} for critic in (False, True)], lr=1.0)
    for p in shared.trained().values():
        p.grad = torch.ones_like(p)
    size = sum(p.numel() for p in shared.trained().values())
    before = {n: p.detach().clone() for n, p in shared.trained().items()}
    norm = ppo_update._apply(shared, optimizer, 0.5, (config.learning_rate, config.learning_rate), 1)
    assert norm == pytest.approx(size**0.5, rel=1e-5)
    for name, p in shared.trained().items():
        torch.testing.assert_close(before[name] - p, torch.full_like(p, 0.5 / size**0.5), rtol=1e-2, atol=1e-6)


def test_the_critic_has_its_own_rate_and_learns_first(shared: SharedBase, todo: list[Task]) -> None:
    episodes = rollout(shared, todo, length=3)

    def moved(**ppo: Any) -> dict[bool, float]:
        """How far policy and critic move in one step from where they are."""
        before = {n: p.detach().clone() for n, p in shared.trained().items()}
        train_once(
            shared, episodes, ppo_config(batch_size=8, learning_rate=1e-3, warmup_fraction=0.0, ppo=PPOSpec(num_ppo_epochs=1, **ppo))
        )
        distance = dict.fromkeys((False, True), 0.0)
        for name, p in shared.trained().items():
            distance[is_critic(name)] = max(distance[is_critic(name)], float((p.detach() - before[name]).abs().max()))
        return distance

    warmup = moved(critic_warmup=1)
    assert warmup[False] == 0.0 and warmup[True] > 0
    faster = moved(critic_learning_rate=1e-2)
    assert faster[True] == pytest.approx(10 * warmup[True], rel=0.1) and faster[False] == pytest.approx(1e-3, rel=0.1)


def test_b_micro_batches_change_nothing(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...], todo: list[Task]) -> None:
    found = []
    for batch, accumulation in ((4, 1), (1, 4), (3, 2)):
        shared = load(tiny_model_dir, sft, members)
        config = ppo_config(batch_size=batch, gradient_accumulation=accumulation, learning_rate=1e-3, warmup_fraction=0.0)
        episodes = rollout(shared, todo, ends=frequent_tokens(rollout(shared, todo)))
        told = train_once(shared, episodes, PolicyConfig(**{**as_dict(config), "ppo": PPOSpec(num_mini_batches=2, num_ppo_epochs=2)}))
        found.append((told, {n: p.detach().clone() for n, p in shared.trained().items()}))
    for told, weights in found[1:]:
        assert told == pytest.approx(found[0][0], rel=1e-3, abs=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, found[0][1][name], rtol=1e-3, atol=5e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_d_a_response_hangs_on_its_own_seed_only(still: SharedBase, todo: list[Task]) -> None:
    whole, part = rollout(still, todo), rollout(still, todo[5:2:-1])
    assert [e.response_ids for e in part] == [whole[i].response_ids for i in (5, 4, 3)]
    again = tasks([("p0", todo[0].prompt_ids), ("p1", todo[1].prompt_ids)], 0, 0, 6)
    assert len({t.seed for t in again}) == 6, "a prompt met again gets another response"
    assert tasks([("p0", [1]), ("p1", [2])], 0, 2, 4) == [Task(i - 2, t.prompt_ids, t.seed) for i, t in enumerate(six())][2:]


def six() -> list[Task]:
    return tasks([("p0", [1]), ("p1", [2])], 0, 0, 6)


def as_dict(config: PolicyConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}
