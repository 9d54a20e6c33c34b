"""How much memory a stage needs, from a model's configuration: nothing is loaded, and nothing is downloaded.

Counted for a Llama-like decoder: grouped attention, a gated MLP, no attention matrix kept (SDPA), LoRA weights in float32 under autocast.
What the shape can't say (the interpreter and libraries, an allocator's waste) is one constant. `python -m bench.plan_memory` compares it
with measured peaks. A device is "cpu" or "cuda".
"""

import json
from dataclasses import dataclass
from pathlib import Path

from cai.errors import ModelError
from cai.models.local.embedded import EMBEDDED
from cai.models.local.named import conversion_of
from cai.models.local.precision import resolved_precision, tokens_at_once
from cai.recipe import ModelSpec, Precision, TrainSpec

PROCESS_BYTES = 0.75e9
"""Interpreter, torch, transformers, TRL and their buffers; on a GPU, about what its context and kernels take."""
BYTES = {"float32": 4.0, "bfloat16": 2.0, "nf4": 2.0}
"""Per number that is not quantized: nf4 computes, and keeps embeddings and norms, in bfloat16."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per quantized weight: 4 bits, an 8-bit constant for 64 of them, and a float32 one for 256 of those (QLoRA, arXiv 2305.14314 §3)."""
SCORE_BYTES = 28.0
"""Per scored position and entry of the vocabulary, fitted to SFT's peaks: logits, log-probabilities, entropy, and their gradients."""
OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2.0, "paged_adamw_8bit": 2.0}
"""Per trained weight: both of Adam's moments."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The shape of a decoder."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    """Whether the language-model head is the embedding."""
    file_bytes: float
    """Per weight, of the files that they are read from."""

    @property
    def linear(self) -> int:
        """Weights of the decoder layers' linear modules: those that NF4 quantizes."""
        attention = 2 * self.hidden * (self.heads + self.key_value_heads) * self.head_size
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def other(self) -> int:
        """All other weights: embedding, head and norms."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linear + self.other


EMBEDDED_SHAPE = Dimensions(576, 30, 1536, 9, 3, 64, 49_152, True, 4.0)
"""SmolLM2-135M, so that a plan need not convert it first."""


def read_dimensions(spec: ModelSpec) -> Dimensions | None:
    """Return a model's shape from its config.json in its folder or in the Hub's cache; None where neither has one that says it."""
    if spec.path == EMBEDDED:
        return EMBEDDED_SHAPE
    try:
        folder = conversion_of(spec.path) or Path(spec.path).expanduser()
        file: object = folder / "config.json"
        if spec.path.count("/") == 1 and not folder.is_dir():
            from huggingface_hub import try_to_load_from_cache

            file = try_to_load_from_cache(spec.path, "config.json")
        if not isinstance(file, Path | str):
            return None
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        config = {**config, **(config.get("text_config") or {})}
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return Dimensions(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            file_bytes=4.0 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2.0,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):  # of the Hub: a name that can't be one
        return None


def weight_bytes(d: Dimensions, precision: Precision) -> float:
    """Return what a base model's weights take."""
    size = BYTES[resolved_precision(precision)]
    return d.linear * (NF4_BYTES if precision == "nf4" else size) + d.other * size


def loading_bytes(d: Dimensions, precision: Precision, device: str) -> float:
    """Return the peak while weights load. On a CPU the file's pages are in memory beside what is made of them; a GPU holds no file."""
    return weight_bytes(d, precision) + (d.parameters * d.file_bytes if device == "cpu" else 0.0)


def lora_parameters(d: Dimensions, rank: int, layers: int | None) -> int:
    """Return the weights of an adapter on all linear modules of the last `layers` layers, or of all."""
    sizes = 4 * d.hidden + 2 * (d.heads + d.key_value_heads) * d.head_size + 3 * (d.hidden + d.intermediate)
    return min(layers or d.layers, d.layers) * rank * sizes


def training_bytes(d: Dimensions, config: TrainSpec, tokens: float, scored: float, device: str, adapters: int = 1) -> float:
    """Return the peak of a training.

    Args:
        tokens: that one forward pass with gradients runs at once, padding included.
        scored: positions whose scores over the vocabulary are kept for the backward pass; 0 for a reward model.
        adapters: on the base; 2 where a frozen copy is the reference.
    """
    layers, trained = min(config.lora.layers or d.layers, d.layers), lora_parameters(d, config.lora.rank, config.lora.layers)
    state = trained * (4.0 + 4.0 + OPTIMIZER_BYTES[config.optimizer]) + 4.0 * trained * (adapters - 1)
    per_layer = tokens * activation_bytes(d, config.precision)
    kept = tokens * d.hidden * BYTES[resolved_precision(config.precision)]
    activations = layers * kept + per_layer if config.gradient_checkpointing else layers * per_layer
    unpacked = 2.0 * d.hidden * d.intermediate if config.precision == "nf4" else 0.0  # one matrix at a time
    running = weight_bytes(d, config.precision) + state + activations + unpacked + scored * d.vocabulary * SCORE_BYTES
    return PROCESS_BYTES + max(running, loading_bytes(d, config.precision, device))


def activation_bytes(d: Dimensions, precision: Precision) -> float:
    """Return what one decoder layer keeps of one token for the backward pass, LoRA on all of its linear modules.

    In numbers of the compute type: the modules' inputs cast for their adapters (6 hidden and 1 intermediate), queries, keys, values and
    attention's output before and after rotation, and the MLP's gate, activation, up and product. In float32: both norms' inputs and
    normalised outputs.
    """
    attention = 3 * (d.heads + d.key_value_heads) * d.head_size
    return BYTES[resolved_precision(precision)] * (6 * d.hidden + attention + 5 * d.intermediate) + 4.0 * 4 * d.hidden


def generation_bytes(d: Dimensions, spec: ModelSpec, tokens: float, device: str) -> float:
    """Return the peak of answering `spec.batch_size` prompts at once, each sequence of `tokens`, prompt and completion.

    An adapter is merged in float32 before it is rounded, unless the base is 4-bit.
    """
    scores = spec.batch_size * d.vocabulary * 4.0 * 3
    size = BYTES[resolved_precision(spec.precision)]
    prefill = min(spec.batch_size * tokens, max(tokens, tokens_at_once(device))) * (6 * d.hidden + 3 * d.intermediate) * size
    head = d.vocabulary * d.hidden * size if d.tied and device == "cpu" else 0.0  # packed, beside the embedding that it is
    cache = spec.batch_size * tokens * 2 * d.layers * d.key_value_heads * d.head_size * size
    running = weight_bytes(d, spec.precision) + head + cache + max(scores, prefill)
    merged = spec.adapter is not None and spec.precision != "nf4"
    return PROCESS_BYTES + max(running, loading_bytes(d, "float32" if merged else spec.precision, device))
