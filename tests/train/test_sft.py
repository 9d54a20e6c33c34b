"""SFT on a tiny model: what moves, what doesn't, and that a kill costs nothing."""

import contextlib
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cai.errors import ModelError, StoreError, TrainingError
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.recipe import LoraSpec
from cai.records import Message, SFTExample, ToldPart
from cai.train.arguments import total_steps
from cai.train.checkpoints import FINISHED, checkpoint_folder
from cai.train.dpo import train_dpo
from cai.train.encode import sft_rows
from cai.train.losses import soft_target_loss
from cai.train.running import quiet_training
from cai.train.sft import sft_trainer, train_sft
from tests.train.builders import adapter, assert_same_weights, dpo_config, example, examples, model_at, preferences, sft_config
from tests.train.killing import Killed, kill_at


def test_every_adapter_weight_moves_and_the_base_does_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    config, model = sft_config(), model_at(tiny_model_dir)
    tokenizer = load_tokenizer(model)
    rows, _ = sft_rows(tokenizer, examples(6), 512)
    with quiet_training():
        trainer = sft_trainer(config, model, tokenizer, rows, tmp_path, 0)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
    assert sum("lora_" in name for name in before) == 2 * 2 * 7, "two matrices on each of seven linear modules in both layers"
    base = load_file(tiny_model_dir / "model.safetensors")
    inside = {n.replace("base_model.model.", "").replace("base_layer.", ""): p for n, p in trainer.model.named_parameters()}
    for name, tensor in base.items():
        assert torch.equal(tensor, inside[name]), name


def test_labels_in_a_batch_are_the_completions(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    tokenizer = load_tokenizer(model)
    rows, _ = sft_rows(tokenizer, examples(3), 512)
    with quiet_training():
        batch = next(iter(sft_trainer(sft_config(), model, tokenizer, rows, tmp_path, 0).get_train_dataloader()))
    decoded = sorted(tokenizer.decode(row[row != -100]) for row in batch["labels"])
    assert decoded == [f"answer {i}.<|im_end|>" for i in range(3)]


def test_training_leaves_a_loadable_adapter_a_card_and_a_log(tiny_model_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = train_sft(
        sft_config(epochs=6.0), model_at(tiny_model_dir), examples(5), tmp_path, 0, lambda step, total, metrics: seen.append((step, total))
    )
    assert seen == [(i, 12) for i in range(1, 13)]
    assert (result.steps, result.examples, result.resumed_from) == (12, 5, 0)
    assert result.metrics["loss"] < 3.0 < 5.0 < math.log(259)
    assert len((tmp_path / "training_log.jsonl").read_text().splitlines()) == 12
    card = (tmp_path / "README.md").read_text()
    assert "- revision: 5" in card
    assert "| lora.rank | 4 |" in card
    assert not checkpoint_folder(tmp_path).exists()
    spec = type(model_at(tiny_model_dir))(path=str(tiny_model_dir), adapter=str(tmp_path), precision="float32")
    tokenizer = load_tokenizer(spec)
    ids = tokenizer("<|im_start|>user\nquestion 3?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False, return_tensors="pt")
    with quiet_training(), torch.inference_mode():
        logits = load_causal_lm(spec)(**ids).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == "a", "the first letter of every completion"


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_sft(sft_config(), model_at(tiny_model_dir), examples(6), tmp_path / name, seed)
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")


def test_a_kill_costs_nothing_but_the_steps_since_the_last_checkpoint(tiny_model_dir: Path, tmp_path: Path) -> None:
    config, model = sft_config(epochs=2.0, save_steps=2), model_at(tiny_model_dir)
    whole = train_sft(config, model, examples(10), tmp_path / "whole", 0)
    with pytest.raises(Killed):
        train_sft(config, model, examples(10), tmp_path / "cut", 0, kill_at(5))
    saved = checkpoint_folder(tmp_path / "cut")
    torn = saved / "checkpoint-5"
    shutil.copytree(saved / "checkpoint-4", torn)
    (torn / "cai_checkpoint.json").unlink()  # killed while saving
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    resumed = train_sft(config, model, examples(10), tmp_path / "cut", 0)
    assert (whole.steps, resumed.steps, resumed.resumed_from) == (6, 6, 4)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    assert len((tmp_path / "cut" / "training_log.jsonl").read_text().splitlines()) == 6


def test_a_finished_training_is_not_repeated_and_a_changed_one_is(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, steps = model_at(tiny_model_dir), []
    first = train_sft(sft_config(), model, examples(4), tmp_path, 0, lambda *a: steps.append(a))
    again = train_sft(sft_config(), model, examples(4), tmp_path, 0, lambda *a: steps.append(a))
    assert first == again
    assert len(steps) == 1
    changed = train_sft(sft_config(), model, examples(5), tmp_path, 0, lambda *a: steps.append(a))
    assert (changed.examples, changed.steps, len(steps)) == (5, 2, 3)


def test_weights_of_a_killed_change_are_not_taken_for_the_old_result(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    train_sft(sft_config(), model, examples(4), tmp_path, 0)
    before = adapter(tmp_path)
    with pytest.raises(Killed):
        train_sft(sft_config(save_steps=1), model, examples(12), tmp_path, 0, kill_at(2))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"of the change, saved just before its finish")
    train_sft(sft_config(), model, examples(4), tmp_path, 0)
    assert all(torch.equal(t, before[name]) for name, t in adapter(tmp_path).items())


def test_a_full_disk_is_a_users_error_that_keeps_the_checkpoint(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch as library

    save = library.save

    def full(*args: Any, **kwargs: Any) -> None:
        if "checkpoint-2" in str(args[1]):
            raise RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file data/0: file write failed")
        save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(library, "save", full)
        with pytest.raises(StoreError, match="the disk is full"):
            train_sft(sft_config(save_steps=1), model_at(tiny_model_dir), examples(12), tmp_path, 0)
    assert train_sft(sft_config(save_steps=1), model_at(tiny_model_dir), examples(12), tmp_path, 0).resumed_from == 1


def test_another_trainings_checkpoint_is_not_gone_on_from(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    with pytest.raises(Killed):
        train_sft(sft_config(save_steps=1), model, examples(12), tmp_path, 0, kill_at(2))
    result = train_sft(sft_config(save_steps=1), model, examples(11), tmp_path, 0)
    assert result.resumed_from == 0
    assert (tmp_path / FINISHED).exists()


def test_batch_and_accumulation_are_interchangeable(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name, batch, accumulation in (("whole", 6, 1), ("parts", 1, 6), ("ragged", 4, 2)):
        config = sft_config(batch_size=batch, gradient_accumulation=accumulation, learning_rate=1e-3)
        assert train_sft(config, model_at(tiny_model_dir), examples(6), tmp_path / name, 0).steps == 1
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", rtol=1e-3, atol=2e-5)
    assert_same_weights(tmp_path / "whole", tmp_path / "ragged", rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_low_precision_trains_float32_adapters(tiny_model_dir: Path, tmp_path: Path, precision: Any) -> None:
    result = train_sft(sft_config(precision=precision), model_at(tiny_model_dir), examples(2), tmp_path, 0)
    assert math.isfinite(result.metrics["loss"])
    assert {t.dtype for t in adapter(tmp_path).values()} == {torch.float32}


def test_options_that_a_recipe_may_choose(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = sft_config(
        optimizer="adamw_8bit", gradient_checkpointing=True, lora=LoraSpec(rank=2, layers=1, target_modules="q_proj,v_proj")
    )
    train_sft(config, model_at(tiny_model_dir), examples(1), tmp_path, 0)
    names = {name.split("layers.")[1].rsplit(".", 2)[0] for name in adapter(tmp_path)}
    assert names == {"1.self_attn.q_proj", "1.self_attn.v_proj"}


def test_training_goes_on_from_the_specs_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    first = train_sft(sft_config(epochs=8.0), model, examples(4), tmp_path / "first", 0)
    spec = type(model)(path=model.path, adapter=str(tmp_path / "first"), precision="float32")
    second = train_sft(sft_config(learning_rate=1e-6), spec, examples(4), tmp_path / "second", 0)
    assert second.metrics["loss"] <= first.metrics["loss"] + 0.05


def test_training_goes_on_from_no_adapter_that_lacks_weights_or_has_others(tiny_model_dir: Path, tmp_path: Path) -> None:
    """PEFT starts them at random, or leaves them out, without a word."""
    model, first = model_at(tiny_model_dir), tmp_path / "first"
    train_sft(sft_config(), model, examples(4), first, 0)
    spec, weights = type(model)(path=model.path, adapter=str(first), precision="float32"), adapter(first)
    deeper = {name.replace("layers.1.", "layers.9."): tensor.clone() for name, tensor in weights.items() if "layers.1." in name}
    for changed, said in (({k: v for k, v in weights.items() if "layers.1." not in k}, "no weights"), ({**weights, **deeper}, "layers.9")):
        save_file(changed, first / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=said):
            train_sft(sft_config(), spec, examples(4), tmp_path / "second", 0)
        with pytest.raises(ModelError, match=said):
            train_dpo(dpo_config(), model, first, preferences(4), tmp_path / "policy", 0)


def test_a_diverging_training_stops_and_says_what_to_do(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"training diverged[\s\S]*lower learning_rate"):
        train_sft(sft_config(learning_rate=1e30, epochs=8.0), model_at(tiny_model_dir), examples(4), tmp_path, 0)
    assert not (tmp_path / FINISHED).exists()


def test_an_adapter_on_nothing_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"target_modules"):
        train_sft(sft_config(lora=LoraSpec(target_modules="no_such_module")), model_at(tiny_model_dir), examples(1), tmp_path, 0)


@pytest.mark.parametrize(
    ("batch", "accumulation", "epochs", "n", "steps"), [(8, 1, 1, 1, 1), (8, 1, 1, 9, 2), (4, 2, 1, 9, 2), (4, 3, 2, 9, 2)]
)
def test_steps_are_counted_as_the_trainer_counts(
    tiny_model_dir: Path, tmp_path: Path, batch: int, accumulation: int, epochs: int, n: int, steps: int
) -> None:
    config = sft_config(batch_size=batch, gradient_accumulation=accumulation, epochs=float(epochs))
    assert total_steps(config, n) == steps
    assert train_sft(config, model_at(tiny_model_dir), examples(n), tmp_path, 0).steps == steps


def told(n: int) -> list[SFTExample]:
    """Examples of one and of two parts, of uneven lengths, and one that a person wrote."""
    asked = lambda i, words: (Message("user", f"question {i}? {words}"),)  # noqa: E731
    one = [replace(example(i, f"a{i}" * (i + 1)), parts=(ToldPart(asked(i, "Be brief."), "", f"a{i}" * (i + 1)),)) for i in range(n)]
    parts = (ToldPart(asked(9, "Be brief."), "", "Strike."), ToldPart(asked(9, "Name a risk."), "Risk", " Risk: fire."))
    return [*one, replace(example(9, "Strike. Risk: fire."), parts=parts), example(5)]


def test_soft_targets_in_a_padded_batch_are_those_of_each_row_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = model_at(tiny_model_dir)
    tokenizer = load_tokenizer(model)
    rows, _ = sft_rows(tokenizer, told(3), 512, soft_targets=True)
    with quiet_training():
        trainer = sft_trainer(sft_config(batch_size=5), model, tokenizer, rows, tmp_path, 0)
        for name, p in trainer.model.named_parameters():  # a student that isn't the teacher
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.3)
        batch = trainer.data_collator(rows)
        loss = trainer.compute_loss(trainer.model, batch)
        alone = trainer.compute_loss(trainer.model, trainer.data_collator(rows[-1:]))

    def logits(ids: list[int], *, teacher: bool = False) -> torch.Tensor:
        with torch.no_grad(), trainer.model.disable_adapter() if teacher else contextlib.nullcontext():
            return trainer.model(input_ids=torch.tensor([ids])).logits[0, :-1]

    losses = []
    for row in rows:
        ids = row["input_ids"]
        student, taught = logits(ids), logits(ids)
        for part in row["told"]:
            end, length = len(ids) - 1 - part["end"], part["start"] - part["end"]
            taught[end - length : end] = logits(part["ids"], teacher=True)[-length:]
        each = soft_target_loss(student, taught, torch.tensor(ids[1:]), torch.tensor(row["forced"][1:]).bool())
        losses.append(each[torch.tensor(row["labels"][1:]) != -100])
    assert loss.item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
    assert rows[-1]["told"] == [] and alone.item() == pytest.approx(losses[-1].mean().item(), rel=1e-4)
    assert sum(map(len, losses)) == int((batch["labels"] != -100).sum())


def test_soft_targets_bring_the_student_to_what_the_told_model_says(tiny_model_dir: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    config = sft_config(epochs=30.0)
    train_sft(config, model_at(tiny_model_dir), told(4)[:4], tmp_path, 0, lambda step, total, metrics: seen.append(metrics["loss"]))
    assert seen[-1] < 0.5 * seen[0]
    assert "soft targets for 4 of 4" in (tmp_path / "README.md").read_text()


def test_soft_targets_resume_to_the_same_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = sft_config(epochs=3.0, save_steps=1, batch_size=2)
    train_sft(config, model_at(tiny_model_dir), told(3), tmp_path / "calm", 0)
    with pytest.raises(Killed):
        train_sft(config, model_at(tiny_model_dir), told(3), tmp_path / "killed", 0, kill_at(4))
    result = train_sft(config, model_at(tiny_model_dir), told(3), tmp_path / "killed", 0)
    assert result.resumed_from > 0
    assert_same_weights(tmp_path / "calm", tmp_path / "killed")


def test_the_model_stays_the_teacher_of_an_adapter_that_is_given_as_a_start(tiny_model_dir: Path, tmp_path: Path) -> None:
    train_sft(sft_config(epochs=4.0), model_at(tiny_model_dir), examples(4), tmp_path / "first", 0)
    seen: list[float] = []
    same = [replace(e, parts=(ToldPart(e.prompt.messages, "", e.completion),)) for e in examples(4)]
    given = (sft_config(epochs=60.0, learning_rate=1e-2), model_at(tiny_model_dir), same, tmp_path / "second", 0)
    train_sft(*given, lambda step, total, metrics: seen.append(metrics["loss"]), tmp_path / "first")
    assert seen[0] > 1e-3 and seen[-1] < 0.2 * seen[0], "it begins where the adapter is, and is led back to what the model says"


def test_an_adapter_that_is_trained_further_is_its_own_teacher(tiny_model_dir: Path, tmp_path: Path) -> None:
    train_sft(sft_config(epochs=4.0), model_at(tiny_model_dir), examples(4), tmp_path / "first", 0)
    spec = type(model_at(tiny_model_dir))(path=str(tiny_model_dir), adapter=str(tmp_path / "first"), precision="float32")
    seen: list[float] = []
    same = [replace(e, parts=(ToldPart(e.prompt.messages, "", e.completion),)) for e in examples(4)]
    train_sft(sft_config(), spec, same, tmp_path / "second", 0, lambda step, total, metrics: seen.append(metrics["loss"]))
    assert seen[0] == pytest.approx(0.0, abs=1e-5), "without principles in context, student and teacher are one"
