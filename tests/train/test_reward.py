"""Reward training on a tiny model: soft labels, weights, what is saved, and what is measured."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace as replace_setting

from cai.errors import ModelError, TrainingError
from cai.models.local.loading import load_tokenizer
from cai.recipe import LoraSpec, ModelSpec
from cai.records import Preference, RewardScore
from cai.train.checkpoints import checkpoint_folder
from cai.train.encode import reward_rows
from cai.train.reward.balance import balance_lengths
from cai.train.reward.ensemble import RewardEnsemble, aggregate_scores, load_ensemble, scoring_tokenizer, shares_prefixes
from cai.train.reward.metrics import HeldOutMetrics, calibration_error, reliability_bins
from cai.train.reward.train import (
    METRICS,
    measure_reward,
    reward_trainer,
    train_members,
    train_reward,
)
from cai.train.running import quiet_training
from tests.train.builders import BY, adapter, assert_same_weights, model_at, preference, preferences, prompt, reward_config
from tests.train.killing import Killed, kill_at


def loss_of(model: ModelSpec, pairs: list[Any], tmp_path: Path, **changes: Any) -> tuple[float, Any, dict[str, Any]]:
    """Return our loss on one batch of pairs, the trainer and the batch."""
    config = reward_config(batch_size=len(pairs), **changes)
    tokenizer = scoring_tokenizer(load_tokenizer(model))
    rows, *_ = reward_rows(tokenizer, pairs, 512, config.margin)
    with quiet_training():
        trainer = reward_trainer(config, model, tokenizer, rows, tmp_path, 0)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.eval()
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(len(pairs))).item()
    return loss, trainer, batch


def values(scorer: RewardEnsemble, items: Any) -> list[float]:
    """Return the aggregated scores alone."""
    return [s.value for s in scorer.score(items)]


def test_balanced_lengths_train_as_the_weights_say(tiny_model_dir: Path, tmp_path: Path) -> None:
    pairs = [replace(p, rejected="no" * (60 if i < 6 else 1)) for i, p in enumerate(preferences(8))]
    model, plain = model_at(tiny_model_dir), reward_config()
    train_reward(replace_setting(plain, balance_length=True), model, pairs, (), tmp_path / "asked", 0)
    train_reward(plain, model, balance_lengths(pairs), (), tmp_path / "weighed", 0)
    train_reward(plain, model, pairs, (), tmp_path / "plain", 0)
    assert_same_weights(tmp_path / "asked", tmp_path / "weighed")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "asked", tmp_path / "plain")


@pytest.mark.parametrize("share", ["always", "never"])
def test_certain_labels_give_trls_own_loss(tiny_model_dir: Path, tmp_path: Path, share: str) -> None:
    from trl import RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    uneven = [preference(i) for i in (0, 100, 10)]
    ours, trainer, batch = loss_of(model_at(tiny_model_dir), uneven, tmp_path, center=0.03, share_prompt=share)
    assert ("pair_lengths" in batch) == (share == "always")
    trainer.model.get_base_model().set_attn_implementation("sdpa")
    plain = DataCollatorForPreference(pad_token_id=trainer.processing_class.pad_token_id)(list(trainer.train_dataset))
    theirs = RewardTrainer.compute_loss(trainer, trainer.model, plain).item()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours != pytest.approx(math.log(2.0), abs=1e-4)


@pytest.mark.parametrize("max_length", [512, 30])
def test_a_shared_prompt_changes_no_loss_and_no_gradient(tiny_model_dir: Path, tmp_path: Path, max_length: int) -> None:
    """At 30 tokens the two sides lose beginnings of unlike lengths, and have nothing left to share."""
    model = model_at(tiny_model_dir)
    tokenizer = scoring_tokenizer(load_tokenizer(model))
    rows, *_ = reward_rows(tokenizer, [preference(0), preference(100, 0.7), preference(10, 0.2, 0.5)], max_length)
    found = []
    for share in ("always", "never"):
        with quiet_training():
            trainer = reward_trainer(reward_config(share_prompt=share), model, tokenizer, rows, tmp_path, 0)
            generator = torch.Generator().manual_seed(0)
            for p in trainer.model.parameters():
                p.data += 0.1 * torch.randn(p.shape, generator=generator) if p.requires_grad else 0.0
            loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    for name, gradient in found[0][1].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_every_trained_weight_moves_head_included_and_the_base_does_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    _, trainer, _ = loss_of(model_at(tiny_model_dir), preferences(4), tmp_path, epochs=3.0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with quiet_training():
        trainer.train()
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
    assert any("score.modules_to_save" in name and p.requires_grad for name, p in trainer.model.named_parameters())


def test_it_learns_measures_and_saves(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    held_out = [preference(i) for i in range(20, 26)] + [preference(30).swapped(), preference(31, p=0.5)]
    result = train_reward(reward_config(epochs=5.0), model, preferences(8), held_out, tmp_path, 0)
    metrics = msgspec.json.decode((tmp_path / METRICS).read_bytes(), type=HeldOutMetrics)
    assert (metrics.accuracy, metrics.n) == (1.0, 7), "the pair labelled a half favours no side"
    assert (round(metrics.low, 4), metrics.high) == (0.6457, 1.0), "Wilson, 7 of 7"
    assert metrics.mean_margin > 0.5
    assert result.metrics["held_out_accuracy"] == 1.0
    assert "100.0% (95 % confidence interval 64.6% to 100.0%, n = 7)" in (tmp_path / "README.md").read_text()
    assert not checkpoint_folder(tmp_path).exists()


def test_scores_do_not_depend_on_batch_or_order(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_at(tiny_model_dir)
    train_reward(reward_config(epochs=3.0), model, preferences(4), (), tmp_path, 0)
    scorer = load_ensemble([tmp_path], model)
    items = [(prompt(i).messages, "word " * (i % 5) + "end") for i in range(9)]
    together = values(scorer, items)
    assert len(set(together)) == 9
    assert values(scorer, items[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    monkeypatch.setattr("cai.train.reward.ensemble.KEPT_TOKENS", 1)
    assert values(scorer, items) == pytest.approx(together, abs=1e-5)
    scorer.model.config.layer_types = ["full_attention", "linear_attention"]  # as of a model whose texts can't share their beginnings
    assert not shares_prefixes(scorer.model)
    for tokens in (1, 10_000):
        monkeypatch.setattr("cai.train.reward.ensemble.tokens_at_once", lambda device, tokens=tokens: tokens)
        assert values(scorer, items) == pytest.approx(together, abs=1e-5), "each text whole"
    assert scorer.score([]) == []
    rounded = values(load_ensemble([tmp_path]), items)
    assert rounded == pytest.approx(together, abs=0.3)


def test_scores_of_the_saved_model_are_those_of_the_trained_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    _, trainer, batch = loss_of(model, preferences(4), tmp_path, epochs=3.0, share_prompt="never")
    with quiet_training():
        trainer.train()
        trainer.model.eval().save_pretrained(tmp_path / "saved")
        trainer.processing_class.save_pretrained(tmp_path / "saved")
    with torch.inference_mode():
        direct = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1).tolist()
    texts = trainer.processing_class.batch_decode(batch["input_ids"])
    scorer = load_ensemble([tmp_path / "saved"], model)
    by_text = {f"{p.prompt.messages[0].content}{t}": (p.prompt.messages, t) for p in preferences(4) for t in (p.chosen, p.rejected)}
    for text, score in zip(texts, direct, strict=True):
        [item] = [item for item in by_text.values() if item[0][0].content in text and item[1] in text]
        assert values(scorer, [item]) == pytest.approx([score], abs=1e-4)


def test_padding_is_not_the_end_token_and_the_end_is_kept(tiny_model_dir: Path) -> None:
    tokenizer = scoring_tokenizer(load_tokenizer(model_at(tiny_model_dir)))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.truncation_side == "left"


def test_scoring_cuts_where_training_did(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    train_reward(reward_config(max_length=16), model, preferences(2), (), tmp_path, 0)
    scorer = load_ensemble([tmp_path], model)
    assert scorer.members[0].max_length == 16
    short, long, other = values(scorer, [(prompt(i).messages, text) for i, text in ((0, "x" * 20), (1, "y" + "x" * 20), (2, "x" * 8))])
    assert short == long != other


def test_a_label_of_a_half_pulls_scores_together(tiny_model_dir: Path, tmp_path: Path) -> None:
    apart, trainer, _ = loss_of(model_at(tiny_model_dir), preferences(4, p=0.5), tmp_path, epochs=20.0, center=0.0)
    with quiet_training():
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] == pytest.approx(math.log(2.0), abs=2e-3)
    assert losses[-1] < apart


def test_a_margin_asks_for_as_much_as_its_label_is_sure(tiny_model_dir: Path, tmp_path: Path) -> None:
    pairs = [preference(0), preference(1, p=0.75), preference(2, p=0.5)]
    tokenizer = scoring_tokenizer(load_tokenizer(model_at(tiny_model_dir)))
    assert [row["margin"] for row in reward_rows(tokenizer, pairs, 512, margin=2.0)[0]] == [2.0, 1.0, 0.0]
    assert "margin" not in reward_rows(tokenizer, pairs, 512)[0][0]
    padded: dict[str, Any] = {"center": 0.0, "share_prompt": "never"}
    off, _, _ = loss_of(model_at(tiny_model_dir), pairs[:1], tmp_path / "off", **padded)
    on, trainer, batch = loss_of(model_at(tiny_model_dir), pairs[:1], tmp_path / "on", **padded, margin=2.0)
    with torch.inference_mode():
        chosen, rejected = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    difference = (chosen - rejected).item()
    assert off == pytest.approx(math.log1p(math.exp(-difference)), abs=1e-5)
    assert on == pytest.approx(math.log1p(math.exp(2.0 - difference)), abs=1e-5)
    packed, _, batch = loss_of(model_at(tiny_model_dir), pairs[:1], tmp_path / "packed", center=0.0, share_prompt="always", margin=2.0)
    assert "ends" in batch and packed == pytest.approx(on, abs=1e-5)


def test_members_are_trained_on_their_slices_around_one_centre(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, held_out = model_at(tiny_model_dir), preferences(30)[24:]
    config = reward_config(members=2, slices="parts", epochs=2.0)
    seen: list[str] = []
    results = train_members(config, model, preferences(12), held_out, tmp_path, 0, lambda name, *_: seen.append(name))
    assert list(results) == list(dict.fromkeys(seen)) == ["reward-0", "reward-1"]
    assert sum(r.examples for r in results.values()) == 12
    cards = [(tmp_path / name / "README.md").read_text() for name in results]
    assert "- slice: part 1 of 2 of the prompts" in cards[0] and "- slice: part 2 of 2 of the prompts" in cards[1]
    items = [(p.prompt.messages, text) for p in preferences(12) for text in (p.chosen, p.rejected)]
    for scores in zip(*(s.members for s in load_ensemble([tmp_path / name for name in results], model).score(items)), strict=True):
        assert sum(scores) == pytest.approx(0.0, abs=1e-3), "both count from their mean over the same pairs, not only over their own"
    seen.clear()
    changed = reward_config(members=2, slices="parts", epochs=2.0, aggregate="min", uncertainty_penalty=2.0)
    assert train_members(changed, model, preferences(12), held_out, tmp_path, 0, lambda name, *_: seen.append(name)) == results
    assert seen == [], "how scores become one changes no member"


def test_another_member_leaves_the_others_as_they_are(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, seen = model_at(tiny_model_dir), list[str]()
    train_reward(reward_config(), model, preferences(4), (), tmp_path / "reward-0", 3)
    train_members(reward_config(members=2), model, preferences(4), (), tmp_path, 3, lambda name, *_: seen.append(name))
    assert seen == ["reward-1"]
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "reward-0", tmp_path / "reward-1")


def test_killed_members_go_on_where_they_stopped(tiny_model_dir: Path, tmp_path: Path) -> None:
    config, model = reward_config(members=2, save_steps=1), model_at(tiny_model_dir)
    train_members(config, model, preferences(12), (), tmp_path / "whole", 0)

    def kill(name: str, step: int, total: int, metrics: dict[str, float]) -> None:
        if (name, step) == ("reward-1", 2):
            raise Killed

    with pytest.raises(Killed):
        train_members(config, model, preferences(12), (), tmp_path / "cut", 0, kill)
    results = train_members(config, model, preferences(12), (), tmp_path / "cut", 0)
    assert results["reward-1"].resumed_from == 1
    for name in results:
        assert_same_weights(tmp_path / "whole" / name, tmp_path / "cut" / name)


def test_weight_zero_is_as_if_the_pair_had_no_label(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    pairs = preferences(3)
    for name, flipped in (("a", 0.0), ("b", 1.0)):
        silent = preference(9, p=flipped, weight=0.0)
        train_reward(reward_config(epochs=2.0), model, [*pairs, silent], (), tmp_path / name, 0)
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_batch_and_accumulation_are_interchangeable(tiny_model_dir: Path, tmp_path: Path) -> None:
    pairs = [preference(i, p, w) for i, (p, w) in enumerate([(1.0, 1.0), (0.7, 0.5), (0.9, 2.0), (0.6, 1.0), (0.2, 1.0), (0.5, 0.1)])]
    for name, batch, accumulation in (("whole", 6, 1), ("parts", 1, 6), ("ragged", 4, 2)):
        config = reward_config(batch_size=batch, gradient_accumulation=accumulation, learning_rate=1e-3)
        assert train_reward(config, model_at(tiny_model_dir), pairs, (), tmp_path / name, 0).steps == 1
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", rtol=1e-3, atol=2e-5)
    assert_same_weights(tmp_path / "whole", tmp_path / "ragged", rtol=1e-3, atol=2e-5)


def test_resuming_gives_the_same_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    config, model = reward_config(save_steps=1), model_at(tiny_model_dir)
    train_reward(config, model, preferences(12), (), tmp_path / "whole", 0)
    with pytest.raises(Killed):
        train_reward(config, model, preferences(12), (), tmp_path / "cut", 0, kill_at(3))
    assert train_reward(config, model, preferences(12), (), tmp_path / "cut", 0).resumed_from == 2
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"precision": "nf4"},
        {"precision": "nf4", "gradient_checkpointing": True, "optimizer": "paged_adamw_8bit"},
    ],
)
def test_low_precision_trains_and_scores(tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = reward_config(**changes, lora=LoraSpec(rank=4, layers=1), epochs=3.0)
    result = train_reward(config, model_at(tiny_model_dir), preferences(4), preferences(4), tmp_path, 0)
    assert math.isfinite(result.metrics["held_out_mean_margin"])
    weights = adapter(tmp_path)
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert not any("layers.0." in name for name in weights)


class FixedScores:
    """Scores a response by the number that it is."""

    def score(self, items: Any) -> list[RewardScore]:
        return [aggregate_scores([float(text)]) for _, text in items]


def test_measures_do_not_depend_on_which_side_is_called_chosen() -> None:
    # differences log 3 (right, right, right) and −log 3 (wrong): says ¾, and three of four are: calibrated
    texts = [("1.0986123", "0"), ("2.0986123", "1"), ("1.0986123", "0"), ("0", "1.0986123")]
    pairs = [Preference(prompt(i), a, b, 1.0, 1.0, "t", (), BY) for i, (a, b) in enumerate(texts)]
    there = measure_reward(FixedScores(), pairs)  # type: ignore[arg-type]
    back = measure_reward(FixedScores(), [p.swapped() for p in pairs])  # type: ignore[arg-type]
    assert (there.accuracy, there.n) == (back.accuracy, back.n) == (0.75, 4)
    assert there.calibration_error == pytest.approx(0.0, abs=1e-6)
    assert back.calibration_error == pytest.approx(0.0, abs=1e-6)


def test_measuring_needs_a_label_that_favours_a_side(tiny_model_dir: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to measure on"):
        measure_reward(FixedScores(), preferences(2, p=0.5))  # type: ignore[arg-type]


def test_calibration_error_by_hand() -> None:
    # bin 9: predicted 0.95 twice, one right: |1.9 − 1|; bin 1: predicted 0.15, wrong: 0.15. Over 3.
    bins = reliability_bins([0.97, 0.97, 0.58], [1.0, 0.0, 0.0])
    assert [b.n for b in bins] == [1, 2]
    assert calibration_error(bins) == pytest.approx((2 * 0.47 + 0.58) / 3)


def test_truncated_conversations_are_counted_in_the_result_and_on_the_card(tiny_model_dir: Path, tmp_path: Path) -> None:
    for max_length, truncated in ((512, 0), (12, 4)):
        out = tmp_path / str(max_length)
        result = train_reward(reward_config(max_length=max_length), model_at(tiny_model_dir), preferences(4), (), out, 0)
        assert result.truncated == truncated and result.examples == 4
        assert ("4 truncated on the left, to 12 tokens" in (out / "README.md").read_text()) == (truncated > 0)
        assert (
            train_reward(reward_config(max_length=max_length), model_at(tiny_model_dir), preferences(4), (), out, 0).truncated == truncated
        )


@pytest.mark.parametrize("members", [1, 2])
def test_a_reward_model_without_its_head_or_for_a_deeper_model_is_refused(tiny_model_dir: Path, tmp_path: Path, members: int) -> None:
    from safetensors.torch import load_file, save_file

    folders = [tmp_path / name for name in ("whole", "headless")]
    for folder in folders:
        train_reward(reward_config(), model_at(tiny_model_dir), preferences(4), (), folder, 0)
    weights = load_file(folders[1] / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "score" not in k}, folders[1] / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"headless: this adapter doesn't fit .* \(it has no 'base_model.model.score.weight'\)"):
        load_ensemble(folders[-members:], model_at(tiny_model_dir))
    name = next(k for k in weights if "layers.1." in k and "lora_A" in k)
    save_file({**weights, name.replace("layers.1.", "layers.9."): weights[name].clone()}, folders[1] / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"headless: .*weights for layers that the model hasn't: model\.layers\.9"):
        load_ensemble(folders[-members:], model_at(tiny_model_dir))
