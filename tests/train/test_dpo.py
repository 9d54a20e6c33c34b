"""DPO on a tiny model: the reference, soft labels, weights, and TRL's own loss as the yardstick."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cai.core.jsonl import read_records
from cai.errors import TrainingError
from cai.models.local.loading import load_tokenizer
from cai.recipe import DPOConfig, MonitorConfig
from cai.records import MonitorPoint
from cai.train.checkpoints import FINISHED
from cai.train.dpo import dpo_trainer, train_dpo
from cai.train.encode import dpo_rows
from cai.train.monitor import FRONTIER, Monitor, MonitorSpec, Scores
from cai.train.running import PolicyJob, quiet_training
from cai.train.sft import train_sft
from cai.train.trainers import completion_positions_only, reference_of
from tests.train.builders import (
    adapter,
    assert_same_weights,
    dpo_config,
    examples,
    model_at,
    moved,
    preference,
    preferences,
    sft_config,
)
from tests.train.killing import Killed, kill_at


def trainer_for(tiny: Path, sft: Path | None, pairs: list[Any], out: Path, **changes: Any) -> Any:
    tokenizer = load_tokenizer(model_at(tiny))
    rows, _ = dpo_rows(tokenizer, pairs, 512)
    with quiet_training():
        return dpo_trainer(PolicyJob(dpo_config(batch_size=len(pairs), **changes), model_at(tiny), sft, out, 0), tokenizer, rows)


def batch_of(trainer: Any) -> dict[str, Any]:
    batch: dict[str, Any] = trainer.data_collator(list(trainer.train_dataset))
    return batch


def our_loss(trainer: Any, batch: dict[str, Any], count: int | None = None) -> float:
    with quiet_training():
        return float(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=None if count is None else torch.tensor(count)))


def trl_loss(trainer: Any, **settings: Any) -> float:
    """What TRL's own trainer makes of the same weights and rows, on its own collator."""
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.utils import add_fused_lm_head

    trainer.model.get_base_model().set_attn_implementation("sdpa")
    add_fused_lm_head(trainer.model.get_base_model(), outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    for name, value in settings.items():
        setattr(trainer, name, value)
    batch = DataCollatorForPreference(pad_token_id=trainer.processing_class.pad_token_id)(list(trainer.train_dataset))
    with quiet_training():
        return float(DPOTrainer.compute_loss(trainer, trainer.model, batch))


UNEVEN = [preference(0), preference(100), preference(10)]


@pytest.mark.parametrize("share", ["always", "never"])
@pytest.mark.parametrize(
    ("dpo", "theirs"),
    [
        (DPOConfig(), {}),
        (DPOConfig(loss="robust", label_smoothing=0.1), {"loss_types": ["robust"], "label_smoothing": 0.1}),
        (DPOConfig(loss="ipo"), {"loss_types": ["ipo"]}),
        (DPOConfig(loss="sigmoid_norm"), {"loss_types": ["sigmoid_norm"]}),
    ],
)
def test_certain_labels_give_trls_own_loss(
    tiny_model_dir: Path, sft: Path, tmp_path: Path, dpo: DPOConfig, theirs: dict[str, Any], share: str
) -> None:
    trainer = moved(trainer_for(tiny_model_dir, sft, UNEVEN, tmp_path, dpo=dpo, share_prompt=share))
    ours = our_loss(trainer, batch_of(trainer))
    at_reference = our_loss(trainer_for(tiny_model_dir, sft, UNEVEN, tmp_path, dpo=dpo, share_prompt=share), batch_of(trainer))
    assert ours == pytest.approx(trl_loss(trainer, **theirs), rel=1e-5)
    assert abs(ours - at_reference) > 1e-3


def test_a_new_adapter_has_the_bare_base_as_reference_as_in_trl(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer = moved(trainer_for(tiny_model_dir, None, UNEVEN, tmp_path))
    assert our_loss(trainer, batch_of(trainer)) == pytest.approx(trl_loss(trainer), rel=1e-5)


@pytest.mark.parametrize("dpo", [DPOConfig(), DPOConfig(loss="ipo")])
def test_a_shared_prompt_changes_no_loss_and_no_gradient(tiny_model_dir: Path, sft: Path, tmp_path: Path, dpo: DPOConfig) -> None:
    pairs = [replace(p, p_chosen=q) for p, q in zip(UNEVEN, (1.0, 0.7, 0.2), strict=True)]
    found = []
    for share in ("always", "never"):
        trainer = moved(trainer_for(tiny_model_dir, sft, pairs, tmp_path, dpo=dpo, share_prompt=share))
        with quiet_training():
            loss = trainer.compute_loss(trainer.model, batch_of(trainer))
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        largest = float(gradient.abs().max())
        assert largest > 0, name
        difference = float((gradient - found[1][1][name]).abs().max())
        assert difference < 1e-4 * largest, (name, difference, largest)


def test_reference_passes_are_made_in_the_first_epoch_only(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_at(tiny_model_dir))
    rows, _ = dpo_rows(tokenizer, [preference(i) for i in range(5)], 512)
    with quiet_training():
        trainer = dpo_trainer(PolicyJob(dpo_config(epochs=3.0, batch_size=2), model_at(tiny_model_dir), sft, tmp_path, 0), tokenizer, rows)
        passes: list[bool] = []
        hook = trainer.model.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
        trainer.train()
        hook.remove()
    assert (passes.count(True), passes.count(False)) == (9, 3)
    trainer.model.get_base_model().set_attn_implementation("sdpa")
    again = []
    with reference_of(trainer):
        for row in rows:
            for ids in (row["chosen_ids"], row["rejected_ids"]):
                logits = trainer.model(input_ids=torch.tensor([row["prompt_ids"] + ids])).logits[0, -len(ids) - 1 : -1]
                again.append(torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids)[:, None]).sum())
    torch.testing.assert_close(torch.stack(again).view(-1, 2), trainer.reference_logps_N2, rtol=1e-5, atol=1e-4)


def test_scoring_only_completions_changes_no_log_probability_and_no_gradient(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = moved(trainer_for(tiny_model_dir, sft, [preference(i) for i in (0, 10, 100)], tmp_path, share_prompt="never"))
    batch = batch_of(trainer)
    arguments = {name: batch[name] for name in ("input_ids", "attention_mask", "shift_labels")}
    found = []
    for only_completions in (True, False):
        trainer.model.zero_grad()
        with completion_positions_only() if only_completions else nullcontext():
            log_probs = trainer.model(**arguments, fused_lm_head=True).log_probs
        log_probs.sum().backward()
        found.append((log_probs.detach(), [p.grad.clone() for p in trainer.model.parameters() if p.requires_grad]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_policy_moves_whole_and_base_and_reference_stay(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_model_dir, sft, preferences(4), tmp_path, epochs=3.0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with quiet_training():
        trainer.train()
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
    reference = {n.replace(".ref.", "."): p for n, p in trainer.model.named_parameters() if ".ref." in n}
    saved = adapter(sft)
    assert len(reference) == len(saved)
    for name, tensor in saved.items():
        assert torch.equal(reference[name], tensor), name
    first, *_, last = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert (first["rewards/margins"], first["loss"]) == (0.0, pytest.approx(math.log(2.0)))
    assert last["rewards/margins"] > 0.1
    assert last["rewards/accuracies"] == 1.0


def test_only_the_policy_is_saved(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    result = train_dpo(dpo_config(), model_at(tiny_model_dir), sft, preferences(4), tmp_path, 0)
    assert result.steps == 1
    assert not (tmp_path / "ref").exists()
    assert adapter(tmp_path).keys() == adapter(sft).keys()
    assert "reference: the SFT adapter" in (tmp_path / "README.md").read_text()


def test_a_label_of_a_half_does_not_move_the_policy_and_a_lower_one_turns_it(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    for name, p in (("half", 0.5), ("tenth", 0.1)):
        train_dpo(dpo_config(), model_at(tiny_model_dir), sft, preferences(4, p), tmp_path / name, 0)
    # weight decay is 0 and the gradient at the reference is σ(0) − ½ = 0 up to rounding, which Adam would blow up if it were not 0
    assert_same_weights(tmp_path / "half", sft)
    swapped = [p.swapped() for p in preferences(4, 0.1)]
    train_dpo(dpo_config(), model_at(tiny_model_dir), sft, swapped, tmp_path / "swapped", 0)
    assert_same_weights(tmp_path / "tenth", tmp_path / "swapped", rtol=1e-3, atol=2e-5)


def test_weight_zero_is_as_if_the_pair_had_no_label(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    for name, p in (("a", 0.0), ("b", 1.0)):
        pairs = [*preferences(3), preference(9, p, weight=0.0)]
        train_dpo(dpo_config(epochs=2.0), model_at(tiny_model_dir), sft, pairs, tmp_path / name, 0)
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_a_soft_weighted_loss_by_hand(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = moved(trainer_for(tiny_model_dir, sft, [preference(0, 0.8, 0.5)], tmp_path))
    batch = batch_of(trainer)
    loss = our_loss(trainer, batch, count=1)
    x = trainer._metrics["train"]["rewards/margins"][-1]
    assert loss == pytest.approx(0.5 * (0.8 * math.log1p(math.exp(-x)) + 0.2 * math.log1p(math.exp(x))), rel=1e-5)


def test_batch_and_accumulation_are_interchangeable(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    pairs = [preference(i, p, w) for i, (p, w) in enumerate([(1.0, 1.0), (0.7, 0.5), (0.9, 2.0), (0.6, 1.0), (0.2, 1.0), (0.9, 0.1)])]
    for name, batch, accumulation in (("whole", 6, 1), ("parts", 1, 6), ("ragged", 4, 2)):
        config = dpo_config(batch_size=batch, gradient_accumulation=accumulation, learning_rate=1e-3)
        assert train_dpo(config, model_at(tiny_model_dir), sft, pairs, tmp_path / name, 0).steps == 1
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", rtol=1e-3, atol=2e-5)
    assert_same_weights(tmp_path / "whole", tmp_path / "ragged", rtol=1e-3, atol=2e-5)


def test_resuming_gives_the_same_policy(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    config, model = dpo_config(save_steps=1), model_at(tiny_model_dir)
    whole = train_dpo(config, model, sft, preferences(12), tmp_path / "whole", 0)
    with pytest.raises(Killed):
        train_dpo(config, model, sft, preferences(12), tmp_path / "cut", 0, kill_at(3))
    resumed = train_dpo(config, model, sft, preferences(12), tmp_path / "cut", 0)
    assert (whole.steps, resumed.resumed_from) == (3, 2)
    assert resumed.metrics == whole.metrics
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_another_sft_adapter_is_another_training(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    model, steps = model_at(tiny_model_dir), []
    other = tmp_path / "other"
    train_sft(sft_config(), model, examples(3), other, 1)
    for start in (sft, sft, other):
        train_dpo(dpo_config(), model, start, preferences(2), tmp_path / "policy", 0, lambda *a: steps.append(a))
    assert len(steps) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"precision": "nf4"},
        {"precision": "nf4", "gradient_checkpointing": True, "optimizer": "paged_adamw_8bit"},
    ],
)
def test_low_precision_starts_at_the_reference(tiny_model_dir: Path, sft: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    logs: list[dict[str, float]] = []
    config = dpo_config(**changes, epochs=2.0)
    train_dpo(config, model_at(tiny_model_dir), sft, preferences(4), tmp_path, 0, lambda *a: logs.append(a[2]))
    assert logs[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert logs[1]["rewards/margins"] != 0.0
    assert {t.dtype for t in adapter(tmp_path).values()} == {torch.float32}


def test_a_policy_that_is_not_its_reference_is_refused(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_model_dir, sft, preferences(4), tmp_path)
    moved(trainer)
    trainer.state.global_step = 0
    with pytest.raises(TrainingError, match="differs from its reference"):
        our_loss(trainer, batch_of(trainer))


def test_a_diverging_training_is_not_finished(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in sft.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    save_file({name: torch.full_like(t, float("nan")) for name, t in adapter(sft).items()}, broken / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match="training diverged: loss is nan at step 1 of 1"):
        train_dpo(dpo_config(), model_at(tiny_model_dir), broken, preferences(2), tmp_path / "policy", 0)
    assert not (tmp_path / "policy" / FINISHED).exists()


def test_a_watched_policy_ends_with_its_best_weights_by_gold(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    """Proxy: letters. Gold: what comes first scores best, so that the look before the first step is the best one."""
    config = dpo_config(batch_size=1, learning_rate=1e-2, watch=MonitorConfig(every_steps=2))
    pairs, looks = preferences(4), iter(range(100, 0, -1))
    watched = [p.prompt for p in pairs[:2]]

    def watch(out: Path) -> MonitorSpec:
        def gold(items: Any) -> list[float]:
            return [float(next(looks))] * len(items)

        def proxy(items: Any) -> Scores:
            return Scores([float(sum(map(str.isalpha, text))) for _, text in items])

        return MonitorSpec(lambda: Monitor(watched, config.watch, proxy, gold, out / FRONTIER), "letters")

    plain, seen = tmp_path / "plain", tmp_path / "seen"
    train_dpo(config, model_at(tiny_model_dir), sft, pairs, plain, 0)
    train_dpo(config, model_at(tiny_model_dir), sft, pairs, seen, 0, monitor_spec=watch(seen))
    points = list(read_records(seen / FRONTIER, MonitorPoint))
    assert [p.step for p in points] == [0, 2, 4] and points[0].kl == 0.0 and points[-1].kl != 0.0
    start, end, chosen = (load_file(f / "adapter_model.safetensors") for f in (sft, plain, seen))
    assert all(torch.equal(chosen[name], start[name]) for name in start), "the best look was the first"
    assert any(not torch.equal(end[name], start[name]) for name in start)
    assert "step 0 of 4" in (seen / "README.md").read_text()
