"""Precision and batch size for this machine. `precision: auto` is bfloat16 where it is faster, else float32."""

import time
from functools import cache
from typing import Literal

from cai.recipe import Precision

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""CPU flags of x86 and Arm for bfloat16 instructions. A CPU without them converts every number first."""
ENOUGH_FASTER = 1.25
"""Smallest speed-up for which `auto` chooses bfloat16. Measured speed-ups are far from it: 0.5 or less, or 2 or more (docs/log.md)."""
_SIDE, _REPEATS = 512, 20


def tokens_at_once(device: str) -> int:
    """Return how many tokens, padding included, to run in one forward pass without gradients on a device of this type.

    On a CPU this fills the matrix units, while rows have nearly equal lengths and activations stay in the processor's caches: reward
    models score about twice as many texts per second as with 16,384 tokens (docs/log.md).
    """
    return 512 if device == "cpu" else 16_384


def resolved_precision(precision: Precision) -> Literal["float32", "bfloat16", "nf4"]:
    """Return the precision to load and compute in.

    On a CPU with bfloat16 instructions, `auto` times a matrix product in both precisions, which takes some hundredths of a second. An
    Intel processor whose AMX is hidden by a virtual machine needs twice the time of float32 (AVX512-BF16); others need half of it.
    """
    return fastest_precision() if precision == "auto" else precision


@cache
def fastest_precision() -> Literal["float32", "bfloat16"]:
    """Return what `auto` is on this machine; found out once per process."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    able = torch.cpu.get_capabilities()
    if not any(able.get(name) for name in BFLOAT16_FLAGS):
        return "float32"
    in_float32, in_bfloat16 = product_seconds()
    return "bfloat16" if in_float32 > ENOUGH_FASTER * in_bfloat16 else "float32"


def product_seconds() -> tuple[float, float]:
    """Return the shortest time of a matrix product in float32 and in bfloat16, in seconds, on one core, measured alternately.

    Many short products on one core: other work on the machine slows most of them down, but not all.
    """
    import torch

    sides = [torch.ones(_SIDE, _SIDE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    timings: tuple[list[float], list[float]] = ([], [])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + _REPEATS):
            for side, seconds in zip(sides, timings, strict=True):
                started = time.perf_counter()
                torch.mm(side[:128], side)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(timings[0][1:]), min(timings[1][1:])
