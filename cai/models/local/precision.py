"""What suits this machine: what `precision: auto` means (bfloat16 where it is the faster one, else float32), and how much runs at once."""

import time
from functools import cache
from typing import Literal

from cai.recipe import Precision

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Of x86 and Arm: a CPU without any of them widens every number first."""
ENOUGH_FASTER = 1.25
"""How much faster bfloat16 has to be. What was measured is far from it on either side: 0.5 and below, 2 and above (docs/log.md)."""
_SIDE, _REPEATS = 512, 20


def tokens_at_once(device: str) -> int:
    """Return how many tokens, padding included, to run in one pass without gradients on a device of this type.

    On a CPU enough for the matrix units, and few enough that rows are of nearly one length and activations stay in the caches: reward
    models score about twice as many texts a second as with 16,384 (docs/log.md).
    """
    return 512 if device == "cpu" else 16_384


def resolved_precision(precision: Precision) -> Literal["float32", "bfloat16", "nf4"]:
    """Return the precision to load and compute in.

    On a CPU that has instructions for bfloat16, `auto` multiplies a matrix in both precisions, for some hundredths of a second: an Intel
    processor whose AMX is hidden by a virtual machine takes twice the time of float32 with AVX512-BF16, others half of it.
    """
    return _fastest() if precision == "auto" else precision


@cache
def _fastest() -> Literal["float32", "bfloat16"]:
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    able = torch.cpu.get_capabilities()
    if not any(able.get(name) for name in BFLOAT16_FLAGS):
        return "float32"
    in_float32, in_bfloat16 = _product_seconds()
    return "bfloat16" if in_float32 > ENOUGH_FASTER * in_bfloat16 else "float32"


def _product_seconds() -> tuple[float, float]:
    """Return the least seconds of a product in float32 and in bfloat16 on one core, taken in turn.

    Short ones, many of them: other work on the machine lengthens most, but not all, and would lengthen those on several cores.
    """
    import torch

    sides = [torch.ones(_SIDE, _SIDE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    found: tuple[list[float], list[float]] = ([], [])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + _REPEATS):
            for side, seconds in zip(sides, found, strict=True):
                started = time.perf_counter()
                torch.mm(side[:128], side)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(found[0][1:]), min(found[1][1:])
