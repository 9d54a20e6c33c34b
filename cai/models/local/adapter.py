"""LoRA adapters on disk and in memory: which model one is for, whether it fits, and merging it into the weights.

What is wrong with an adapter is said before the weights are loaded, where possible.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.errors import ModelError
from cai.models.local.embedded import EMBEDDED, is_embedded_dir
from cai.models.local.folders import json_mapping
from cai.models.local.gguf import is_conversion
from cai.models.local.named import name_of

_PROMPT_ADAPTERS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "XLORA")
"""PEFT's types that change what the model is given, or mix adapters by input, instead of its weights."""
_VOCABULARY_WEIGHT = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|lm_head|embed_out|embed_in|output_layer|word_embeddings)(?:\.modules_to_save)?\.weight$"
)
_PROBE_TOKENS = 16
_PREFIX = "base_model.model."
SAME_LOGITS = 1e-3
"""Largest difference between logits before and after merging, relative to the largest logit. Float32 rounds by about 1e-5."""


def adapter_base(folder: Path) -> str:
    """Return the base model that a LoRA adapter's folder names, in the form of `ModelSpec.path`."""
    base = str(adapter_config(folder).get("base_model_name_or_path") or "")
    if not base:
        raise ModelError(f"{folder / 'adapter_config.json'}: doesn't say which model the adapter is for.\nFix: set base_model_name_or_path")
    if "://" in base or base == "scripted":  # only the user may name a server to send prompts to, not a file
        raise ModelError(f"{folder / 'adapter_config.json'}: base_model_name_or_path is {base[:200]!r}, not a model's folder or Hub id")
    if is_embedded_dir(base):
        return EMBEDDED
    if name := name_of(base):
        return name
    if is_conversion(Path(base)) and not Path(base).is_dir():
        raise ModelError(
            f"{folder}: was trained on a GGUF file that isn't converted here.\nFix: name that file as `path`, and this folder as `adapter`"
        )
    return base


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration. Raises `ModelError` if the folder holds none, or only pickled weights."""
    file = folder / "adapter_config.json"
    try:
        there = file.exists()
    except OSError as e:
        raise ModelError(f"{str(folder)[:200]}: no adapter's folder ({e.strerror})") from e
    if not there:
        inside = ", ".join(sorted(str(file.parent) for file in folder.glob("*/adapter_config.json")))
        fix = f"Fix: name one of the adapters in it: {inside}" if inside else "Fix: name the folder that training wrote"
        raise ModelError(f"{folder}: no adapter_config.json, so this is not an adapter.\n{fix}")
    if not (folder / "adapter_model.safetensors").exists():
        if any(folder.glob("adapter_model*-of-*.safetensors")):
            raise ModelError(f"{folder}: the adapter's weights are in several files.\nFix: save them as one adapter_model.safetensors")
        raise ModelError(f"{folder}: no adapter_model.safetensors. Pickled adapters are not loaded: they can run code")
    return json_mapping(file)


def adapter_weights(folder: Path) -> dict[str, Any]:
    """Return an adapter's weights by their names. Raises `ModelError` if they can't be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as e:
        raise _unreadable(folder, e) from e


def _unreadable(folder: Path | str, e: Exception) -> ModelError:
    return ModelError(f"{folder}: the adapter's weights can't be read ({e}).\nFix: train or copy it again")


def check_adapter(folder: Path, base: Path) -> None:
    """Refuse an adapter that can't be merged into its base model, by reading its small files only.

    It may not be one of the weights (but learned prompts, say), or have another vocabulary than the base model.
    """
    kind = str(adapter_config(folder).get("peft_type", ""))
    if kind in _PROMPT_ADAPTERS:
        raise ModelError(
            f"{folder}: is not a LoRA adapter but one of type {kind}, which is a learned prompt and can't be merged into weights.\n"
            "Fix: name a LoRA adapter"
        )
    ours, theirs = _vocabulary(json_mapping(base / "config.json")), _saved_vocabulary(folder / "adapter_model.safetensors")
    if ours is not None and theirs is not None and ours != theirs:
        raise ModelError(
            f"{folder}: this adapter doesn't fit the model {base}: it has a vocabulary of {theirs:,} tokens against the model's {ours:,}. "
            "Tokens were added when it was trained.\n"
            "Fix: save the base model with resized embeddings (model.resize_token_embeddings) and the adapter's tokenizer, and name that"
        )


def _vocabulary(config: dict[str, Any]) -> int | None:
    nested = config.get("text_config")
    found = config.get("vocab_size", nested.get("vocab_size") if isinstance(nested, dict) else None)
    return found if isinstance(found, int) else None


def _saved_vocabulary(file: Path) -> int | None:
    """Return the number of tokens of the embeddings or the output layer that an adapter has saved whole; None if it has neither."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                if _VOCABULARY_WEIGHT.search(name):
                    return int(weights.get_slice(name).get_shape()[0])
    except (OSError, SafetensorError, ValueError):  # loading it says what is wrong
        return None
    return None


def canonical_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's configuration with its lists of names in order: PEFT writes sets, whose order changes from process to process.

    >>> canonical_config({"target_modules": ["v_proj", "q_proj"], "r": 8, "layers_to_transform": [2, 1]})
    {'target_modules': ['q_proj', 'v_proj'], 'r': 8, 'layers_to_transform': [2, 1]}
    """
    names = {key for key, value in config.items() if isinstance(value, list) and all(isinstance(name, str) for name in value)}
    return {key: sorted(value) if key in names else value for key, value in config.items()}


def with_adapter(model: Any, adapter: str, base: str, trainable: bool, name: str = "default") -> Any:
    """Return the model with an adapter on top. Raises `ModelError` if it doesn't fit; `base` names the model in the message."""
    from peft import PeftModel, PeftType

    kind = str(adapter_config(Path(adapter)).get("peft_type", ""))
    if kind not in set(PeftType):
        raise ModelError(
            f"{Path(adapter) / 'adapter_config.json'}: peft_type is {kind!r}, which this version of PEFT doesn't know.\n"
            "Fix: name a LoRA adapter (peft_type: LORA), or install the version of PEFT that it was made with"
        )
    with whole_adapter(adapter, base):
        model = PeftModel.from_pretrained(model, adapter, adapter_name=name, is_trainable=trainable, use_safetensors=True)
    refuse_foreign_weights(model, adapter, base)
    return model


@contextlib.contextmanager
def whole_adapter(adapter: str, base: str) -> Iterator[None]:
    """Turn what goes wrong while PEFT loads an adapter into a `ModelError`, also the weights that it misses; `base` names the model."""
    from safetensors import SafetensorError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except SafetensorError as e:
            raise _unreadable(adapter, e) from e
        except Exception as e:  # truncated weights, invalid settings: each library has its own exception types
            why = f"it has no {e}" if isinstance(e, KeyError) else " ".join((str(e) or type(e).__name__).split())[:500]
            raise _misfit(adapter, base, why) from e
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise _misfit(adapter, base, "some of its layers have no weights")
        if "tie_word_embeddings" in str(warning.message):  # `merged` unties them
            continue
        if not issubclass(warning.category, FutureWarning):  # about the libraries' own code: a user can't act on it
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def refuse_foreign_weights(model: Any, adapter: str, base: str) -> None:
    """Refuse an adapter with weights for layers that the model hasn't: PEFT leaves those out without a word. `base` names the model."""
    if foreign := _foreign_weights(model, Path(adapter)):
        raise _misfit(adapter, base, f"it has weights for layers that the model hasn't: {foreign}")


def _misfit(adapter: str, base: str, why: str) -> ModelError:
    return ModelError(
        f"{adapter}: this adapter doesn't fit the model {base} ({why}).\n"
        "Fix: name as `path` the model that it was trained on (base_model_name_or_path in its adapter_config.json)"
    )


def _foreign_weights(model: Any, folder: Path) -> str:
    """Name a weight of an adapter whose layer the model hasn't, and which PEFT leaves out without a word; empty if there is none.

    Where all seem to be such weights, PEFT has found their layers by other names.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as weights:
        names = [name for name in weights.keys() if name.startswith(_PREFIX)]  # noqa: SIM118 - not a mapping
    foreign = []
    for name in names:
        module = model.get_base_model()
        for part in name.removeprefix(_PREFIX).split("."):
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                break
            if not hasattr(module, part):
                foreign.append(name.removeprefix(_PREFIX))
                break
            module = getattr(module, part)
    return foreign[0] if len(foreign) < len(names) and foreign else ""


def merged(model: Any, adapter: str) -> Any:
    """Return the base model with its adapter merged in, after checking that both give the same logits.

    Where input and output embeddings share one matrix and the adapter changes one of them, each gets a matrix of its own first.

    Args:
        model: a PEFT model in float32.
    """
    import torch

    if not hasattr(model, "merge_and_unload"):
        raise ModelError(f"{adapter}: is not a LoRA adapter, and can't be merged into weights.\nFix: name a LoRA adapter")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    probe_1T = torch.randint(vocabulary, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0), device="cpu").to(model.device)
    model.eval()
    with torch.no_grad():
        wanted_1TV = model(input_ids=probe_1T).logits.float()
        _untie(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that the embeddings are no longer tied
                whole = model.merge_and_unload()
        except Exception as e:  # kinds of adapters differ in what they can merge, and raise their own exceptions
            raise ModelError(f"{adapter}: can't be merged ({(str(e) or type(e).__name__).splitlines()[0][:300]})") from e
        found_1TV = whole(input_ids=probe_1T).logits.float()
    last = whole.get_output_embeddings()
    for config in (whole.config, whole.config.get_text_config()):  # decides whether both matrices are saved
        config.tie_word_embeddings = last is not None and last.weight is whole.get_input_embeddings().weight
    if not wanted_1TV.isfinite().all():
        raise ModelError(f"{adapter}: with this adapter, the model's logits aren't finite numbers.\nFix: train or copy it again")
    difference, scale = float((found_1TV - wanted_1TV).abs().max()), float(wanted_1TV.abs().max())
    if not difference <= SAME_LOGITS * max(scale, 1.0):
        raise ModelError(
            f"{adapter}: merged into its base model, it gives other logits than on top of it (largest difference {difference:.3g}, largest "
            f"logit {scale:.3g}).\nFix: use an adapter whose target_modules are layers of the model, not its embeddings or output layer"
        )
    return whole


def _untie(model: Any) -> None:
    """Give input and output embeddings a matrix of their own if they share one and the adapter changes either."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    base = model.get_base_model()
    first, last = base.get_input_embeddings(), base.get_output_embeddings()
    if last is None or not any(isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) for layer in (first, last)):
        return
    original = getattr(last, "original_module", last)
    original = getattr(original, "base_layer", original)
    original.weight = torch.nn.Parameter(original.weight.detach().clone(), requires_grad=False)
