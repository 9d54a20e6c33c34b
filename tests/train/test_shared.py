"""One base with every role on it: each role gives what it gives alone, and frozen means frozen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import cai.train.rl.shared_base as shared_module
from cai.errors import ModelError, TrainingError
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.recipe import ModelSpec
from cai.train.encode import encode_turn
from cai.train.reward.ensemble import load_ensemble
from cai.train.rl.shared_base import SharedBase, load_shared_base
from cai.train.running import quiet_training
from tests.train.builders import FAST, adapter, model_at, prompt

ROWS = [[3, 40, 41, 42, 60], [3, 50, 51], [7, 8, 9, 10, 11, 12, 13]]


def load(tiny: Path, sft: Path | None, members: tuple[Path, ...], precision: str = "float32", **options: Any) -> SharedBase:
    with quiet_training():
        return load_shared_base(model_at(tiny), precision, sft, members, FAST["lora"], **options)


def alone(tiny: Path, sft: Path | None, rows: list[list[int]]) -> list[torch.Tensor]:
    """Log-probabilities of each row's next tokens by an ordinary model with the adapter merged in."""
    model = load_causal_lm(ModelSpec(path=str(tiny), adapter=None if sft is None else str(sft), precision="float32"))
    found = []
    for row in rows:
        logits = model(torch.tensor([row])).logits[0, :-1]
        found.append(torch.log_softmax(logits / 0.7, -1).gather(1, torch.tensor(row[1:])[:, None])[:, 0])
    return found


def test_policy_and_reference_are_the_sft_model_and_without_one_the_base(
    tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]
) -> None:
    for start in (sft, None):
        shared = load(tiny_model_dir, start, members)
        wanted = alone(tiny_model_dir, start, ROWS)
        for role in ("policy", "reference"):
            hidden = shared.hidden(role, ROWS).detach()
            for i, row in enumerate(ROWS):
                logps, _ = shared.logprobs(hidden[i, : len(row) - 1], torch.tensor(row[1:]), 0.7)
                torch.testing.assert_close(logps, wanted[i], rtol=1e-4, atol=1e-4)


def test_members_score_as_they_do_alone(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> None:
    shared = load(tiny_model_dir, sft, members)
    tokenizer = load_tokenizer(model_at(tiny_model_dir))
    texts = ["short", "a longer answer, to be sure", "no"]
    rows = [[*asked, *answer] for asked, answer in (encode_turn(tokenizer, prompt(i).messages, t) for i, t in enumerate(texts))]
    scores = shared.scores(rows)
    for i, folder in enumerate(members):
        ensemble = load_ensemble([folder], model_at(tiny_model_dir))
        wanted = [s.value for s in ensemble.score([(prompt(j).messages, t) for j, t in enumerate(texts)])]
        assert scores[i].tolist() == pytest.approx(wanted, abs=1e-4)
    assert not torch.allclose(scores[0], scores[1])


def test_a_member_sees_the_end_of_what_is_too_long_for_it(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> None:
    shared = load(tiny_model_dir, sft, members)
    shared.max_length["reward_0"] = 3
    scores = shared.scores([ROWS[0], [99, *ROWS[0]]])
    assert float(scores[0, 0]) == pytest.approx(float(scores[0, 1]), abs=1e-5)
    assert abs(float(scores[1, 0] - scores[1, 1])) > 1e-3


def test_the_value_function_starts_as_the_first_member(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> None:
    shared = load(tiny_model_dir, sft, members)
    hidden = shared.hidden("value", ROWS)
    values = shared.value(torch.stack([hidden[i, len(row) - 1] for i, row in enumerate(ROWS)]))
    torch.testing.assert_close(values.detach(), shared.scores(ROWS)[0])


def test_only_policy_and_value_get_gradients(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> None:
    shared = load(tiny_model_dir, sft, members)
    for role in ("reference", "reward_0"):
        assert not shared.hidden(role, ROWS).requires_grad
    with shared.training():
        hidden = shared.hidden("policy", ROWS)
        shared.logprobs(hidden[0, :4], torch.tensor(ROWS[0][1:]), 1.0)[0].sum().backward()
        policy_only = {n for n, p in shared.trained().items() if p.grad is not None}
        shared.value(shared.hidden("value", ROWS)[0]).sum().backward()
    assert all(".policy." in n for n in policy_only)
    trained = shared.trained()
    assert all(p.grad is not None for p in trained.values())
    assert {"value.head.weight", "value.head.bias"} < set(trained)
    ids = {id(p) for p in trained.values()}
    others = [*shared.model.named_parameters(), *[(n, h.weight) for n, h in shared.heads.items() if n != "value"]]
    assert all(p.grad is None for _, p in others if id(p) not in ids)


def test_log_probabilities_and_entropy_and_their_gradient_are_those_of_the_whole_logits(
    tiny_model_dir: Path, sft: Path, members: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = load(tiny_model_dir, sft, members)
    monkeypatch.setattr(shared_module, "VOCABULARY_PART", 50)
    monkeypatch.setattr(shared_module, "POSITIONS", 3)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 64, generator=generator)
    targets = torch.tensor([0, 49, 50, 99, 100, 200, 258, 3])
    head = shared.causal.get_output_embeddings().weight.detach()
    found = []
    for ours in (True, False):
        h = hidden.clone().requires_grad_(True)
        if ours:
            logps, entropy = shared.logprobs(h, targets, 0.7)
        else:
            whole = torch.log_softmax(h @ head.T / 0.7, -1)
            logps, entropy = whole.gather(1, targets[:, None])[:, 0], -(whole.exp() * whole).sum(-1)
        (logps * torch.arange(8)).sum().backward()
        found.append((logps.detach(), entropy.detach(), h.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_saved_policy_loads_as_any_adapter_does(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...], tmp_path: Path) -> None:
    shared = load(tiny_model_dir, sft, members)
    shared.save("policy", tmp_path)
    saved, wanted = adapter(tmp_path), adapter(sft)
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[n], wanted[n]) for n in saved)
    for a, b in zip(alone(tiny_model_dir, tmp_path, ROWS), alone(tiny_model_dir, sft, ROWS), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_low_precision_starts_at_the_reference(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...], precision: str) -> None:
    shared = load(tiny_model_dir, sft, members, precision)
    assert torch.equal(shared.hidden("policy", ROWS).detach(), shared.hidden("reference", ROWS))
    assert torch.equal(shared.hidden("value", ROWS).detach(), shared.hidden("reward_0", ROWS))
    assert {p.dtype for p in shared.trained().values()} == {torch.float32}


def test_gradient_checkpointing_changes_no_gradient(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> None:
    gradients = []
    for on in (True, False):
        shared = load(tiny_model_dir, sft, members, gradient_checkpointing=on)
        with shared.training():
            for role in ("policy", "value"):
                hidden = shared.hidden(role, ROWS)
                with shared.using(role):
                    hidden.float().square().mean().backward()
        gradients.append([p.grad for n, p in shared.trained().items() if "head" not in n])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_no_reward_model_is_refused(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no reward model"):
        load(tiny_model_dir, sft, ())
    with pytest.raises(ModelError, match="not a reward model"):
        load(tiny_model_dir, sft, (tmp_path,))
    with pytest.raises(ModelError, match="no scalar head"):
        load(tiny_model_dir, sft, (sft,))


def test_a_model_that_changes_its_logits_is_refused(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> None:
    shared = load(tiny_model_dir, sft, members)
    plain = shared.causal.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = torch.tanh(output.logits / 2) * 2
        return output

    shared.causal.forward = capped
    with pytest.raises(TrainingError, match="changes its logits after the output layer"):
        shared_module._check_logits(shared)


def test_the_base_is_loaded_once(tiny_model_dir: Path, sft: Path, members: tuple[Path, ...]) -> None:
    shared = load(tiny_model_dir, sft, members)
    base = sum(t.numel() for t in load_file(tiny_model_dir / "model.safetensors").values())
    assert sum(p.numel() for n, p in shared.model.named_parameters() if "lora_" not in n) == base
