"""Writes tiny GGUF files: a Qwen2 of one layer with byte tokens and a chat template."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

HIDDEN, INTERMEDIATE, HEADS = 16, 32, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokens() -> list[str]:
    """Return GPT-2's characters for the 256 bytes, by byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def write_gguf(file: Path, *, without: Collection[str] = (), scaling: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """Write a model and return its tensors by their names in the file.

    Args:
        file: to write.
        without: tensors to leave out.
        scaling: of rotary positions, such as `yarn`.
        seed: of the weights.
    """
    tokens = [*byte_tokens(), "ab", *SPECIAL]
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,), "blk.0.attn_norm.weight": (HIDDEN,)}
    shapes |= {f"blk.0.attn_{n}.weight": (HIDDEN, HIDDEN) for n in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.attn_{n}.bias": (HIDDEN,) for n in ("q", "k", "v")}
    shapes |= {"blk.0.ffn_norm.weight": (HIDDEN,), "blk.0.ffn_down.weight": (HIDDEN, INTERMEDIATE)}
    shapes |= {f"blk.0.ffn_{n}.weight": (INTERMEDIATE, HIDDEN) for n in ("gate", "up")}
    noise = np.random.default_rng(seed)
    tensors = {name: noise.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items() if name not in without}
    writer = GGUFWriter(file, "qwen2")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    if scaling:
        writer.add_string("qwen2.rope.scaling.type", scaling)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * 257 + [TokenType.CONTROL] * len(SPECIAL))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
