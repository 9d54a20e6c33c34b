"""Make a loaded model fast on a CPU: the same sums by quicker routes, for inference only.

Measured for a 135M model decoding 64 rows in bfloat16 on two cores, in milliseconds a step (best of several, a busy machine):

1. `transformers` with its dynamic cache                                                   331
2. a cache written in place, and attention of one query by two batched matrix products     173
3. linear layers whose weights are put into oneDNN's blocked layout once, not at every call 128
4. the gate's activation and the product with it done inside those layers                  109

And batches run in a thread that has the processor's cores to itself (`release_threads`).

Where a route isn't open (4-bit weights, a GPU, a PyTorch without these operators) the model is left as it is.
"""

import ctypes
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "cai_grouped_sdpa"
_SOFT = 1
"""OpenMP 5.0, `omp_pause_soft`: let go of resources, and keep the settings."""
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
        head = model.get_output_embeddings()
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear and child.weight.dtype == model.dtype:
                    setattr(module, name, PackedLinear(child, keep_plain=child is head))
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if _is_gated(child):
                    setattr(module, name, GatedMLP(child))
        _leave_file(model)
    return model


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
        layer = PackedLinear(nn.Linear(32, 32, bias=False, dtype=dtype).requires_grad_(False))
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
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x`, of the same shape."""
        gate = torch.ops.mkldnn._linear_pointwise(x, self.gate.weight, self.gate.bias, "swish", [], "")
        return self.down(torch.ops.mkldnn._linear_pointwise.binary(x, gate, self.up.weight, self.up.bias, "mul"))  # type: ignore[no-any-return]


class _Gate:
    def __init__(self, layer: PackedLinear) -> None:
        self.gate_proj = self.up_proj = self.down_proj = layer


def _is_gated(module: Any) -> bool:
    """Whether a module is the usual gated MLP with SiLU, as in Llama, Mistral, Qwen and SmolLM."""
    if set(dict(module.named_children())) - {"act_fn"} != {"gate_proj", "up_proj", "down_proj"}:
        return False
    packed = all(isinstance(getattr(module, name), PackedLinear) for name in ("gate_proj", "up_proj", "down_proj"))
    return packed and type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")


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
        attention_mask: additive, `[B, 1, Q, T]`.
        scaling: what to multiply scores with.

    Returns:
        `[B, Q, heads, D]`, and None for the weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, queries, size = query.shape
    odd = kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    if odd or attention_mask is None or rows * heads * queries * key.shape[2] > _MOST_SCORES:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, key.shape[1], -1, size)
    scores = torch.matmul(grouped, key.transpose(2, 3)).view(rows, heads, queries, -1).add_(attention_mask)
    weights = torch.softmax(scores, -1).view(rows, key.shape[1], -1, key.shape[2])
    mixed = torch.matmul(weights, value).view(rows, heads, queries, value.shape[-1])
    return mixed.transpose(1, 2).contiguous(), None
