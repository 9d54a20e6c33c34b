"""`cai merge`: an adapter's changes written into a full-precision copy of its base model, which then stands alone.

An adapter that was trained over a 4-bit base is merged into the base's own weights, never into the 4-bit ones: those would round the
change away, and can't be served or trained further. The sum is made in float32 and rounded once, when it is saved.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cai import __version__
from cai.core.jsonl import disk_error, write_text
from cai.errors import DataError, ModelError
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.local.quiet import quiet_transformers
from cai.models.naming import spec_from_name
from cai.recipe import ModelSpec

MergedDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class MergedModel:
    """What `merge_adapter` wrote."""

    path: str
    base: str
    adapter: str
    dtype: MergedDtype
    parameters: int


def merge_adapter(adapter: Path, out: Path, dtype: MergedDtype = "bfloat16", base: str | None = None) -> MergedModel:
    """Merge an adapter into its base model, and save weights (safetensors), tokenizer and model card.

    The folder appears whole or not at all.

    Args:
        adapter: folder of a LoRA adapter of a language model, as training writes it.
        out: folder to make; it may not be there yet.
        dtype: of the saved weights.
        base: the base model, where it isn't the one that the adapter names.

    Raises:
        DataError: `out` is there already.
        ModelError: the adapter or its base can't be loaded, don't fit, or the adapter is a reward model's.
        StoreError: the disk is full.
    """
    if out.exists():
        raise DataError(f"{out}: is there already; nothing was changed. Name a new folder.")
    named = spec_from_name(str(adapter))
    if named.adapter is None:
        raise ModelError(f"{adapter}: no adapter_config.json, so no adapter is there.\nFix: name the folder that training wrote")
    spec = ModelSpec(path=base or named.path, adapter=str(adapter), precision="float32")
    _refuse_reward_model(adapter)
    model, tokenizer = load_causal_lm(spec), load_tokenizer(spec)
    merged = MergedModel(str(out), spec.path, str(adapter), dtype, sum(p.numel() for p in model.parameters()))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _save(model, tokenizer, work, merged)
            work.chmod(0o755)
            work.replace(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as e:
        raise disk_error(e, out) from e
    return merged


def _refuse_reward_model(adapter: Path) -> None:
    import json

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("task_type") == "SEQ_CLS":
        raise ModelError(
            f"{adapter}: is a reward model, whose scalar head takes the place of the language model's.\n"
            "Fix: merge a policy; a reward model is used as it is (cai evaluate --reward)"
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
    hub_base = [f"base_model: {merged.base}"] if merged.base.count("/") == 1 and not merged.base.startswith((".", "/", "~")) else []
    name = Path(merged.adapter).resolve().name
    return "\n".join(
        [
            "---",
            *hub_base,
            "library_name: transformers",
            "tags: [constitutional-ai]",
            "---",
            "",
            f"# {merged.base} with the adapter {name} merged in",
            "",
            f"Made by `cai merge` {__version__}: {merged.parameters:,} parameters in {merged.dtype}, the sum made in float32 over the "
            "base's full-precision weights. Where the adapter was trained over a 4-bit base, this model is that base without its rounding, "
            "so its answers differ a little from those in training. Data, settings and limits are in the adapter's own card.",
            "",
        ]
    )
