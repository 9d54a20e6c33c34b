"""An adapter merged into its base: the same answers from one folder, in full precision whatever it was trained over."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from cai.errors import DataError, ModelError
from cai.models.local.fingerprint import model_fingerprint
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.merge import merge_adapter
from cai.recipe import LoraSpec, ModelSpec
from cai.train.arguments import target_problem
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


KINDS = {
    "embeddings": LoraConfig(target_modules=["embed_tokens", "q_proj"]),
    "output layer": LoraConfig(target_modules=["lm_head"]),
    "saved embeddings": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "saved output layer": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "tied": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "DoRA": LoraConfig(target_modules=["q_proj"], use_dora=True),
    "IA3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def saved_adapter(config: PeftConfig, base: Path, folder: Path, new_tokens: int = 0) -> torch.Tensor:
    """Save an adapter with random weights, and return the logits of the base model with it."""
    model = LlamaForCausalLM.from_pretrained(base)
    if new_tokens:
        model.resize_token_embeddings(model.config.vocab_size + new_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied embeddings
        adapted = get_peft_model(model, config).eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(folder)
    with torch.inference_mode():
        return adapted(TOKENS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_tied_embeddings_give_the_same_logits_merged_and_loaded(kind: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    wanted = saved_adapter(KINDS[kind], tiny_model_dir, tmp_path / "a")
    near = {"rtol": 1e-4, "atol": 1e-4 * float(wanted.abs().max())}
    spec = ModelSpec(path=str(tiny_model_dir), adapter=str(tmp_path / "a"), precision="float32")
    torch.testing.assert_close(logits(spec), wanted, **near)
    merge_adapter(tmp_path / "a", tmp_path / "merged", "float32", str(tiny_model_dir))
    torch.testing.assert_close(logits(model_at(tmp_path / "merged")), wanted, **near)


def test_learned_prompts_and_other_vocabularies_are_refused_before_weights_are_loaded(tiny_model_dir: Path, tmp_path: Path) -> None:
    saved_adapter(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), tiny_model_dir, tmp_path / "prompt")
    larger = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    saved_adapter(larger, tiny_model_dir, tmp_path / "larger", new_tokens=3)
    for name, said in (("prompt", "is not a LoRA adapter but one of type PROMPT_TUNING"), ("larger", "tokens against the model's")):
        with pytest.raises(ModelError, match=said):
            model_fingerprint(ModelSpec(path=str(tiny_model_dir), adapter=str(tmp_path / name)))
        with pytest.raises(ModelError, match=said):
            merge_adapter(tmp_path / name, tmp_path / "out", "float32", str(tiny_model_dir))


def test_targets_that_training_cannot_adapt_are_found_without_weights(tiny_model_dir: Path) -> None:
    spec = model_at(tiny_model_dir)
    assert target_problem(spec, LoraSpec()) == target_problem(spec, LoraSpec(target_modules="q_proj,embed_tokens")) == ""
    assert "'lm_head' is the output layer" in target_problem(spec, LoraSpec(target_modules="q_proj,lm_head"))
    assert "'query' matches no module of the model. Use all-linear, or some of: down_proj" in target_problem(
        spec, LoraSpec(target_modules="query")
    )


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
    assert done.returncode == 2 and "'nf4' is not one of 'bfloat16'" in done.stderr


def deeper(tiny_model_dir: Path, folder: Path) -> Path:
    """An adapter for a model like the tiny one, with a layer more."""
    model = LlamaForCausalLM.from_pretrained(tiny_model_dir)
    model.config.num_hidden_layers += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT about transformers
        get_peft_model(LlamaForCausalLM(model.config), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return named_for(tiny_model_dir, folder)


def named_for(base: Path, folder: Path, **changes: Any) -> Path:
    """Let an adapter name its base model, and change its configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)} | changes))
    return folder


def test_an_adapter_of_a_deeper_model_is_refused_although_its_first_layers_fit(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = deeper(tiny_model_dir, tmp_path / "deeper")
    with pytest.raises(ModelError, match=r"weights for layers that the model hasn't: model\.layers\.2\.self_attn\.q_proj"):
        load_causal_lm(ModelSpec(path=str(tiny_model_dir), adapter=str(folder)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "SUPERLORA"}, "peft_type is 'SUPERLORA', which this version of PEFT doesn't know"),
        ({"peft_type": "lora"}, "peft_type is 'lora'"),
        ({"r": 2}, r"size mismatch for .*q_proj\.lora_A"),
    ],
)
def test_what_is_wrong_with_an_adapters_configuration_is_said(
    changes: dict[str, Any], said: str, tiny_model_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(adapter, folder)
    with pytest.raises(ModelError, match=said):
        merge_adapter(named_for(tiny_model_dir, folder, **changes), tmp_path / "out")


def test_adapters_in_subfolders_and_in_several_files_are_told(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "all" / "second")
    with pytest.raises(ModelError, match=r"not an adapter\.\nFix: name one of the adapters in it: .*second"):
        merge_adapter(tmp_path / "all", tmp_path / "out")
    parts = tmp_path / "all" / "second"
    (parts / "adapter_model.safetensors").rename(parts / "adapter_model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match="in several files"):
        merge_adapter(parts, tmp_path / "out")


def test_an_adapter_whose_weights_are_no_numbers_is_refused(tiny_model_dir: Path, adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="aren't finite numbers"):
        merge_adapter(named_for(tiny_model_dir, folder), tmp_path / "out")
