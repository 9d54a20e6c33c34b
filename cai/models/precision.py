"""What `precision: auto` means on this machine: bfloat16 where the processor multiplies it, float32 where it would be imitated."""

from functools import cache
from typing import Literal

from cai.recipe import Precision


def resolved_precision(precision: Precision) -> Literal["float32", "bfloat16", "nf4"]:
    """Return the precision to load and compute in.

    A CPU without bfloat16 instructions (AVX512-BF16, AMX, or Arm's BF16) widens every number first: on such a machine the embedded
    model decoded 2.6 and 2.9 times faster in float32, and large matrices were multiplied two to four times faster (docs/log.md).
    """
    return _fastest() if precision == "auto" else precision


@cache
def _fastest() -> Literal["float32", "bfloat16"]:
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "float32"
