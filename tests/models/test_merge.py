"""An adapter merged into its base: the same answers from one folder, in full precision whatever it was trained over."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cai.errors import DataError, ModelError
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.merge import merge_adapter
from cai.recipe import ModelSpec
from cai.train.reward.train import train_reward
from cai.train.sft import train_sft
from tests.train.builders import examples, model_at, preferences, reward_config, sft_config
from tests.workspaces import cai

TOKENS = torch.tensor([[5, 9, 40, 77, 12, 100]])


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained over the 4-bit base, as QLoRA does."""
    folder = tmp_path_factory.mktemp("merge") / "adapter"
    train_sft(sft_config(precision="nf4", epochs=3.0), model_at(tiny_model_dir), examples(8), folder, 0)
    return folder


def logits(spec: ModelSpec) -> torch.Tensor:
    with torch.inference_mode():
        return load_causal_lm(spec)(TOKENS).logits.float()


def test_the_merged_model_says_what_base_and_adapter_say(tiny_model_dir: Path, adapter: Path, tmp_path: Path) -> None:
    wanted = logits(ModelSpec(path=str(tiny_model_dir), adapter=str(adapter), precision="float32"))
    assert not torch.allclose(wanted, logits(model_at(tiny_model_dir)), atol=1e-2), "the adapter changes something"
    exact = merge_adapter(adapter, tmp_path / "exact", "float32")
    torch.testing.assert_close(logits(model_at(tmp_path / "exact")), wanted, rtol=1e-5, atol=1e-5)
    merge_adapter(adapter, tmp_path / "rounded", "bfloat16")
    torch.testing.assert_close(logits(model_at(tmp_path / "rounded")), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))
    for name, dtype in (("exact", torch.float32), ("rounded", torch.bfloat16)):
        saved = load_file(tmp_path / name / "model.safetensors")
        assert {t.dtype for t in saved.values()} == {dtype}, "no 4-bit weights, nor their constants"
        assert not any("lora" in key or "absmax" in key for key in saved)
    assert exact.parameters == sum(p.numel() for p in load_causal_lm(model_at(tiny_model_dir)).parameters())
    assert load_tokenizer(model_at(tmp_path / "exact")).chat_template == load_tokenizer(model_at(tiny_model_dir)).chat_template
    assert "in float32" in (tmp_path / "exact" / "README.md").read_text()
    assert not list(tmp_path.glob(".*")), "no half-made folder is left"


def test_what_cannot_be_merged_is_refused(tiny_model_dir: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="already exists"):
        merge_adapter(adapter, adapter)
    with pytest.raises(ModelError, match="this is not an adapter"):
        merge_adapter(tiny_model_dir, tmp_path / "out")
    train_reward(reward_config(), model_at(tiny_model_dir), preferences(4), [], tmp_path / "reward", 0)
    with pytest.raises(ModelError, match="is a reward model"):
        merge_adapter(tmp_path / "reward", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_a_precision_that_it_cannot_save(adapter: Path, tmp_path: Path) -> None:
    done = cai(tmp_path, "merge", str(adapter), "-o", "out", "--dtype", "nf4")
    assert done.returncode == 2 and "expected bfloat16 or float32" in done.stderr
