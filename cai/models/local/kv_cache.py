"""KV cache for a batch of rows, and its attention masks.

`transformers`' dynamic cache copies all keys and values at every step. This one is allocated once and written in place. It can drop
finished rows, and repeat rows so that many share one prefix. Rows are padded on the left, so all rows write to the same position;
`valid` marks the positions that are not padding.

Shapes: B rows, H key-value heads, T positions, D head size, Q query positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from cai.errors import ModelError


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, `[B, H, capacity, D]`; the first `length` positions are written."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers. Heads, dtype and device are known only now."""
        self.keys = key_states.new_zeros(*key_states.shape[:2], self.capacity, key_states.shape[3])
        self.values = value_states.new_zeros(*value_states.shape[:2], self.capacity, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new positions and return all written ones. After a single position, return the whole buffer: it multiplies faster."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        end = self.capacity if key_states.shape[2] == 1 else self.length
        return self.keys[:, :, :end], self.values[:, :, :end]

    def take(self, rows: Tensor, first_position: int, capacity: int) -> "_Layer":
        """Return a layer with the given rows (repeats allowed), without the positions before `first_position`."""
        taken = _Layer(capacity)
        taken.length = self.length - first_position
        if self.is_initialized:
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_empty(len(rows), old.shape[1], capacity, old.shape[3])
                torch.index_select(old[:, :, first_position : self.length], 0, rows, out=new[:, :, : taken.length])
                new[:, :, taken.length :] = 0
                setattr(taken, name, new)
            taken.is_initialized = True
        return taken

    def get_seq_length(self) -> int:
        """Return the number of positions written."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of positions after a query of this length, and the offset of the first."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Return the number of positions allocated."""
        return self.capacity


class KVCache:
    """Keys and values of one batch, for all layers of a model. `capacity`: positions per row, for the prompt and the completion."""

    def __init__(self, model: Any, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self.window = attention_windows(model.config.get_text_config(decoder=True))
        self.cache = Cache(layers=[_Layer(capacity) for _ in range(model.config.get_text_config(decoder=True).num_hidden_layers)])
        self.valid = torch.zeros(0, 0, dtype=torch.bool, device=model.device)

    @property
    def length(self) -> int:
        """Number of positions written."""
        return self.valid.shape[1]

    def forward(self, ids_BQ: Tensor, valid_BQ: Tensor, keep: int = 1) -> Tensor:
        """Run new positions through the model; return the logits of the last `keep` of them, `[B, keep, vocabulary]`.

        Args:
            ids_BQ: token ids; any value at padding.
            valid_BQ: True where a position is not padding.
            keep: number of last positions to compute logits for, which cost more than the layers; 0 only fills the cache.
        """
        inputs = self._inputs(ids_BQ, valid_BQ)
        if keep == 0:
            hidden: Tensor = self.model.base_model(**inputs).last_hidden_state
            return hidden[:, :0]
        logits: Tensor = self.model(**inputs, logits_to_keep=keep).logits
        return logits

    def states(self, ids_BQ: Tensor, valid_BQ: Tensor, layers: Sequence[int]) -> Tensor:
        """Run new positions through the model; return their hidden states, `[layers, B, Q, hidden]`, in float32.

        Args:
            ids_BQ: token ids; any value at padding.
            valid_BQ: True where a position is not padding.
            layers: counted from 1.
        """
        found: dict[int, Tensor] = {}

        def keep(layer: int, output: Any) -> None:
            found[layer] = (output[0] if isinstance(output, tuple) else output).float()

        modules = self.model.base_model.layers
        hooks = [modules[n - 1].register_forward_hook(lambda _, inputs, output, n=n: keep(n, output)) for n in layers]
        try:
            self.model.base_model(**self._inputs(ids_BQ, valid_BQ))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([found[layer] for layer in layers])

    def _inputs(self, ids_BQ: Tensor, valid_BQ: Tensor) -> dict[str, Any]:
        """Return the model's arguments for new positions, and count them as written."""
        self.valid = torch.cat([self.valid if self.length else valid_BQ[:, :0], valid_BQ], dim=1)
        positions_BT = (self.valid.long().cumsum(1) - 1).clamp(min=0)
        positions_BQ = positions_BT[:, -ids_BQ.shape[1] :]
        seen = self.valid
        if ids_BQ.shape[1] == 1 and self.length < self.capacity:  # the layers return their whole buffers: mask what is not written
            unwritten = (0, self.capacity - self.length)
            seen, positions_BT = torch.nn.functional.pad(seen, unwritten), torch.nn.functional.pad(positions_BT, unwritten)
        mask = self._masks(seen, positions_BQ, positions_BT)
        return {
            "input_ids": ids_BQ,
            "attention_mask": mask,
            "position_ids": positions_BQ,
            "past_key_values": self.cache,
            "use_cache": True,
        }

    def take(self, rows: Tensor, room: int, *, last: bool = False) -> "KVCache":
        """Return a cache with the given rows (repeats allowed), without leading positions that are padding in all of them.

        Args:
            room: positions to leave free.
            last: free each layer of this cache once it is copied, so that memory never holds two whole caches. This cache can't be used
                afterwards.
        """
        valid = self.valid[rows]
        first = int(valid.any(0).int().argmax()) if bool(valid.any()) else self.length
        taken = KVCache(self.model, self.length - first + room)
        taken.valid = valid[:, first:]
        layers = []
        for layer in self.cache.layers:
            layers.append(layer.take(rows, first, taken.capacity))
            if last:
                layer.keys = layer.values = None
        taken.cache = Cache(layers=layers)
        return taken

    def _masks(self, seen_BT: Tensor, positions_BQ: Tensor, positions_BT: Tensor) -> Any:
        """Return additive masks `[B, 1, Q, T]`: 0 where a query attends to a position, a large negative number elsewhere."""
        dtype = self.model.dtype
        visible = seen_BT[:, None, :] & (positions_BT[:, None, :] <= positions_BQ[:, :, None])
        near = visible
        if self.window.size is not None:
            near = visible & (positions_BT[:, None, :] > positions_BQ[:, :, None] - self.window.size)

        def additive(seen: Tensor) -> Tensor:
            return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

        if self.window.mixed:
            return {"full_attention": additive(visible), "sliding_attention": additive(near)}
        return additive(near)


@dataclass(frozen=True)
class Windows:
    """Attention windows of a model's layers."""

    size: int | None
    """Positions that a sliding-window layer attends to; None: all."""
    mixed: bool
    """Whether the model takes one mask per kind of layer."""


def join(parts: list[KVCache], order: Tensor, room: int) -> KVCache:
    """Return one cache that holds the rows of several, aligned on the right. The keys and values of `parts` are freed.

    Args:
        parts: caches of one model. Their rows are numbered consecutively over all parts.
        order: new index of each of these rows; a permutation.
        room: positions to leave free.
    """
    length = max(part.length for part in parts)
    model = parts[0].model
    joined = KVCache(model, length + room)
    joined.valid = torch.zeros(len(order), length, dtype=torch.bool, device=model.device)
    start = 0
    targets = []
    for part in parts:
        targets.append(order[start : start + part.valid.shape[0]])
        joined.valid[targets[-1], length - part.length :] = part.valid
        start += part.valid.shape[0]
    layers = []
    for i in range(len(joined.cache.layers)):
        layer = _Layer(joined.capacity)
        layer.length = length
        for part, rows in zip(parts, targets, strict=True):
            old = part.cache.layers[i]
            if not old.is_initialized:
                continue
            for name in ("keys", "values"):
                values = getattr(old, name)
                if getattr(layer, name) is None:
                    setattr(layer, name, values.new_zeros(len(order), values.shape[1], joined.capacity, values.shape[3]))
                getattr(layer, name)[rows, :, length - part.length : length] = values[:, :, : part.length]
            layer.is_initialized = True
            old.keys = old.values = None  # free each layer once it is copied
        layers.append(layer)
    joined.cache = Cache(layers=layers)
    return joined


def attention_windows(config: Any) -> Windows:
    """Return the attention windows of a model's layers.

    Raises:
        ModelError: some layers are neither full nor sliding-window attention (linear attention, state-space models).
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{config.model_type}: has layers of type {', '.join(sorted(kinds))}, which the local engine can't run.\n"
            "Fix: serve it with vLLM and give the server's URL as the model's path"
        )
    size = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        size = None
    return Windows(size if kinds != {"full_attention"} else None, bool(kinds))
