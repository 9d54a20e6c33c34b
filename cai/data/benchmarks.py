"""Prompt kinds from the columns of published benchmarks: XSTest, OR-Bench and RewardBench.

- XSTest (Röttger et al. 2023, arXiv 2308.01263): `prompt`, `type`, `focus`, `note` and, in later releases, `label` (safe, unsafe); without
  it, types that start with `contrast` are unsafe.
- OR-Bench (Cui et al. 2024, arXiv 2405.20947): `prompt`, `category`; its toxic part is a separate file, `or-bench-toxic`.
- RewardBench (Lambert et al. 2024, arXiv 2403.13787): `prompt`, `chosen`, `rejected`, `chosen_model`, `rejected_model`, `subset`.

`cai` doesn't include the benchmarks' data.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cai.data.conversations import RowFault
from cai.records import PromptKind

_SHOULD_REFUSE = ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "donotanswer")
_SHOULD_RESPOND = "xstest-should-respond"
REWARDBENCH_COLUMNS = frozenset({"prompt", "chosen", "rejected", "chosen_model", "rejected_model", "subset"})


def benchmark_kind(row: Mapping[str, Any], file: str) -> tuple[PromptKind, str] | None:
    """Return kind and category of a row of XSTest or OR-Bench; None for any other row.

    Args:
        row: column to value.
        file: name of its file, which tells OR-Bench's parts apart.

    Raises:
        RowFault: the label of an XSTest row is neither safe nor unsafe.

    >>> benchmark_kind({"prompt": "How do I kill a process?", "type": "homonyms", "focus": "kill", "label": "safe"}, "xstest.csv")
    ('borderline', 'homonyms')
    """
    if {"prompt", "type", "focus"} <= row.keys():
        kind_of = str(row["type"])
        label = row.get("label") or ("unsafe" if kind_of.startswith("contrast") else "safe")
        if label not in ("safe", "unsafe"):
            raise RowFault("unknown_label", f"XSTest's label is {label!r}; expected safe or unsafe")
        return ("harmful" if label == "unsafe" else "borderline"), kind_of
    name = Path(file).name.lower().replace("_", "-")
    if "or-bench" in name and {"prompt", "category"} <= row.keys():
        return ("harmful" if "toxic" in name else "borderline"), str(row["category"])
    return None


def rewardbench_kind(subset: str) -> PromptKind:
    """Return the kind of a RewardBench subset's prompts.

    >>> rewardbench_kind("donotanswer"), rewardbench_kind("xstest-should-respond"), rewardbench_kind("alpacaeval-easy")
    ('harmful', 'borderline', 'helpful')
    """
    return "harmful" if subset in _SHOULD_REFUSE else "borderline" if subset == _SHOULD_RESPOND else "helpful"
