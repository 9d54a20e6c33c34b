"""On-policy self-distillation on a tiny model: what moves and towards whom, that a kill costs nothing, and when it ends."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cai.errors import TrainingError
from cai.models.local.loading import load_tokenizer
from cai.recipe import OnlineConfig, PolicyConfig, SelfDistillConfig
from cai.records import Message
from cai.train.checkpoints import TrainResult
from cai.train.rl.grpo import prompt_rows
from cai.train.rl.self_distill import answers_per_step, self_distill_trainer, train_self_distilled
from cai.train.running import PolicyJob, quiet_training
from cai.train.sft import train_sft
from tests.train.builders import FAST, adapter, assert_same_weights, example, model_at, prompt, sft_config
from tests.train.killing import Killed, kill_at

PROMPTS = [prompt(i) for i in range(4)]
TOLD = {p.id: [Message("user", f"{p.messages[-1].content} Shout!")] for p in PROMPTS}


def config_of(**changes: Any) -> PolicyConfig:
    online = OnlineConfig(max_tokens=8)
    return PolicyConfig(**{**FAST, "method": "distill", "learning_rate": 2e-3, "online": online, **changes})


@pytest.fixture(scope="module")
def sft(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an adapter that was taught to answer in capitals when told to."""
    folder = tmp_path_factory.mktemp("sft")
    plain = [example(i, "quietly") for i in range(4)]
    loud = [type(e)(prompt(i, TOLD[f"p{i}"][0].content), "LOUDLY!", (), "revision", e.provenance) for i, e in enumerate(plain)]
    train_sft(sft_config(epochs=30.0, learning_rate=2e-2), model_at(tiny_model_dir), plain + loud, folder, 0)
    return folder


def train(tiny: Path, sft: Path | None, out: Path, config: PolicyConfig, **more: Any) -> TrainResult:
    return train_self_distilled(PolicyJob(config, model_at(tiny), sft, out, 0, **more), PROMPTS, TOLD)


def trainer_for(tiny: Path, sft: Path | None, out: Path, config: PolicyConfig) -> Any:
    job = PolicyJob(config, model_at(tiny), sft, out, 0, warn=print)
    tokenizer = load_tokenizer(job.start)
    rows, _ = prompt_rows(tokenizer, PROMPTS, config, answers_per_step(config), TOLD)
    with quiet_training():
        return self_distill_trainer(job, tokenizer, rows)


def test_the_policy_learns_what_the_teacher_does_when_told_and_the_teacher_stays(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_model_dir, sft, tmp_path, config_of(epochs=60.0))
    assert trainer.sampled(trainer.token_ids([[{"role": "user", "content": "question 1?"}]]))
    with quiet_training():
        trainer.train()
    frozen = {n.replace(".ref.", "."): p for n, p in trainer.model.named_parameters() if ".ref." in n}
    assert frozen.keys() == adapter(sft).keys()
    for name, tensor in adapter(sft).items():
        assert torch.equal(frozen[name], tensor), name
    logs = [e for e in trainer.state.log_history if "loss" in e]
    assert len(logs) == 60
    first, last = (sum(e["loss"] for e in part) / 5 for part in (logs[:5], logs[-5:]))
    assert last < 0.5 * first


def test_the_teacher_reads_the_told_conversation_and_the_policy_the_plain_one(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_model_dir, sft, tmp_path, config_of())
    with quiet_training():
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    tokenizer = trainer.processing_class
    asked = tokenizer.batch_decode(batch["prompt_ids"])
    told = tokenizer.batch_decode(batch["teacher_input_ids"])
    answers = tokenizer.batch_decode(batch["completion_ids"])
    assert all("Shout!" not in text for text in asked) and all("Shout!" in text for text in told)
    for plain, text, answer in zip(asked, told, answers, strict=True):
        number = plain.split("question ")[1][0]
        assert f"question {number}? Shout!" in text and text.endswith(answer)


def test_without_principles_the_policy_starts_where_its_teacher_stands(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    logs: list[dict[str, float]] = []
    same = {p.id: p.messages for p in PROMPTS}
    train_self_distilled(PolicyJob(config_of(), model_at(tiny_model_dir), sft, tmp_path, 0, lambda *a: logs.append(a[2])), PROMPTS, same)
    assert logs[0]["loss"] == pytest.approx(0.0, abs=1e-5)


def test_resuming_gives_the_same_policy(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    config = config_of(save_steps=2, epochs=6.0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    calm = train(tiny_model_dir, sft, whole, config)
    with pytest.raises(Killed):
        train(tiny_model_dir, sft, cut, config, on_log=kill_at(5))
    resumed = train(tiny_model_dir, sft, cut, config)
    assert (calm.steps, calm.resumed_from, resumed.resumed_from) == (6, 0, 4)
    assert_same_weights(whole, cut)
    assert train(tiny_model_dir, sft, cut, config, on_log=kill_at(0)) == resumed, "a finished training is not begun again"


def test_it_ends_after_the_most_steps(tiny_model_dir: Path, sft: Path, tmp_path: Path) -> None:
    assert train(tiny_model_dir, sft, tmp_path, config_of(epochs=50.0, distill=SelfDistillConfig(max_steps=3))).steps == 3


def test_it_ends_where_answers_collapse_and_at_the_same_step_after_a_kill(
    tiny_model_dir: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the eighth step on every answer is its end token alone."""
    with quiet_training():
        from cai.train.rl.self_distill_trainer import SelfDistillRun

    def sampled(self: SelfDistillRun, prompts: Any) -> list[list[int]]:
        end = self.processing_class.eos_token_id
        return [[end]] * len(prompts) if self.state.global_step >= 7 else [[65, 66, 67, 68, 69, end]] * len(prompts)

    def killed(*_: Any) -> None:
        raise Killed

    told: list[str] = []
    monkeypatch.setattr(SelfDistillRun, "sampled", sampled)
    config, whole, cut = config_of(epochs=50.0, save_steps=1), tmp_path / "whole", tmp_path / "cut"
    calm = train(tiny_model_dir, sft, whole, config, warn=told.append)
    assert 10 <= calm.steps < 15 and len(told) == 1
    assert f"policy: step {calm.steps}: answers have" in told[0] and "had 6 at first; training ends here" in told[0]
    with monkeypatch.context() as m:
        m.setattr("cai.train.running.write_card", killed)
        with pytest.raises(Killed):
            train(tiny_model_dir, sft, cut, config)
    assert train(tiny_model_dir, sft, cut, config).steps == calm.steps
    assert_same_weights(whole, cut)


def test_too_few_prompts_that_fit_with_their_principles_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    long = {p.id: [Message("user", "Shout! " * 100)] for p in PROMPTS}
    with pytest.raises(TrainingError, match="a step needs 4 prompts, but only 0 of 4 fit, 4 too long"):
        train_self_distilled(PolicyJob(config_of(max_length=120), model_at(tiny_model_dir), None, tmp_path, 0), PROMPTS, long)
