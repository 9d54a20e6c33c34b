"""KTO on a tiny model: TRL's own loss as the yardstick, soft labels, and the same checks as for DPO."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from cai.errors import TrainingError
from cai.models.local.loading import load_tokenizer
from cai.train.encode import kto_rows
from cai.train.kto import kto_trainer, train_kto
from cai.train.running import PolicyJob, quiet_training
from tests.train.builders import adapter, assert_same_weights, dpo_config, model_at, moved, preference, preferences
from tests.train.killing import Killed, kill_at


def trainer_for(tiny: Path, sft: Path, pairs: list[Any], out: Path, **changes: Any) -> Any:
    tokenizer = load_tokenizer(model_at(tiny))
    rows, _ = kto_rows(tokenizer, pairs, 512, 0)
    with quiet_training():
        return kto_trainer(PolicyJob(dpo_config(batch_size=len(rows), **changes), model_at(tiny), sft, out, 0), tokenizer, rows)


def test_a_pair_is_two_rows_told_from_either_side_and_shuffled(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(model_at(tiny_model_dir))
    rows, dropped = kto_rows(tokenizer, [preference(i, 0.8, 0.5) for i in range(20)], 512, 0)
    texts = [tokenizer.decode(row["completion_ids"]) for row in rows]
    assert sorted(texts) == sorted(t + "<|im_end|>" for i in range(20) for t in (f"yes {i}, gladly.", f"no {i}!"))
    assert {(t[:3] == "yes", round(row["p_desirable"], 6), row["weight"]) for t, row in zip(texts, rows, strict=True)} == {
        (True, 0.8, 0.5),
        (False, 0.2, 0.5),
    }
    assert dropped == {}
    together = sum(a["prompt_ids"] == b["prompt_ids"] for a, b in pairwise(rows))
    assert together < 5, "neighbours are answers to different prompts, mostly"
    assert rows != kto_rows(tokenizer, [preference(i, 0.8, 0.5) for i in range(20)], 512, 1)[0]


def test_the_divergence_is_estimated_on_another_prompts_completion(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(model_at(tiny_model_dir))
    for pairs in (1, 2, 20):
        rows, _ = kto_rows(tokenizer, [preference(i) for i in range(pairs)], 512, 0)
        for row in rows:
            [source] = [r for r in rows if r["completion_ids"] == row["KL_completion_ids"]]
            assert (source["prompt_ids"] != row["prompt_ids"]) == (pairs > 1) and source is not row


def test_certain_labels_give_trls_own_loss(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    from trl import KTOTrainer
    from trl.trainer.utils import add_fused_lm_head

    trainer = moved(trainer_for(tiny_model_dir, sft, [preference(0), preference(100), preference(10, 0.0)], tmp_path))
    for name, p in trainer.model.named_parameters():  # the way back, on which the estimate of the divergence is above 0
        if ".default." in name:
            reference = trainer.model.get_parameter(name.replace(".default.", ".ref."))
            p.data, reference.data = reference.data, p.data
    batch = trainer.data_collator(list(trainer.train_dataset))
    with quiet_training():
        ours = float(trainer.compute_loss(trainer.model, batch))
        assert trainer._metrics["train"]["kl"][-1] > 0.0
        add_fused_lm_head(trainer.model.get_base_model(), outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        plain = {k: v for k, v in batch.items() if k not in ("p_desirable", "weight")}
        theirs = float(KTOTrainer.compute_loss(trainer, trainer.model, plain))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert abs(ours - 0.5) > 1e-3


def test_the_policy_moves_whole_from_its_reference_which_stays(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_model_dir, sft, preferences(4), tmp_path, epochs=4.0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with quiet_training():
        trainer.train()
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
    first, *_, last = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert (first["rewards/margins"], first["kl"], first["loss"]) == (0.0, 0.0, pytest.approx(0.5))
    assert last["rewards/margins"] > 0.1


def test_a_label_of_a_half_does_not_move_the_policy(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    train_kto(dpo_config(), model_at(tiny_model_dir), sft, preferences(4, 0.5), tmp_path / "half", 0)
    assert_same_weights(tmp_path / "half", sft)
    assert "KTO, reference: the SFT adapter" in (tmp_path / "half" / "README.md").read_text()
    assert adapter(tmp_path / "half").keys() == adapter(sft).keys()


def test_resuming_gives_the_same_policy(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    config, model = dpo_config(save_steps=1), model_at(tiny_model_dir)
    whole = train_kto(config, model, sft, preferences(6), tmp_path / "whole", 0)
    with pytest.raises(Killed):
        train_kto(config, model, sft, preferences(6), tmp_path / "cut", 0, kill_at(3))
    resumed = train_kto(config, model, sft, preferences(6), tmp_path / "cut", 0)
    assert (whole.steps, resumed.resumed_from) == (3, 2)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_batch_of_one_is_refused_and_a_policy_off_its_reference_too(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="batch_size is 1"):
        train_kto(dpo_config(batch_size=1), model_at(tiny_model_dir), sft, preferences(2), tmp_path, 0)
    trainer = moved(trainer_for(tiny_model_dir, sft, preferences(2), tmp_path))
    trainer.state.global_step = 0
    with quiet_training(), pytest.raises(TrainingError, match="differs from its reference"):
        trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
