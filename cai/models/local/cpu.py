"""Speed up a loaded model on a CPU: the same computation with faster operators, for inference only.

1. A cache written in place, and attention of one query by two batched matrix products.
2. Linear layers whose weights are put into oneDNN's blocked layout once, not at every call.
3. The gate's activation and the product with it fused into those layers.
4. In float32, small weights transposed for MKL, and attention's rotation and the norms in one operator each.

Batches also run in a thread that does not share the cores with idle OpenMP threads (`release_threads`). Where an operator is not available
(4-bit weights, a GPU, an older PyTorch) the model is left unchanged. What each gained is in docs/log.md.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "cai_grouped_sdpa"
_SOFT = 1
"""OpenMP 5.0, `omp_pause_soft`: release resources, keep the settings."""
_SILU = ("SiLU", "SiLUActivation")
_ROTARY = ("LlamaAttention", "MistralAttention", "Qwen2Attention")
_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")
_SMALL_WEIGHTS = 1_000_000
"""Up to this many float32 weights, MKL's product is about as fast as oneDNN's, or faster (docs/log.md). It takes transposed weights."""
MOST_SCORES = 8_000_000
"""Largest number of attention scores to store. Above it the flash kernel, which stores none, is as fast."""


def speed_up(model: Any) -> Any:
    """Change a model's modules in place for fast inference on the CPU, and return it. It can't be trained or saved afterwards."""
    if model.device.type != "cpu":
        return model
    if model.config._attn_implementation == "sdpa" and getattr(model, "_supports_attention_backend", False):
        _register()
        model.set_attn_implementation(_NAME)
    if model.dtype in (torch.bfloat16, torch.float32) and can_pack(model.dtype):
        _replace(model, lambda child: _quick_block(child, model.dtype))
        head = model.get_output_embeddings()
        _replace(model, lambda child: _quick_linear(child, model.dtype, child is head))
        _leave_file(model)
    return model


def _replace(model: Any, quick: Callable[[Any], Any]) -> None:
    """Replace each module of a model by what `quick` returns for it, which may be the module itself."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if (replacement := quick(child)) is not child:
                setattr(module, name, replacement)


def _quick_block(module: Any, dtype: torch.dtype) -> Any:
    """Return a faster MLP, attention or norm if the module is of a known kind, else the module."""
    kind, parts = type(module).__name__, {name: child for name, child in module.named_children() if name != "act_fn"}
    if any(type(part) is not nn.Linear or part.weight.dtype != dtype for part in parts.values()):
        return module
    if parts.keys() == {"gate_proj", "up_proj", "down_proj"} and type(getattr(module, "act_fn", None)).__name__ in _SILU:
        return GatedMLP(module)
    if dtype != torch.float32 or not type(module).__module__.startswith("transformers.models."):
        return module
    if kind in _ROTARY:
        return RotaryAttention(module)
    if kind in _NORMS:
        norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
        norm.weight = module.weight
        return norm
    return module


def _quick_linear(module: Any, dtype: torch.dtype, is_head: bool) -> Any:
    """Return a linear layer packed, or with its weight transposed in memory, whichever is faster."""
    if type(module) is not nn.Linear or module.weight.dtype != dtype:
        return module
    if dtype == torch.float32 and module.weight.numel() <= _SMALL_WEIGHTS and not is_head:
        module.weight.data = module.weight.data.T.contiguous().T
        return module
    return PackedLinear(module, keep_plain=is_head)


def release_threads() -> None:
    """End OpenMP's worker threads of the calling thread, which is about to wait. OpenMP starts new ones when needed.

    Every thread that has computed in parallel keeps a set of workers. GNU's OpenMP lets idle workers spin, but puts them to sleep after
    each task once there are more of them than cores. With a second set, kept by the thread that loaded the model or trained, batches took
    a third longer (docs/log.md).
    """
    if (openmp := _gnu_openmp()) is not None:
        openmp.omp_pause_resource_all(_SOFT)


@cache
def _gnu_openmp() -> Any:
    """Return GNU's OpenMP library if this process has loaded it and it can release threads, else None."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):  # AttributeError: a system without RTLD_NOLOAD
        return None
    return library if hasattr(library, "omp_pause_resource_all") else None


def _leave_file(model: Any) -> None:
    """Copy the weights that were not packed. They are views of the mapped file, and a single view keeps the whole file in memory."""
    copies: dict[int, Tensor] = {}
    for parameter in model.parameters():
        copy = parameter.data.clone()
        copies[parameter.data_ptr()] = copy
        parameter.data = copy
    head = model.get_output_embeddings()
    plain = getattr(head, "plain_weight", None)
    if plain is not None:  # a tied embedding has been copied already
        head.plain_weight = copies[plain.data_ptr()] if plain.data_ptr() in copies else plain.clone()


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators for weights of this type. Tries them, because they are not in its public interface."""
    try:
        layer = nn.Linear(32, 32, bias=False, dtype=dtype).requires_grad_(False)
        return bool(GatedMLP(_Gate(layer))(torch.ones(1, 32, dtype=dtype)).isfinite().all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class PackedLinear(nn.Module):
    """A linear layer whose weight is stored in oneDNN's blocked layout.

    `plain_weight` is the original weight, kept only for the output layer.
    """

    def __init__(self, linear: nn.Linear, keep_plain: bool = False) -> None:
        super().__init__()
        self.plain_weight = linear.weight.detach() if keep_plain else None
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T + bias`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))` in three operators."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate, self.up, self.down = PackedLinear(mlp.gate_proj), PackedLinear(mlp.up_proj), mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x`, of the same shape."""
        gate = torch.ops.mkldnn._linear_pointwise(x, self.gate.weight, self.gate.bias, "swish", [], "")
        return self.down(torch.ops.mkldnn._linear_pointwise.binary(x, gate, self.up.weight, self.up.bias, "mul"))  # type: ignore[no-any-return]


class _Gate:
    def __init__(self, layer: nn.Linear) -> None:
        self.gate_proj = self.up_proj = self.down_proj = layer


class RotaryAttention(nn.Module):
    """Attention with rotary position embeddings, as in Llama, Mistral and Qwen 2, one operator each for queries and keys. Float32 only.

    The two numbers that are rotated together are half a head apart. Here the rows of the query and key weights are reordered so that they
    are adjacent, as the two parts of a complex number. Products of queries and keys don't depend on the order.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        self.layer, self.size, self.scaling = attention.layer_idx, attention.head_dim, attention.scaling
        self.num_key_value_groups = attention.num_key_value_groups
        for linear in (self.q, self.k):
            for parameter in linear.parameters():
                heads = parameter.data.view(-1, 2, self.size // 2, *parameter.shape[1:])
                parameter.data = heads.transpose(1, 2).reshape(parameter.shape)

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Any, past_key_values: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Return the same as the original layer.

        Args:
            hidden_states: `[B, Q, hidden]`.
            position_embeddings: cosines and sines, each `[B, Q, D]`, whose two halves are equal.
        """
        cos, sin = (part[:, :, None, : self.size // 2].contiguous() for part in position_embeddings)
        turn = torch.complex(cos, sin)

        def heads(linear: Any) -> Tensor:
            return linear(hidden_states).view(*hidden_states.shape[:2], -1, self.size)  # type: ignore[no-any-return]

        def turned(linear: Any) -> Tensor:
            pairs = torch.view_as_complex(heads(linear).view(*hidden_states.shape[:2], -1, self.size // 2, 2))
            return torch.view_as_real(pairs * turn).flatten(-2).transpose(1, 2)

        query, key, value = turned(self.q), turned(self.k), heads(self.v).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer)
        mixed, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.out(mixed.flatten(2)), None


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(_NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Grouped-query attention without copying keys and values: the queries of one key-value head are multiplied together.

    Args:
        query: `[B, heads, Q, D]`.
        key: `[B, key-value heads, T, D]`.
        value: as `key`.
        attention_mask: `[B, 1, Q, T]`, additive. With another mask, or None, PyTorch's attention is used.
        scaling: factor of the scores; None: 1/√D.

    Returns:
        `[B, Q, heads, D]`, and None for the weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, queries, size = query.shape
    odd = kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    if odd or attention_mask is None or attention_mask.dtype == torch.bool or rows * heads * queries * key.shape[2] > MOST_SCORES:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows * key.shape[1], -1, size)
    scores = torch.bmm(grouped, key.flatten(0, 1).transpose(1, 2)).view(rows, heads, queries, -1).add_(attention_mask)
    weights = torch.softmax(scores, -1).view(len(grouped), -1, key.shape[2])
    mixed = torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, queries, value.shape[-1])
    return mixed.transpose(1, 2).contiguous(), None
