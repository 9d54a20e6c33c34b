"""Key-value memory for a batch of rows, and the masks that go with it.

`transformers`' dynamic cache copies every key and value at every step; this one is allocated once and written in place, drops rows
that have ended, and can be repeated so that many rows share one prefix. Rows are padded on the left, so that all of them write to
the same column; `valid` says which columns of a row are real.

Shapes: B rows, H key-value heads, T columns, D head size, Q query columns.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from cai.errors import ModelError


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, `[B, H, capacity, D]`, of which the first `length` columns are written."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, now that heads, dtype and device are known."""
        self.keys = key_states.new_zeros(*key_states.shape[:2], self.capacity, key_states.shape[3])
        self.values = value_states.new_zeros(*value_states.shape[:2], self.capacity, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new columns; return all that are written, or for a single one all there are: a whole buffer is quicker to multiply."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        end = self.capacity if key_states.shape[2] == 1 else self.length
        return self.keys[:, :, :end], self.values[:, :, :end]

    def take(self, rows: Tensor, first_column: int, capacity: int) -> "_Layer":
        """Return a layer of the given rows (repeats allowed), without the columns before `first_column`."""
        taken = _Layer(capacity)
        taken.length = self.length - first_column
        if self.is_initialized:
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_empty(len(rows), old.shape[1], capacity, old.shape[3])
                torch.index_select(old[:, :, first_column : self.length], 0, rows, out=new[:, :, : taken.length])
                new[:, :, taken.length :] = 0
                setattr(taken, name, new)
            taken.is_initialized = True
        return taken

    def get_seq_length(self) -> int:
        """Return the columns written."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the columns after a query of this length, and the offset of the first."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Return the columns allocated."""
        return self.capacity


class KVCache:
    """The memory of one batch.

    Args:
        model: the causal language model that it is for.
        capacity: columns per row, for the prompt and all that follows.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self.window = attention_windows(model.config.get_text_config(decoder=True))
        self.cache = Cache(layers=[_Layer(capacity) for _ in range(model.config.get_text_config(decoder=True).num_hidden_layers)])
        self.valid = torch.zeros(0, 0, dtype=torch.bool, device=model.device)

    @property
    def length(self) -> int:
        """Columns written."""
        return self.valid.shape[1]

    def forward(self, ids_BQ: Tensor, valid_BQ: Tensor, keep: int = 1) -> Tensor:
        """Run new columns through the model; return the logits of the last `keep` of them, `[B, keep, vocabulary]`.

        Args:
            ids_BQ: token ids; anything where not valid.
            valid_BQ: which of them are real.
            keep: logits cost more than the layers below them, so only these are computed; 0 runs the layers for their memory alone.
        """
        self.valid = torch.cat([self.valid if self.length else valid_BQ[:, :0], valid_BQ], dim=1)
        positions_BT = (self.valid.long().cumsum(1) - 1).clamp(min=0)
        positions_BQ = positions_BT[:, -ids_BQ.shape[1] :]
        seen = self.valid
        if ids_BQ.shape[1] == 1 and self.length < self.capacity:  # the layers return their whole buffers: hide what is not written
            unwritten = (0, self.capacity - self.length)
            seen, positions_BT = torch.nn.functional.pad(seen, unwritten), torch.nn.functional.pad(positions_BT, unwritten)
        mask = self._masks(seen, positions_BQ, positions_BT)
        inputs = {
            "input_ids": ids_BQ,
            "attention_mask": mask,
            "position_ids": positions_BQ,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if keep == 0:
            hidden: Tensor = self.model.base_model(**inputs).last_hidden_state
            return hidden[:, :0]
        logits: Tensor = self.model(**inputs, logits_to_keep=keep).logits
        return logits

    def take(self, rows: Tensor, room: int, *, last: bool = False) -> "KVCache":
        """Return the memory of the given rows (repeats allowed), without leading columns that none of them uses.

        Args:
            rows: indices of the rows to copy.
            room: columns to leave free for what follows.
            last: this memory isn't needed any more: each layer is let go of once it is copied, so that there is never a second whole one.
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
        """Return additive masks `[B, 1, Q, T]`: 0 where a query sees a column, a large negative number elsewhere."""
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
    """How far back layers see: `size` columns in the sliding ones (None: everywhere); `mixed` models want one mask per kind of layer."""

    size: int | None
    mixed: bool


def join(parts: list[KVCache], order: Tensor, room: int) -> KVCache:
    """Return one memory that holds the rows of several, aligned on the right.

    Args:
        parts: memories of one model; their rows are numbered through.
        order: for each number, the row that it becomes; a permutation.
        room: columns to leave free.
    """
    length = max(part.length for part in parts)
    model = parts[0].model
    whole = KVCache(model, length + room)
    whole.valid = torch.zeros(len(order), length, dtype=torch.bool, device=model.device)
    start = 0
    targets = []
    for part in parts:
        targets.append(order[start : start + part.valid.shape[0]])
        whole.valid[targets[-1], length - part.length :] = part.valid
        start += part.valid.shape[0]
    layers = []
    for i in range(len(whole.cache.layers)):
        layer = _Layer(whole.capacity)
        layer.length = length
        for part, rows in zip(parts, targets, strict=True):
            old = part.cache.layers[i]
            if not old.is_initialized:
                continue
            for name in ("keys", "values"):
                values = getattr(old, name)
                if getattr(layer, name) is None:
                    setattr(layer, name, values.new_zeros(len(order), values.shape[1], whole.capacity, values.shape[3]))
                getattr(layer, name)[rows, :, length - part.length : length] = values[:, :, : part.length]
            layer.is_initialized = True
            old.keys = old.values = None  # what has been copied is let go of at once
        layers.append(layer)
    whole.cache = Cache(layers=layers)
    return whole


def attention_windows(config: Any) -> Windows:
    """Return how far a model's layers look back: everywhere, a sliding window, or both kinds of layer.

    Raises:
        ModelError: some layers are neither (linear attention, state spaces).
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{config.model_type}: has layers of kind {', '.join(sorted(kinds))}, which the local engine can't run.\n"
            "Fix: serve it with vLLM and give the server's URL as the model's path"
        )
    size = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        size = None
    return Windows(size if kinds != {"full_attention"} else None, bool(kinds))
