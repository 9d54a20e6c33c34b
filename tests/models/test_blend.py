"""An adapter between two of one shape."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cai.errors import DataError, ModelError
from cai.models.blend import blend_adapters
from cai.models.local.loading import load_causal_lm
from cai.recipe import LoraSpec, ModelSpec
from cai.train.dpo import train_dpo
from cai.train.sft import train_sft
from tests.train.builders import dpo_config, examples, model_at, preferences, sft_config
from tests.workspaces import cai

TOKENS = torch.tensor([[5, 9, 40, 77, 12, 100]])


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An SFT adapter, and a policy that was trained on from it."""
    folder = tmp_path_factory.mktemp("blend")
    train_sft(sft_config(), model_at(tiny_model_dir), examples(8), folder / "sft", 0)
    train_dpo(dpo_config(), model_at(tiny_model_dir), folder / "sft", preferences(8), folder / "policy", 0)
    return folder / "sft", folder / "policy"


def logits(base: Path, adapter: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_causal_lm(ModelSpec(path=str(base), adapter=str(adapter), precision="float32"))(TOKENS).logits.float()


def test_the_ends_are_the_adapters_and_the_middle_is_between(tiny_model_dir: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    sft, policy = trained
    made = {share: blend_adapters(sft, policy, share, tmp_path / str(share)) for share in (0.0, 0.5, 1.0)}
    ends = [logits(tiny_model_dir, folder) for folder in (sft, policy)]
    assert not torch.allclose(*ends, atol=1e-4)
    for share, end in zip((0.0, 1.0), ends, strict=True):
        torch.testing.assert_close(logits(tiny_model_dir, made[share]), end)
    middle = logits(tiny_model_dir, made[0.5])
    torch.testing.assert_close(middle, (ends[0] + ends[1]) / 2, atol=0.25 * float((ends[0] - ends[1]).abs().max()), rtol=0)
    halves = load_file(made[0.5] / "adapter_model.safetensors")
    weights = [load_file(folder / "adapter_model.safetensors") for folder in trained]
    assert all(torch.equal(t, weights[0][k].lerp(weights[1][k], 0.5)) for k, t in halves.items())


@pytest.mark.attack
@pytest.mark.parametrize("content", [b"", b"\x10", (1 << 40).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"xxxx"])
def test_a_damaged_adapter_is_named(trained: tuple[Path, Path], tmp_path: Path, content: bytes) -> None:
    sft, policy = trained
    damaged = shutil.copytree(sft, tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(content)
    for one, other in ((damaged, policy), (policy, damaged)):
        with pytest.raises(ModelError, match="damaged: the adapter's weights can't be read"):
            blend_adapters(one, other, 0.5, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["damaged"]


def test_what_can_not_be_blended_writes_nothing(tiny_model_dir: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    sft, policy = trained
    out = tmp_path / "out"
    train_sft(sft_config(lora=LoraSpec(rank=3)), model_at(tiny_model_dir), examples(8), tmp_path / "other", 0)
    with pytest.raises(ModelError, match="differ in r"):
        blend_adapters(tmp_path / "other", policy, 0.5, out)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        blend_adapters(tiny_model_dir, policy, 0.5, out)
    with pytest.raises(DataError, match=r"--share 1\.5"):
        blend_adapters(sft, policy, 1.5, out)
    with pytest.raises(DataError, match="already exists"):
        blend_adapters(sft, policy, 0.5, sft)
    assert not out.exists()
    done = cai(tmp_path, "blend", str(sft), str(policy), "--share", "0.25", "-o", "out")
    assert done.returncode == 0 and "out: 0.25 of the way" in done.stdout and (out / "adapter_config.json").is_file(), done.stderr
