"""Small models of several kinds of attention, and token sequences to ask them with."""

import random
from typing import Any

import transformers as hf

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {}),
    "qwen2, sliding": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "mistral, sliding": (hf.MistralConfig, hf.MistralForCausalLM, {"sliding_window": 12}),
    "gemma3, mixed": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, {"sliding_window": 12, "head_dim": 16}),
}


def prompts(count: int = 9, seed: int = 0) -> list[list[int]]:
    """Prompts of 2 to 101 tokens; every second one starts with the same 40, and every fourth with the same 60."""
    r = random.Random(seed)
    shared = [r.randrange(3, 300) for _ in range(60)]
    return [shared[: (0, 60, 0, 40)[i % 4]] + [r.randrange(3, 300) for _ in range(r.randrange(2, 40))] for i in range(count)]
