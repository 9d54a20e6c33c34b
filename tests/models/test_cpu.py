"""The quick routes give what the plain ones give, to the precision of the numbers."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cai.models.local import cpu
from cai.models.local.loading import load_causal_lm
from cai.recipe import ModelSpec


def made(intermediate_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms, which start as zeros and ones
            parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def model() -> LlamaForCausalLM:
    return made(intermediate_size=128)


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.bfloat16, {"atol": 0.02, "rtol": 0.05}), (torch.float32, {"atol": 1e-5, "rtol": 1e-5})]
)
def test_packed_layers_agree_with_plain_ones(model: LlamaForCausalLM, dtype: torch.dtype, close: dict[str, float]) -> None:
    if not cpu.can_pack(dtype):
        pytest.skip("this PyTorch has no packed linear layers for this processor")
    model.to(dtype)
    ids = torch.randint(3, 320, (4, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = model(ids).logits.float()
        quick = cpu.speed_up(model)(ids).logits.float()
    kinds = {type(m) for m in model.modules()}
    assert {cpu.GatedMLP, cpu.PackedLinear} <= kinds
    assert ({cpu.RotaryAttention, torch.nn.RMSNorm} <= kinds) is (dtype == torch.float32)
    torch.testing.assert_close(quick, plain, **close)


def test_small_weights_are_turned_in_float32_and_large_ones_packed() -> None:
    if not cpu.can_pack(torch.float32):
        pytest.skip("this PyTorch has no packed linear layers for this processor")
    model = cpu.speed_up(made(intermediate_size=16_384).float())  # 64 × 64 weights, and over a million
    attention, down = model.model.layers[0].self_attn, model.model.layers[0].mlp.down
    assert type(attention.q) is torch.nn.Linear and attention.q.weight.T.is_contiguous()
    assert type(down) is cpu.PackedLinear and type(model.lm_head) is cpu.PackedLinear


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system doesn't say what is mapped")
def test_packed_models_let_go_of_their_file(model: LlamaForCausalLM, tied: bool, tmp_path: Path) -> None:
    if not cpu.can_pack(torch.float32):
        pytest.skip("this PyTorch has no packed linear layers for this processor")
    model.config.tie_word_embeddings = tied
    LlamaForCausalLM(model.config).float().save_pretrained(tmp_path)
    loaded = load_causal_lm(ModelSpec(path=str(tmp_path), precision="float32"))
    embedding = loaded.get_input_embeddings().weight
    before = embedding.data.clone()
    quick = cpu.speed_up(loaded)
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "one weight left in it would keep all of the file in memory"
    torch.testing.assert_close(embedding.data, before, atol=0, rtol=0)
    plain = quick.get_output_embeddings().plain_weight
    assert (plain.data_ptr() == embedding.data_ptr()) is tied


def test_float64_models_keep_their_layers(model: LlamaForCausalLM) -> None:
    cpu.speed_up(model.double())
    assert not any(isinstance(m, cpu.PackedLinear) for m in model.modules())


@pytest.mark.parametrize(("queries", "keys", "stored"), [(1, 11, True), (7, 11, True), (900, 900, False)])
def test_attention_agrees_with_the_definition(queries: int, keys: int, stored: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, queries, 8), torch.randn(3, 2, keys, 8), torch.randn(3, 2, keys, 8)
    assert (3 * 4 * queries * keys <= cpu.MOST_SCORES) is stored
    mask = torch.zeros(3, 1, queries, keys).masked_fill(torch.rand(3, 1, queries, keys) < 0.3, torch.finfo(torch.float32).min)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    found, _ = cpu.attend(module, query, key, value, mask, scaling=0.3)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3 + mask
    wanted = torch.softmax(scores, -1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(found, wanted.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_a_thread_lets_its_helpers_go() -> None:
    """In a process of its own: how many threads compute is the whole process's setting."""
    program = """
import os, torch
from cai.models.local import cpu
count = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
alone = count()
big = torch.ones(1_000_000)
wanted = big.exp()
helped = count()
cpu.release_threads()
print(cpu._gnu_openmp() is not None, helped - alone, count() - alone, bool((big.exp() == wanted).all()))
"""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("counts threads in /proc")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found, helpers, left, same = done.stdout.split()
    if found == "False":
        pytest.skip("PyTorch computes with another OpenMP here")
    assert int(helpers) == 2 and left == "0" and same == "True"
