"""The memory that a plan promises: shapes read from disk, hand-reckoned bytes, and no download."""

import json
from pathlib import Path

import pytest

from cai.models.local.loading import load_causal_lm
from cai.pipeline.memory import (
    EMBEDDED_SHAPE,
    NF4_BYTES,
    PROCESS_BYTES,
    Dimensions,
    activation_bytes,
    generation_bytes,
    lora_parameters,
    read_dimensions,
    training_bytes,
    weight_bytes,
)
from cai.recipe import LoraSpec, ModelSpec, SFTConfig
from cai.train.arguments import with_new_adapter
from cai.train.running import quiet_training

SMALL = Dimensions(8, 2, 16, 2, 1, 4, 100, True, 2.0)
LLAMA_8B = Dimensions(4096, 32, 14336, 32, 8, 128, 128_256, False, 2.0)


def test_a_shape_is_read_from_a_folder_and_counts_every_weight(tiny_model_dir: Path) -> None:
    spec = ModelSpec(path=str(tiny_model_dir), precision="float32")
    shape = read_dimensions(spec)
    assert shape is not None
    model = load_causal_lm(spec)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.file_bytes == 4.0
    with quiet_training():
        adapted = with_new_adapter(model, LoraSpec(rank=4, layers=1))
    assert lora_parameters(shape, 4, 1) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_known_models_have_their_known_sizes() -> None:
    assert EMBEDDED_SHAPE.parameters == 134_515_008
    assert read_dimensions(ModelSpec()) == EMBEDDED_SHAPE
    assert LLAMA_8B.parameters == 8_030_261_248
    assert 5.4e9 < weight_bytes(LLAMA_8B, "nf4") < 5.8e9, "6.98 billion at about 4.1 bits, and embedding and head in bfloat16"


def test_bytes_by_hand() -> None:
    linear = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16)
    other = 100 * 8 + 5 * 8
    assert (SMALL.linear, SMALL.other) == (linear, other)
    assert weight_bytes(SMALL, "nf4") == linear * NF4_BYTES + other * 2
    assert pytest.approx(4.127, abs=1e-3) == NF4_BYTES * 8, "bits a weight: QLoRA, §3"
    # 6 hidden, 3 of attention's 8, 3 of the cache's 4 and 5 intermediate at 2 bytes; 4 hidden at 4
    assert activation_bytes(SMALL, "bfloat16") == 2 * (6 * 8 + 3 * 8 + 3 * 4 + 5 * 16) + 4 * 4 * 8
    big = Dimensions(**{**{f: getattr(LLAMA_8B, f) for f in LLAMA_8B.__dataclass_fields__}, "file_bytes": 0.0})
    config = SFTConfig(precision="bfloat16", lora=LoraSpec(rank=16))
    trained = lora_parameters(big, 16, None)
    wanted = PROCESS_BYTES + big.parameters * 2 + trained * 16 + 32 * 1000 * activation_bytes(big, "bfloat16") + 10 * 128_256 * 28
    assert training_bytes(big, config, 1000, 10, "cpu") == pytest.approx(wanted)


def test_each_saving_saves_what_it_is_for() -> None:
    def peak(**changes: object) -> float:
        return training_bytes(LLAMA_8B, SFTConfig(**{"precision": "nf4", **changes}), 8192, 4096, "cuda")  # type: ignore[arg-type]

    plain = peak()
    trained = lora_parameters(LLAMA_8B, 16, None)
    assert plain - peak(optimizer="paged_adamw_8bit") == pytest.approx(6 * trained)
    assert peak(gradient_checkpointing=True) < plain / 2
    assert peak(lora=LoraSpec(layers=8)) < plain / 1.5
    assert training_bytes(LLAMA_8B, SFTConfig(precision="nf4"), 8192, 4096, "cuda", adapters=2) - plain == pytest.approx(4 * trained)


def test_a_longer_or_wider_batch_of_answers_needs_its_cache() -> None:
    spec = ModelSpec(path="owner/model", precision="bfloat16", batch_size=64)
    per_token = 64 * 2 * 32 * 8 * 128 * 2
    shape = Dimensions(4096, 32, 14336, 32, 8, 128, 128_256, False, 0.0)
    needed = {(n, where): generation_bytes(shape, spec, n, where) for n in (200, 2000, 3000) for where in ("cpu", "cuda")}
    assert needed[3000, "cuda"] - needed[2000, "cuda"] == pytest.approx(1000 * per_token), "of its prompts, 16,384 tokens at once"
    one_layer = (6 * 4096 + 3 * 14336) * 2
    assert needed[200, "cuda"] - needed[200, "cpu"] == pytest.approx(64 * 200 * one_layer - 64 * 128_256 * 12), "scores are more"


def test_a_model_that_is_not_here_is_unknown_and_not_fetched(tmp_path: Path) -> None:
    assert read_dimensions(ModelSpec(path="nobody/has-this-model")) is None  # sockets are blocked: a download would fail the test
    assert read_dimensions(ModelSpec(path="http://127.0.0.1:1/v1")) is None
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    assert read_dimensions(ModelSpec(path=str(tmp_path))) is None, "no decoder that this reckoning fits"
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "text_config": {
                    "hidden_size": 8,
                    "num_hidden_layers": 2,
                    "intermediate_size": 16,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "vocab_size": 100,
                    "tie_word_embeddings": True,
                    "dtype": "bfloat16",
                }
            }
        )
    )
    assert read_dimensions(ModelSpec(path=str(tmp_path))) == SMALL


def test_files_lie_in_memory_beside_the_weights_on_a_cpu_alone() -> None:
    spec, file = ModelSpec(path="owner/model", precision="nf4", batch_size=1), LLAMA_8B.parameters * LLAMA_8B.file_bytes
    here, there = (generation_bytes(LLAMA_8B, spec, 10, device) for device in ("cpu", "cuda"))
    assert here == pytest.approx(PROCESS_BYTES + weight_bytes(LLAMA_8B, "nf4") + file)
    assert there < PROCESS_BYTES + 1.05 * weight_bytes(LLAMA_8B, "nf4")
