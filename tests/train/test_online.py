"""GRPO and RLOO on a tiny model: what moves, from where, on which rewards, and that a kill costs nothing, the watch included."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cai.core.jsonl import read_records
from cai.errors import TrainingError
from cai.models.local.encoding import Encoder
from cai.models.local.generate import complete
from cai.models.local.loading import load_tokenizer
from cai.pipeline.methods.grpo import GRPO
from cai.pipeline.methods.rloo import RLOO
from cai.recipe import MonitorConfig, OnlineConfig, PolicyConfig, PPOSpec, RewardTerm
from cai.records import MonitorPoint, RewardScore
from cai.train.checkpoints import FINISHED, TrainResult, checkpoint_folder
from cai.train.live_policy import LivePolicy, shared_limit_warning
from cai.train.monitor import FRONTIER, Items, Monitor, Scores
from cai.train.rl.grpo import in_order, online_trainer, prompt_rows, prompts_per_step, train_online
from cai.train.rl.online_method import OnlineMethod
from cai.train.rl.rewards import RewardFunction, proxy_of
from cai.train.rl.trainers import reward_function
from cai.train.running import PolicyJob, quiet_training
from cai.train.sft import train_sft
from tests.train.builders import FAST, adapter, assert_same_weights, examples, model_at, prompt, sft_config
from tests.train.killing import Killed, kill_at
from tests.train.processes import letters

PROMPTS = [prompt(i) for i in range(4)]
METHODS = {"grpo": GRPO, "rloo": RLOO}


def flat(items: Items) -> list[RewardScore]:
    return [RewardScore(1.0, 0.0, (1.0,))] * len(items)


def config_of(method: str = "grpo", **changes: Any) -> PolicyConfig:
    online = OnlineConfig(
        num_generations=4, max_tokens=6, patience=changes.pop("patience", 5), rewards=changes.pop("rewards", (RewardTerm(),))
    )
    return PolicyConfig(**{**FAST, "batch_size": 8, "learning_rate": 5e-3, "method": method, "online": online, **changes})


def train(
    tiny: Path, sft: Path | None, out: Path, config: PolicyConfig, score: Any = letters, load_monitor: Any = None, **more: Any
) -> TrainResult:
    load = lambda: RewardFunction(config.online.rewards, score)  # noqa: E731
    job = PolicyJob(config, model_at(tiny), sft, out, 0, **more)
    return train_online(METHODS[config.method], job, PROMPTS, load, score.__name__, load_monitor=load_monitor)


@pytest.fixture(scope="module")
def sft(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an SFT adapter."""
    folder = tmp_path_factory.mktemp("sft")
    train_sft(sft_config(), model_at(tiny_model_dir), examples(4), folder, 0)
    return folder


def trainer_for(tiny: Path, sft: Path | None, out: Path, config: PolicyConfig, warn: Any = print) -> Any:
    job = PolicyJob(config, model_at(tiny), sft, out, 0, warn=warn)
    tokenizer = load_tokenizer(job.start)
    rows, _ = prompt_rows(tokenizer, PROMPTS, config, prompts_per_step(config))
    rewards = RewardFunction(config.online.rewards, letters)
    with quiet_training():
        return online_trainer(METHODS[config.method], job, tokenizer, rows, PROMPTS, rewards)


@pytest.mark.parametrize("method", METHODS)
def test_the_policy_learns_what_is_rewarded_and_base_and_reference_stay(
    tiny_model_dir: Path, sft: Path, tmp_path: Path, method: str
) -> None:
    online = OnlineConfig(num_generations=8, max_tokens=6)
    config = config_of(method, epochs=8.0, beta=0.001, batch_size=16, learning_rate=2e-3, online=online)
    trainer = trainer_for(tiny_model_dir, sft, tmp_path, config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with quiet_training():
        trainer.train()
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
    reference = {n.replace(".ref.", "."): p for n, p in trainer.model.named_parameters() if ".ref." in n}
    assert reference.keys() == adapter(sft).keys()
    for name, tensor in adapter(sft).items():
        assert torch.equal(reference[name], tensor), name
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 16, "four prompts, two a step, eight times over"
    assert logs[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    paid = logs[0]["completions/clipped_ratio"]  # times the penalty of 1
    assert logs[0]["terms/model"] - paid == pytest.approx(logs[0]["reward"]) and logs[0]["disagreement"] == pytest.approx(0.25)
    first, last = (sum(entry["reward"] for entry in part) / 4 for part in (logs[:4], logs[-4:]))
    assert last > first + 0.2


def test_each_method_has_its_usual_coefficient_and_a_recipe_may_set_another(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainers = [trainer_for(tiny_model_dir, sft, tmp_path, config_of(method)) for method in METHODS]
    assert [trainer.beta for trainer in trainers] == [0.04, 0.05]
    assert trainer_for(tiny_model_dir, sft, tmp_path, config_of(beta=0.3)).beta == 0.3


def test_a_third_method_declares_its_trainer_and_nothing_else_names_it(
    tiny_model_dir: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def classes() -> tuple[Any, Any]:
        from trl import RLOOConfig

        from cai.train.rl.trainers import RLOORun

        class ThirdRun(RLOORun):
            def __init__(self, **given: Any) -> None:
                super().__init__(**given)
                made.append(self)

        return ThirdRun, RLOOConfig

    third = OnlineMethod(
        "Third, as nobody knows it", 0.07, classes, lambda online: {"reward_clip_range": (-online.patience, online.patience)}
    )
    monkeypatch.setitem(METHODS, "third", third)
    result = train(tiny_model_dir, sft, tmp_path, config_of("third"))
    assert result.steps == 2 and made[0].args.beta == 0.07 and made[0].args.reward_clip_range == (-5, 5)
    assert "Third, as nobody knows it; reference: the SFT adapter" in (tmp_path / "README.md").read_text()
    before = adapter(sft)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in adapter(tmp_path).items())
    assert train(tiny_model_dir, sft, tmp_path, config_of("third")) == result and len(made) == 1, "a finished training is found again"


def test_a_completion_without_an_end_pays_and_others_do_not(tiny_model_dir: Path) -> None:
    encoder = Encoder(load_tokenizer(model_at(tiny_model_dir)))
    said = [encoder.turn(PROMPTS[0].messages, "Yes.", ended=ended)[1] for ended in (True, False)]
    flat = RewardFunction((RewardTerm(term="length"),))
    for penalty, expected in ((2.0, [0.0, -2.0]), (None, [0.0, 0.0])):
        reward = reward_function(flat, PROMPTS, encoder, frozenset([encoder.end_id]), penalty)
        assert reward(completion_ids=said, id=[PROMPTS[0].id] * 2, log_metric=lambda *_: None) == expected


def test_a_policy_that_always_thinks_is_told_to_have_a_limit_for_it(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(model_at(tiny_model_dir))
    assert shared_limit_warning(tokenizer, OnlineConfig(max_tokens=64), "online") == ""
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    warning = shared_limit_warning(tokenizer, OnlineConfig(max_tokens=64), "online")
    assert "both share 64 tokens" in warning and "policy.online.thinking_tokens" in warning
    assert shared_limit_warning(tokenizer, PPOSpec(thinking_tokens=8), "ppo") == ""


def test_a_reasoning_is_not_rewarded_and_one_without_an_answer_pays(tiny_model_dir: Path) -> None:
    encoder = Encoder(load_tokenizer(model_at(tiny_model_dir)))
    texts = ["<think>\nHm.\n</think>\n\nYes.", "<think>\nHm.", "<think>\nHm.\n</think>\n\n", "Yes.", ""]
    said = [encoder.turn(PROMPTS[0].messages, text)[1] for text in texts] + [encoder.turn(PROMPTS[0].messages, texts[1], ended=False)[1]]
    scored: list[str] = []

    def score(items: Items) -> list[RewardScore]:
        scored.extend(text for _, text in items)
        return flat(items)

    reward = reward_function(RewardFunction((RewardTerm(),), score), PROMPTS, encoder, frozenset([encoder.end_id]), 2.0)
    assert reward(completion_ids=said, id=[PROMPTS[0].id] * 6, log_metric=lambda *_: None) == [1.0, -1.0, -1.0, 1.0, 1.0, -1.0]
    assert scored == ["Yes.", "", "", "Yes.", "", ""]


@pytest.mark.parametrize("opened", ["", "<think>\n"])
def test_a_reasoning_has_its_own_limit(
    tiny_model_dir: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: str
) -> None:
    """The policy would write this text: a reasoning of 21 or 29 tokens (a byte each), and a longer answer than it may."""
    text = "<think>\nLet me see.\n</think>\n\nYes, it is.".removeprefix(opened)
    for longest, thinking, expected in ((4, 40, "Yes,"), (4, 12, ""), (12, 0, "")):
        online = OnlineConfig(num_generations=4, max_tokens=longest, thinking_tokens=thinking)
        trainer = trainer_for(tiny_model_dir, sft, tmp_path, config_of(online=online))
        trainer.processing_class.chat_template += f"{{% if add_generation_prompt %}}{{{{ {opened!r} }}}}{{% endif %}}"
        script = iter(trainer.processing_class(text, add_special_tokens=False)["input_ids"])
        monkeypatch.setattr("cai.models.local.generate.draw", lambda logits, *_, script=script: torch.tensor([next(script)]))
        policy = LivePolicy(trainer.model, trainer.processing_class)
        (completion,) = trainer.sampled([policy.encode(PROMPTS[0])])
        assert policy.decode(completion) == expected and trainer.max_completion_length == longest + thinking


def test_the_watch_gives_a_reasoning_its_own_limit(
    tiny_model_dir: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[Any] = []

    def record(model: Any, rows: Any, *rest: Any, **options: Any) -> Any:
        limits.append({(r.budget.max_tokens, r.budget.thinking_tokens) for r in rows})
        return complete(model, rows, *rest, **options)

    monkeypatch.setattr("cai.train.live_policy.complete", record)
    config = config_of(epochs=1.0, online=OnlineConfig(num_generations=4, max_tokens=6, thinking_tokens=3))
    train(tiny_model_dir, sft, tmp_path, config, load_monitor=watching(tmp_path, not_letters))
    assert limits == [{(6, 3)}] * 4, "two steps, and a look before and after them"


def test_every_prompt_comes_as_often_as_the_others() -> None:
    rows = [{"id": str(i)} for i in range(5)]
    order = [r["id"] for r in in_order(rows, 12, seed=0)]
    assert sorted(order[:5]) == sorted(order[5:10]) == ["0", "1", "2", "3", "4"] and order[:5] != order[5:10] and len(order) == 12
    assert order == [r["id"] for r in in_order(rows[::-1], 12, seed=0)] != [r["id"] for r in in_order(rows, 12, seed=1)]


def test_the_kl_pulls_back(tiny_model_dir: Path, tmp_path: Path) -> None:
    ends = {}
    for beta in (0.001, 10.0):
        logs: list[dict[str, float]] = []
        train(tiny_model_dir, None, tmp_path / str(beta), config_of(beta=beta, epochs=4.0), on_log=lambda *a, logs=logs: logs.append(a[2]))
        ends[beta] = logs[-1]["kl"]
    assert 0 < ends[10.0] < ends[0.001] / 2


def watching(out: Path, gold: Any, **config: Any) -> Any:
    """Make a watch on the training's rewards and on some gold."""
    prompts = [prompt(i, f"held out {i}?") for i in range(6)]

    def make(rewarding: RewardFunction) -> Monitor:
        return Monitor(prompts, MonitorConfig(every_steps=2, **config), proxy_of(rewarding, prompts), gold, out / FRONTIER)

    return make


def not_letters(items: Items) -> list[float]:
    return [-s.value for s in letters(items)]


@pytest.mark.parametrize("method", METHODS)
def test_resuming_gives_the_same_policy_and_the_same_observations(tiny_model_dir: Path, sft: Path, tmp_path: Path, method: str) -> None:
    config = config_of(method, save_steps=2, epochs=3.0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    calm = train(tiny_model_dir, sft, whole, config, load_monitor=watching(whole, not_letters))
    with pytest.raises(Killed):
        train(tiny_model_dir, sft, cut, config, load_monitor=watching(cut, not_letters), on_log=kill_at(5))
    resumed = train(tiny_model_dir, sft, cut, config, load_monitor=watching(cut, not_letters))
    assert (calm.steps, calm.resumed_from, resumed.resumed_from) == (6, 0, 4)
    assert (whole / FRONTIER).read_bytes() == (cut / FRONTIER).read_bytes()
    assert [p.step for p in read_records(whole / FRONTIER, MonitorPoint)] == [0, 2, 4, 6]
    timeless = lambda r: {k: v for k, v in r.metrics.items() if k != "step_time"}  # noqa: E731
    assert timeless(calm) == timeless(resumed)
    assert_same_weights(whole, cut)
    again: list[Any] = []
    assert train(tiny_model_dir, sft, cut, config, load_monitor=watching(cut, not_letters), on_log=lambda *a: again.append(a)) == resumed
    assert again == []


def test_over_optimization_ends_the_training_and_the_best_weights_become_the_policy(
    tiny_model_dir: Path, sft: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    config = config_of(epochs=20.0, beta=0.001)
    watch = watching(tmp_path, not_letters, action="stop", patience=1, min_drop=0.0)
    result = train(tiny_model_dir, sft, tmp_path, config, load_monitor=watch, warn=told.append)
    points = list(read_records(tmp_path / FRONTIER, MonitorPoint))
    assert result.steps == points[-1].step < 40
    assert points[0].kl == pytest.approx(0.0, abs=1e-4) and points[-1].kl > 0.01
    assert points[-1].proxy > max(p.proxy for p in points[:-1]) and points[-1].gold < points[0].gold
    assert [t.split(":")[0] for t in told] == [f"step {result.steps}"] and "training stops here" in told[0]
    best = max(points, key=lambda p: (p.gold, -p.step)).step
    assert f"step {best} of {result.steps}" in (tmp_path / "README.md").read_text()
    if best == 0:
        assert_same_weights(tmp_path, sft)
    assert not checkpoint_folder(tmp_path).exists()


def test_a_training_killed_after_its_stop_stops_again_at_the_same_step(
    tiny_model_dir: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(epochs=20.0, beta=0.001, save_steps=2)
    options: dict[str, Any] = {"action": "stop", "patience": 1, "min_drop": 0.0}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    calm = train(tiny_model_dir, sft, whole, config, load_monitor=watching(whole, not_letters, **options))

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as m:
        m.setattr("cai.train.rl.grpo.restore_best", killed)
        with pytest.raises(Killed):
            train(tiny_model_dir, sft, cut, config, load_monitor=watching(cut, not_letters, **options))
    resumed = train(tiny_model_dir, sft, cut, config, load_monitor=watching(cut, not_letters, **options))
    assert resumed.steps == calm.steps == resumed.resumed_from + 2 and calm.steps % 2 == 0
    assert (whole / FRONTIER).read_bytes() == (cut / FRONTIER).read_bytes()
    assert_same_weights(whole, cut)


def test_the_watch_of_a_policy_that_has_not_moved_sees_no_kl(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_model_dir, sft, tmp_path, config_of())
    policy = LivePolicy(trainer.model, trainer.processing_class)
    ids = [policy.encode(p) for p in PROMPTS]
    completions = policy.sample(ids, 6, 1.0, [1, 2, 3, 4])
    assert policy.sample(ids[2:], 6, 1.0, [3, 4]) == completions[2:], "a completion hangs on its own seed, not on its batch"
    assert policy.kl(ids, completions) == [0.0] * 4
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if ".default." in name:
                p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    trainer.model.eval()
    found = policy.kl(ids, completions)
    assert trainer.model.active_adapter == "default" and trainer.model.training is False
    for prompt_ids, completion, ratio in zip(ids, completions, found, strict=True):
        tokens = torch.tensor([prompt_ids + completion])
        logps = []
        for name in ("default", "ref"):
            trainer.model.set_adapter(name)
            with torch.no_grad():
                logits = trainer.model(tokens).logits[0, len(prompt_ids) - 1 : -1]
            logps.append(logits.log_softmax(-1)[range(len(completion)), completion].sum().item())
        assert ratio == pytest.approx(logps[0] - logps[1], abs=1e-3) and abs(ratio) > 1e-3


def test_what_is_sampled_is_what_is_trained_on(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_model_dir, sft, tmp_path, config_of(gradient_accumulation=1))
    seen: list[Any] = []
    original = trainer.sampled
    trainer.sampled = lambda ids: seen.append((ids, original(ids))) or seen[-1][1]
    with quiet_training():
        trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    ((prompts, completions),) = seen
    assert len(prompts) == 8 and [prompts[0]] * 4 == prompts[:4] != prompts[4:], "four of each of two prompts"
    stop = trainer.processing_class.eos_token_id
    assert all(len(c) == 6 or c[-1] == stop for c in completions)
    rows = {tuple(c) for c in completions}
    batch = trainer._buffered_inputs[0]
    for ids, mask in zip(batch["completion_ids"].tolist(), batch["completion_mask"].tolist(), strict=True):
        assert tuple(t for t, m in zip(ids, mask, strict=True) if m) in rows


def test_rewards_that_tell_nothing_apart_are_warned_of_and_then_end_the_training(tiny_model_dir: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(TrainingError, match="for 3 steps in a row all completions of each prompt had the same reward"):
        train(tiny_model_dir, None, tmp_path, config_of(patience=3, epochs=4.0), flat, warn=told.append)
    assert len(told) == 1 and told[0].startswith("step 1: ")
    assert not (tmp_path / FINISHED).exists()


def test_a_response_without_a_reward_is_left_out_and_none_at_all_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = config_of(rewards=(RewardTerm(), RewardTerm(term="constitution")))
    logs: list[dict[str, float]] = []

    def run(judge: Any, out: Path) -> TrainResult:
        load = lambda: RewardFunction(config.online.rewards, letters, judge)  # noqa: E731
        return train_online(
            GRPO, PolicyJob(config, model_at(tiny_model_dir), None, out, 0, lambda *a: logs.append(a[2])), PROMPTS, load, "x"
        )

    run(lambda answers: [None if i % 4 == 0 else 1.0 for i, _ in enumerate(answers)], tmp_path / "some")
    assert [entry["unrewarded"] for entry in logs] == [0.25, 0.25]
    assert logs[0]["terms/constitution"] == 1.0
    with pytest.raises(TrainingError, match="none of 8 completions of a step could be rewarded"):
        run(lambda answers: [None] * len(answers), tmp_path / "none")


def test_faults_of_the_batch_are_found_before_anything_loads(tmp_path: Path) -> None:
    nowhere = tmp_path / "no model here"
    with pytest.raises(TrainingError, match=r"a step of 6 completions can't be divided into groups of 4 .*multiple of 4"):
        train(nowhere, None, tmp_path / "out", config_of(batch_size=6))
    assert not (tmp_path / "out").exists()


def test_too_few_prompts_for_a_step_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a step needs 5 prompts, but only 4 of 4 fit"):
        train(tiny_model_dir, None, tmp_path, config_of(batch_size=20))
    with pytest.raises(TrainingError, match="a step needs 2 prompts, but only 0 of 4 fit, 4 too long"):
        train(tiny_model_dir, None, tmp_path, config_of(max_length=30))


def test_a_policy_that_does_not_start_at_its_reference_is_refused(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_model_dir, sft, tmp_path, config_of())
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if ".default." in name:
                p += 0.2
    with pytest.raises(TrainingError, match="before the first update the policy already differs from its reference"), quiet_training():
        trainer.train()


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_low_precision_starts_at_the_reference(tiny_model_dir: Path, sft: Path, tmp_path: Path, precision: str) -> None:
    logs: list[dict[str, float]] = []
    train(tiny_model_dir, sft, tmp_path, config_of(precision=precision), on_log=lambda *a: logs.append(a[2]))
    assert logs[0]["kl"] == pytest.approx(0.0, abs=1e-6) and logs[1]["kl"] != 0.0
    assert {t.dtype for t in adapter(tmp_path).values()} == {torch.float32}


def test_scores_is_what_a_watch_takes() -> None:
    rewarding = RewardFunction((RewardTerm(weight=2.0),), letters)
    items = [(p.messages, text) for p, text in zip(PROMPTS, ("ab", "a!", "!!", "b"), strict=True)]
    assert proxy_of(rewarding, PROMPTS)(items) == Scores([4.0, 2.0, 0.0, 4.0], (0.25,) * 4)
