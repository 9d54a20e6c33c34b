"""How fast this machine runs a model: a rough first estimate, from one probe of a few seconds.

A random model of the asked shape, smaller where it is large, runs prompts and decoding steps as the engine does, and one training step
through adapters. Arithmetic scales with the usual 2 FLOP per weight and token (Kaplan et al. 2020, arXiv 2001.08361, §2.1), and twice
that for a training step with frozen weights. Not measured: disks, 4-bit weights (taken for bfloat16) and wide nuclei.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cai.models.local.precision import resolved_precision
from cai.pipeline.memory import CONFIG_NAMES, Dimensions
from cai.recipe import LoraSpec, Precision

PROBE_WEIGHTS = {"cpu": 5e7, "cuda": 6e8}
"""On a CPU more than its caches hold; on a GPU, where a small step takes as long as its kernels' launches, layers of full width."""
_LENGTH, _ROWS, _STEPS = 64, (4, 32), 8


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does for a model of one shape, in one precision."""

    read_flops: float
    """A second, of prompts."""
    step_seconds: float
    """Of a decoding step, however many sequences it has: the weights are read."""
    row_seconds: float
    """More for each sequence, its draw included."""
    train_flops: float
    """A second, forward and backward through adapters."""


def forward_flop(d: Dimensions, tokens: float, length: float, layers: int | None = None) -> float:
    """Return the FLOP of a forward pass of `tokens` in all, in sequences of `length`, through `layers` decoder layers, or all."""
    return (layers or d.layers) * tokens * (2.0 * d.linear / d.layers + 2.0 * length * d.heads * d.head_size)


def nominal_rates(d: Dimensions, precision: Precision) -> Rates:
    """Return about two cores' rates, without a probe: enough to compare runs, where only ratios count."""
    weights = d.linear + d.vocabulary * d.hidden
    return Rates(2e11, weights / 4e9, weights / 1e11, 1e11)


def device() -> str:
    """Return where local models run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def probe(d: Dimensions, precision: Precision, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Measure this machine for a model, in a few seconds and with memory for two times `PROBE_WEIGHTS`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cai.models.local.cpu import speed_up
    from cai.models.local.generate import CompletionRow, complete
    from cai.models.local.prefix import run_prompts
    from cai.train.arguments import with_new_adapter
    from cai.train.running import quiet_training

    small, where = probe_shape(d, device()), device()
    config = LlamaConfig(**{name: getattr(small, field) for field, name in CONFIG_NAMES.items()})
    dtype = torch.float32 if resolved_precision(precision) == "float32" else torch.bfloat16

    def timed(run: Callable[[], object]) -> float:
        started = clock()
        run()
        if where == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    def random_model() -> LlamaForCausalLM:
        with torch.device(where):
            return LlamaForCausalLM(config).to(dtype).eval()

    def ids(rows: int) -> list[list[int]]:
        return [[(7 * i + 11 * j) % small.vocabulary for j in range(_LENGTH)] for i in range(rows)]

    def step(rows: int) -> float:
        """Return the seconds of a decoding step of rows that share all of their prompt but its last token."""
        prompts = [[*ids(1)[0], i] for i in range(rows)]
        batches = [[CompletionRow(p, n, 1.0, 1.0, 0) for p in prompts] for n in (1, 1 + _STEPS)]
        first, every = (timed(lambda batch=batch: complete(model, batch, frozenset())) for batch in batches)  # type: ignore[misc]
        return max(0.0, every - first) / _STEPS

    def train(batch: torch.Tensor) -> None:
        with torch.autocast(where, torch.bfloat16, enabled=dtype != torch.float32):
            adapted(input_ids=batch, labels=batch, use_cache=False).loss.backward()

    with quiet_training():
        model = speed_up(random_model())
        few, many = (step(rows) for rows in _ROWS)
        with torch.inference_mode():
            reading = timed(lambda: run_prompts(model, ids(8)))
        adapted = with_new_adapter(random_model(), LoraSpec()).train()
        batch = torch.tensor(ids(4), device=where)
        train(batch[:1, :8])  # the first step takes longer
        training = timed(lambda: train(batch))
    row = max(0.0, many - few) / (_ROWS[1] - _ROWS[0])
    head = small.vocabulary * small.hidden
    larger = (d.linear + d.vocabulary * d.hidden) / (small.linear + head)
    trained = 2 * forward_flop(small, batch.numel(), _LENGTH) + 4.0 * batch.numel() * head
    read = forward_flop(small, 8 * _LENGTH, _LENGTH)
    return Rates(read / reading, max(0.0, few - _ROWS[0] * row) * larger, row * larger, trained / training)


def probe_shape(d: Dimensions, where: str) -> Dimensions:
    """Return the shape to measure in place of another: a part of the vocabulary, fewer layers, and narrower ones if one is too large."""
    if d.parameters <= PROBE_WEIGHTS[where]:
        return d
    d = replace(d, vocabulary=min(d.vocabulary, 32_000), tied=True)
    while d.linear / d.layers > PROBE_WEIGHTS[where] / 2 and min(d.heads, d.key_value_heads) > 1:
        d = replace(d, hidden=d.hidden // 2, intermediate=d.intermediate // 2, heads=d.heads // 2, key_value_heads=d.key_value_heads // 2)
    return replace(d, layers=max(1, min(d.layers, int((PROBE_WEIGHTS[where] - d.other) * d.layers / d.linear))))
