"""Make a loaded model fast on a CPU: the same sums by quicker routes, for inference only.

Measured for a 135M model decoding 64 rows in bfloat16 on two cores, in milliseconds a step (best of several, a busy machine):

1. `transformers` with its dynamic cache                                                   331
2. a cache written in place, and attention of one query by two batched matrix products     173
3. linear layers whose weights are put into oneDNN's blocked layout once, not at every call 128
4. the gate's activation and the product with it done inside those layers                  109

In float32, later, on another machine, of 32 rows: with 4 as above 94; with small weights turned for MKL, and attention's rotation and the
norms in one operator each, 85.

And batches run in a thread that has the processor's cores to itself (`release_threads`).

Where a route isn't open (4-bit weights, a GPU, a PyTorch without these operators) the model is left as it is.
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
"""OpenMP 5.0, `omp_pause_soft`: let go of resources, and keep the settings."""
_SILU = ("SiLU", "SiLUActivation")
_ROTARY = ("LlamaAttention", "MistralAttention", "Qwen2Attention")
_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")
_SMALL_WEIGHTS = 1_000_000
"""Up to this many float32 weights, MKL's product takes less time than oneDNN's or about as long (docs/log.md); it wants them transposed."""
_MOST_SCORES = 8_000_000
"""Attention scores to hold at once; above this, the flash kernel, which holds none, is as fast."""


def speed_up(model: Any) -> Any:
    """Change a model's modules in place for quick inference on the CPU; return it. It can't be trained or saved afterwards."""
    if model.device.type != "cpu":
        return model
    if model.config._attn_implementation == "sdpa" and getattr(model, "_supports_attention_backend", False):
        _register()
        model.set_attn_implementation(_NAME)
    if model.dtype in (torch.bfloat16, torch.float32) and _can_pack(model.dtype):
        _replace(model, lambda child: _quick_block(child, model.dtype))
        head = model.get_output_embeddings()
        _replace(model, lambda child: _quick_linear(child, model.dtype, child is head))
        _leave_file(model)
    return model


def _replace(model: Any, quick: Callable[[Any], Any]) -> None:
    """Put in the place of every module of a model what `quick` returns for it, which may be itself."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if (found := quick(child)) is not child:
                setattr(module, name, found)


def _quick_block(module: Any, dtype: torch.dtype) -> Any:
    """Return a quicker MLP, attention or norm, for those known."""
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
    """Return a linear layer packed, or with its weight turned round in memory, whichever is quicker."""
    if type(module) is not nn.Linear or module.weight.dtype != dtype:
        return module
    if dtype == torch.float32 and module.weight.numel() <= _SMALL_WEIGHTS and not is_head:
        module.weight.data = module.weight.data.T.contiguous().T
        return module
    return PackedLinear(module, keep_plain=is_head)


def release_threads() -> None:
    """End the helper threads that OpenMP keeps for the calling thread, which is about to wait; it starts others when it needs them.

    Each thread that ever computed in parallel keeps its own. GNU's OpenMP lets helpers wait for their next piece by spinning, but sends
    them to sleep after each one as soon as there are more of them than cores, whoever they wait for: with a second set kept by the thread
    that loaded the model, or trained, batches took a third longer (docs/log.md).
    """
    if (openmp := _gnu_openmp()) is not None:
        openmp.omp_pause_resource_all(_SOFT)


@cache
def _gnu_openmp() -> Any:
    """Return GNU's OpenMP library if this process has loaded it and it can let go of threads, else None."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):  # AttributeError: a system without RTLD_NOLOAD
        return None
    return library if hasattr(library, "omp_pause_resource_all") else None


def _leave_file(model: Any) -> None:
    """Copy what wasn't packed of the weights: they lie in the mapped file, which stays in memory whole as long as one of them does."""
    copies: dict[int, Tensor] = {}
    for parameter in model.parameters():
        copy = parameter.data.clone()
        copies[parameter.data_ptr()] = copy
        parameter.data = copy
    head = model.get_output_embeddings()
    plain = getattr(head, "plain_weight", None)
    if plain is not None:  # a tied embedding has been copied already
        head.plain_weight = copies[plain.data_ptr()] if plain.data_ptr() in copies else plain.clone()


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators for such weights, by using them: they are not part of its public interface."""
    try:
        layer = nn.Linear(32, 32, bias=False, dtype=dtype).requires_grad_(False)
        return bool(GatedMLP(_Gate(layer))(torch.ones(1, 32, dtype=dtype)).isfinite().all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class PackedLinear(nn.Module):
    """A linear layer whose weight is kept in the layout that oneDNN computes in.

    `plain_weight` is the weight as it was, kept only where something else needs it: that of the output layer.
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
    """Attention with rotary positions, as in Llama, Mistral and Qwen 2, with queries and keys each turned by one operator. Float32 only.

    The two numbers that a position turns together lie half a head apart. Here the rows of the query and key weights are put in another
    order, in which they are neighbours: the two parts of a complex number. Products of queries and keys don't depend on the order.
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
        """As the layer's own.

        Args:
            hidden_states: `[B, Q, hidden]`.
            position_embeddings: cosines and sines, each `[B, Q, D]`, whose halves are the same.
            attention_mask: as `attend`.
            past_key_values: the memory, or None.
            kwargs: what `attend` may be given.
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
    """Attend with queries that share a key-value head side by side, so that no key is copied for each of them.

    Args:
        module: the layer; its training state is ignored, there is no dropout here.
        query: `[B, heads, Q, D]`.
        key: `[B, key-value heads, T, D]`.
        value: as `key`.
        attention_mask: `[B, 1, Q, T]`, additive; another, or None, is left to PyTorch.
        scaling: what to multiply scores with.

    Returns:
        `[B, Q, heads, D]`, and None for the weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, queries, size = query.shape
    odd = kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    if odd or attention_mask is None or attention_mask.dtype == torch.bool or rows * heads * queries * key.shape[2] > _MOST_SCORES:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows * key.shape[1], -1, size)
    scores = torch.bmm(grouped, key.flatten(0, 1).transpose(1, 2)).view(rows, heads, queries, -1).add_(attention_mask)
    weights = torch.softmax(scores, -1).view(len(grouped), -1, key.shape[2])
    mixed = torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, queries, value.shape[-1])
    return mixed.transpose(1, 2).contiguous(), None
