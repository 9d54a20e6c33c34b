"""`cai blend`: an adapter between two of one shape, without training.

Between the SFT adapter and the policy that was trained on from it, the weights in between behave in between (linear interpolation towards
the start, as in WARP, arXiv 2406.16768): a share of the way moves a policy's threshold, for example how readily it refuses.
"""

import shutil
from pathlib import Path
from typing import Any

from cai.core.jsonl import atomic_folder, disk_error
from cai.errors import DataError, ModelError
from cai.models.local.adapter import adapter_config, adapter_weights

WEIGHTS = "adapter_model.safetensors"
_SAME = (
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "target_modules",
    "base_model_name_or_path",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
)
"""Keys of an adapter's configuration that two must share to be blended."""


def blend_adapters(start: Path, end: Path, share: float, out: Path) -> Path:
    """Write the adapter whose weights are (1 - share) × start + share × end, with the tokenizer of `end`.

    The folder is written atomically.

    Args:
        start: an adapter's folder, e.g. the SFT model's.
        end: an adapter of the same shape that was trained on from it, e.g. the policy. Of adapters with different starts the product
            says nothing.
        share: of the way from start to end, in [0, 1].
    """
    from safetensors.torch import save_file

    if not 0.0 <= share <= 1.0:
        raise DataError(f"--share {share}: expected a number from 0 (the first adapter) to 1 (the second)")
    if out.exists():
        raise DataError(f"{out}: already exists; nothing was changed. Name a new folder.")
    one, other = adapter_config(start), adapter_config(end)
    if differing := [key for key in _SAME if _plain(one.get(key)) != _plain(other.get(key))]:
        raise ModelError(f"{start} and {end} differ in {', '.join(differing)}, so there is nothing between them")
    first, last = adapter_weights(start), adapter_weights(end)
    if {k: t.shape for k, t in first.items()} != {k: t.shape for k, t in last.items()}:
        raise ModelError(f"{start} and {end} have weights of different names or shapes, so there is nothing between them")
    mixed = {k: first[k].float().lerp(t.float(), share).to(t.dtype).contiguous() for k, t in sorted(last.items())}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out) as work:
            save_file(mixed, work / WEIGHTS, metadata={"format": "pt"})
            for file in ("adapter_config.json", *(p.name for p in end.glob("*token*.json")), "chat_template.jinja"):
                if (end / file).is_file():
                    shutil.copyfile(end / file, work / file)
    except OSError as e:
        raise disk_error(e, out) from e
    return out


def _plain(value: Any) -> Any:
    return sorted(value, key=repr) if isinstance(value, list) else value or None
