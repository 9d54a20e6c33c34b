"""How fast this machine runs a model: a rough first estimate, from two matrix products that take less than a second.

Arithmetic scales with 2 FLOP per weight and token (Kaplan et al. 2020, arXiv 2001.08361, §2.1), and twice that for a training step with
frozen weights. A decoding step reads all weights once. Not measured: disks, 4-bit weights (taken for bfloat16) and wide nuclei.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cai.models.local.precision import resolved_precision
from cai.pipeline.memory import Dimensions
from cai.recipe import Precision

READ_PART, TRAIN_PART = 0.8, 0.7
"""Of a matrix product's rate, what models reach that read texts, and that train an adapter. Measured on a core of an Intel Xeon."""
LAYER_SECONDS = 4e-4
"""Of a decoding step, for each layer, beside its arithmetic: the interpreter and the launches of kernels. Measured there too."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does in one precision, a second."""

    flops: float
    """In a product of large matrices."""
    weights: float
    """Read from memory, in the product of a matrix and one vector."""


def forward_flop(d: Dimensions, tokens: float, length: float, layers: int | None = None) -> float:
    """Return the FLOP of a forward pass of `tokens` in all, in sequences of `length`, through `layers` decoder layers, or all."""
    return (layers or d.layers) * tokens * (2.0 * d.linear / d.layers + 2.0 * length * d.heads * d.head_size)


def step_seconds(d: Dimensions, rates: Rates) -> float:
    """Return the seconds of a decoding step without its arithmetic, which grows with the sequences in it."""
    return (d.linear + d.vocabulary * d.hidden) / rates.weights + d.layers * LAYER_SECONDS


def nominal_rates(precision: Precision) -> Rates:
    """Return about two cores' rates, without a probe: enough to compare runs, where only ratios count."""
    return Rates(2e11, 5e9)


def device() -> str:
    """Return where local models run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def probe(precision: Precision, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Measure this machine."""
    import torch

    where, size = device(), 8192 if device() == "cuda" else 4096
    dtype = torch.float32 if resolved_precision(precision) == "float32" else torch.bfloat16
    matrix, vectors = torch.rand(size, size, dtype=dtype, device=where), torch.rand(256, size, dtype=dtype, device=where)

    def timed(rows: int, times: int) -> float:
        """Return the mean seconds of a product, after one that is not counted."""
        for i in range(1 + times):
            if i == 1:
                started = clock()
            torch.nn.functional.linear(vectors[:rows], matrix)
            if where == "cuda":
                torch.cuda.synchronize()
        return (clock() - started) / times

    return Rates(2 * vectors.numel() * size / timed(256, 4), matrix.numel() / timed(1, 16))
