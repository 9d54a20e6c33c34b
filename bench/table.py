"""What a bench finds, in one form: a row says what was compared with what, the ratio, its spread, and over how many repeats.

`machine()` says what the rows were measured on.
"""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.manifest import installed_versions, machine_facts

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")
"""Of a processor: those that decide how fast it multiplies matrices, and in which precision."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison, or one figure of ours with nothing beside it."""

    bench: str
    what: str
    against: str
    """What a user would do otherwise; empty where there is nothing."""
    value: float
    """The ratio, ours better above 1; or the figure, in `unit`."""
    low: float
    high: float
    """Least and greatest of the repeats."""
    n: int
    """Repeats."""
    unit: str = "×"
    note: str = ""


def row(bench: str, what: str, against: str, values: Sequence[float], unit: str = "×", note: str = "") -> Row:
    """Return a row of the median of some repeats.

    >>> row("x", "ours", "theirs", [2.0, 4.0, 3.0])
    Row(bench='x', what='ours', against='theirs', value=3.0, low=2.0, high=4.0, n=3, unit='×', note='')
    """
    return Row(bench, what, against, statistics.median(values), min(values), max(values), len(values), unit, note)


def machine() -> dict[str, Any]:
    """Return processor, flags that matter, threads, load and library versions."""
    import os

    import torch

    return {
        **machine_facts(),
        "processor": _cpuinfo("model name") or platform.processor(),
        "flags": [flag for flag in FLAGS if flag in _cpuinfo("flags").split() + _cpuinfo("Features").split()],
        "torch_threads": torch.get_num_threads(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": installed_versions(),
    }


def _cpuinfo(field: str) -> str:
    """Return a field of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")
