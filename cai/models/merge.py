"""`cai merge`: merge an adapter into a full-precision copy of its base model.

An adapter trained over a 4-bit base is merged into the base's original weights, never into the 4-bit ones: these would round the change
away, and can't be served or trained further. The sum is computed in float32 and rounded once, when it is saved.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cai import __version__
from cai.core.jsonl import atomic_folder, disk_error, write_text
from cai.core.text.markdown import escape_markdown, hub_base
from cai.errors import DataError, ModelError
from cai.models.local.adapter import adapter_config
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.local.quiet import quiet_transformers
from cai.models.naming import spec_from_name
from cai.recipe import ModelSpec

MergedDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class MergedModel:
    """A model that `merge_adapter` has written."""

    path: str
    base: str
    adapter: str
    dtype: MergedDtype
    parameters: int


def merge_adapter(adapter: Path, out: Path, dtype: MergedDtype = "bfloat16", base: str | None = None) -> MergedModel:
    """Merge an adapter into its base model, and save weights (safetensors), tokenizer and model card.

    The folder is written atomically.

    Args:
        adapter: folder of a language model's LoRA adapter, as training writes it.
        base: the base model; None takes the one that the adapter names.
    """
    if out.exists():
        raise DataError(f"{out}: already exists; nothing was changed. Name a new folder.")
    named = spec_from_name(str(adapter))
    adapter_config(adapter)
    spec = ModelSpec(path=base or named.path, adapter=str(adapter), precision="float32")
    _refuse_reward_model(adapter)
    model, tokenizer = load_causal_lm(spec), load_tokenizer(spec)
    merged = MergedModel(str(out), spec.path, str(adapter), dtype, sum(p.numel() for p in model.parameters()))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out) as work:
            _save(model, tokenizer, work, merged)
    except OSError as e:
        raise disk_error(e, out) from e
    return merged


def _refuse_reward_model(adapter: Path) -> None:
    if adapter_config(adapter).get("task_type") == "SEQ_CLS":
        raise ModelError(
            f"{adapter}: is a reward model, which has a scalar head instead of a language-model head.\n"
            "Fix: merge a policy; a reward model is used without merging (cai evaluate --reward)"
        )


def _save(model: Any, tokenizer: Any, folder: Path, merged: MergedModel) -> None:
    import torch

    model = model.to(getattr(torch, merged.dtype))
    model.config.dtype = getattr(torch, merged.dtype)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_text(folder / "README.md", _card(merged))


def _card(merged: MergedModel) -> str:
    name = escape_markdown(Path(merged.adapter).resolve().name)
    return "\n".join(
        [
            "---",
            *hub_base(merged.base),
            "library_name: transformers",
            "tags: [constitutional-ai]",
            "---",
            "",
            f"# {escape_markdown(merged.base)} with the adapter {name} merged in",
            "",
            f"Made by `cai merge` {__version__}: {merged.parameters:,} parameters in {merged.dtype}, merged in float32 with the "
            "base's full-precision weights. If the adapter was trained over a 4-bit base, this model lacks that base's rounding, so its "
            "answers differ slightly from those in training. Data, settings and limits are in the adapter's model card.",
            "",
        ]
    )
