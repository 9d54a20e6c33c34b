"""Loading weights and tokenizers: each way that it fails says how to mend it, and the fingerprint follows content, not place."""

import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from cai.errors import ModelError
from cai.models.local.adapter import adapter_base
from cai.models.local.embedded import EMBEDDED
from cai.models.local.fingerprint import model_fingerprint
from cai.models.local.folders import resolve_model_path
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.recipe import ModelSpec

IDS = torch.tensor([[5, 9, 40, 77, 12]])


@pytest.fixture
def model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.fixture
def adapter_dir(model_dir: Path, tmp_path: Path) -> Path:
    """An adapter for the tiny model that changes what it says."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def spec(path: Path | str, adapter: Path | None = None, precision: str = "float32") -> ModelSpec:
    return ModelSpec(path=str(path), adapter=str(adapter) if adapter else None, precision=precision)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./no/such/folder", "no such model folder"),
        ("http://127.0.0.1:1/v1", "needs weights in this process"),
        ("scripted", "needs weights in this process"),
    ],
)
def test_what_is_no_local_model_is_refused(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model_path(ModelSpec(path=path))


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*args: object, local_files_only: bool = False, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("nothing here") if local_files_only else ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match="can't be reached"):
        resolve_model_path(ModelSpec(path="someone/some-model"))


def test_pickled_weights_are_refused(model_dir: Path) -> None:
    (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights \(pytorch_model.bin\)"):
        load_causal_lm(spec(model_dir))


def test_a_torn_weights_file_is_a_model_error(model_dir: Path) -> None:
    (model_dir / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="can't be loaded"):
        load_causal_lm(spec(model_dir))


def test_a_tokenizer_without_chat_template_is_refused(model_dir: Path) -> None:
    (model_dir / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(spec(model_dir))


def test_an_adapter_folder_is_not_a_model(adapter_dir: Path) -> None:
    with pytest.raises(ModelError, match="name it as `adapter`"):
        resolve_model_path(spec(adapter_dir))


def test_precision_is_what_was_asked_for(model_dir: Path) -> None:
    assert load_causal_lm(spec(model_dir)).dtype == torch.float32
    assert load_causal_lm(spec(model_dir, precision="bfloat16")).dtype == torch.bfloat16


def test_a_model_for_inference_has_its_adapter_merged(model_dir: Path, adapter_dir: Path) -> None:
    merged = load_causal_lm(spec(model_dir, adapter_dir))
    apart = load_causal_lm(spec(model_dir, adapter_dir), trainable=True).eval()
    plain = load_causal_lm(spec(model_dir))
    with torch.inference_mode():
        torch.testing.assert_close(merged(IDS).logits, apart(IDS).logits, atol=1e-4, rtol=1e-4)
        assert (merged(IDS).logits - plain(IDS).logits).abs().max() > 0.1
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert not merged.training


def test_a_trainable_model_trains_its_adapter_and_nothing_else(model_dir: Path, adapter_dir: Path) -> None:
    model = load_causal_lm(spec(model_dir, adapter_dir), trainable=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert all(p.requires_grad for p in load_causal_lm(spec(model_dir), trainable=True).parameters())


def test_a_trainable_model_reads_a_slice_of_states_as_one_piece(model_dir: Path) -> None:
    model, seen = load_causal_lm(ModelSpec(path=str(model_dir), precision="float32"), trainable=True), []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].is_contiguous()))
    ids = IDS.repeat(2, 1)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])
    assert seen == [True, True]


def test_an_adapter_for_another_model_is_refused(model_dir: Path, adapter_dir: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(model_dir)
    config.hidden_size, config.intermediate_size = 32, 64
    other = Path(shutil.copytree(model_dir, tmp_path / "other"))
    LlamaForCausalLM(config).save_pretrained(other)
    with pytest.raises(ModelError, match="doesn't fit"):
        load_causal_lm(spec(other, adapter_dir))


def test_an_adapter_with_weights_missing_is_refused(model_dir: Path, adapter_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter_dir / "adapter_model.safetensors")
    del weights[min(weights)]
    save_file(weights, adapter_dir / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="some of its layers have no weights"):
        load_causal_lm(spec(model_dir, adapter_dir))


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle"])
def test_damaged_adapter_weights_are_a_model_error(model_dir: Path, adapter_dir: Path, damage: str) -> None:
    file = adapter_dir / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "pickle": pickle.dumps({"a": 1})}[damage])
    with pytest.raises(ModelError, match="adapter: the adapter's weights can't be read"):
        load_causal_lm(spec(model_dir, adapter_dir))


@pytest.mark.parametrize("change", [{"peft_type": "NONE_SUCH"}, {"peft_type": 7}, {"r": "many"}, {"target_modules": 5}, {"r": 0}])
def test_adapter_settings_that_make_no_sense_are_a_model_error(model_dir: Path, adapter_dir: Path, change: dict[str, object]) -> None:
    file = adapter_dir / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=r"adapter: this adapter doesn't fit|peft_type is"):
        load_causal_lm(spec(model_dir, adapter_dir))


def test_an_adapter_names_its_base(model_dir: Path, adapter_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter_base(adapter_dir) == str(model_dir)
    config = json.loads((adapter_dir / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/home/someone/.cache/cai/embedded-0123456789abcdef-1"
    (adapter_dir / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("cai.models.local.embedded.embedded_fingerprint", lambda: "0123456789abcdef-1")
    assert adapter_base(adapter_dir) == EMBEDDED
    (adapter_dir / "adapter_model.safetensors").rename(adapter_dir / "adapter_model.bin")
    with pytest.raises(ModelError, match="can run code"):
        adapter_base(adapter_dir)


def test_fingerprint_follows_content_and_not_place(model_dir: Path, adapter_dir: Path, tmp_path: Path) -> None:
    first = model_fingerprint(spec(model_dir))
    moved = Path(shutil.copytree(model_dir, tmp_path / "moved"))
    assert model_fingerprint(spec(moved)) == first
    prints = {first, model_fingerprint(spec(model_dir, adapter_dir)), model_fingerprint(spec(model_dir, precision="bfloat16"))}
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    prints.add(model_fingerprint(spec(moved)))
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    prints.add(model_fingerprint(spec(moved)))
    assert len(prints) == 5
    config = json.loads((adapter_dir / "adapter_config.json").read_text())
    with_adapter = model_fingerprint(spec(model_dir, adapter_dir))
    config["base_model_name_or_path"] = "elsewhere"
    (adapter_dir / "adapter_config.json").write_text(json.dumps(config))
    assert model_fingerprint(spec(model_dir, adapter_dir)) == with_adapter


def test_four_bit_weights_answer_close_to_whole_ones(model_dir: Path) -> None:
    quantized = load_causal_lm(spec(model_dir, precision="nf4"))
    whole = load_causal_lm(spec(model_dir))
    assert any("Linear4bit" in type(m).__name__ for m in quantized.modules())
    with torch.inference_mode():
        correlation = torch.corrcoef(torch.stack([quantized(IDS).logits.float().flatten(), whole(IDS).logits.flatten()]))[0, 1]
    assert 0.8 < correlation < 0.9999
