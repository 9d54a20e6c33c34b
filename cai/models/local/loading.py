"""Load a model's tokenizer and weights from a `ModelSpec`. Every problem raises a `ModelError` that says how to fix it."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cai.errors import ModelError
from cai.models.local.adapter import check_adapter, merged, with_adapter
from cai.models.local.folders import resolve_model_path
from cai.models.local.precision import resolved_precision
from cai.models.local.quiet import quiet_transformers
from cai.recipe import ModelSpec

_SWITCHES = ("enable_thinking", "thinking")
_SET_SWITCH = re.compile(r"\A(?:\{% set (?:enable_)?thinking = (?:true|false) %\})+")


def count_layers(spec: ModelSpec) -> int:
    """Return the number of layers of a local model, from its configuration. Raises `ModelError`."""
    from transformers import AutoConfig

    folder = resolve_model_path(spec)
    with quiet_transformers(), explained_load(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def load_tokenizer(spec: ModelSpec) -> Any:
    """Return the tokenizer: the adapter's if its folder has one, else the base model's. Padding defaults to the end token."""
    from transformers import AutoTokenizer

    folder = resolve_model_path(spec)
    if spec.adapter is not None and (Path(spec.adapter) / "tokenizer_config.json").exists():
        folder = spec.adapter
    with quiet_transformers(), explained_load(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{folder}: the tokenizer has no chat template, which is needed to format conversations for this model.\n"
            "Fix: use its chat- or instruction-tuned version, or save a template into the folder as chat_template.jinja"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if spec.thinking is not None:
        tokenizer.chat_template = _with_switch(str(tokenizer.chat_template), spec.thinking, folder)
    return tokenizer


def _with_switch(template: str, thinking: bool, folder: str) -> str:
    """Return a chat template with its thinking switch set, by the names that models give it."""
    template = _SET_SWITCH.sub("", template)
    if not (names := [name for name in _SWITCHES if re.search(rf"\b{name}\b", template)]):
        raise ModelError(
            f"{folder}: model.thinking is set, and the chat template has no switch for it ({' or '.join(_SWITCHES)}).\n"
            "Fix: leave model.thinking out"
        )
    return "".join(f"{{% set {name} = {str(thinking).lower()} %}}" for name in names) + template


def load_causal_lm(spec: ModelSpec, *, trainable: bool = False) -> Any:
    """Return the model with its adapter, on the GPU if there is one.

    For inference the adapter is merged in float32, and the result is rounded once: this runs twice as fast as a separate adapter. Over a
    4-bit base the adapter stays separate, because merging would round it to 4 bits.

    Args:
        spec: model and precision. `nf4` quantizes the linear layers and computes in bfloat16.
        trainable: keep the adapter separate and trainable, and set the model to training mode.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder, precision = resolve_model_path(spec), resolved_precision(spec.precision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    merge = spec.adapter is not None and not trainable and precision != "nf4"
    dtype = torch.float32 if precision == "float32" or merge else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "attn_implementation": "sdpa"}
    if precision == "nf4":
        options |= nf4_options(device)
    with quiet_transformers(), explained_load(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **options)
    if spec.adapter is not None:
        check_adapter(Path(spec.adapter), Path(folder))
        model = with_adapter(model, spec.adapter, folder, trainable)
        if merge:
            model = merged(model, spec.adapter)
    if precision != "nf4":
        model = model.to(device=device, dtype=torch.float32 if precision == "float32" else torch.bfloat16)
    if not trainable:
        model.requires_grad_(False)
    elif (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_contiguous)
    return model.train(trainable)


def _contiguous(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy hidden states that are a slice. Else torch copies the LM head's weights, once for each row of the batch."""
    return (inputs[0].contiguous(), *inputs[1:])


def nf4_options(device: str, skip: Sequence[str] = ()) -> dict[str, Any]:
    """Return how `from_pretrained` quantizes to NF4 onto a device: all linear layers but the modules named in `skip`."""
    import torch
    from transformers import BitsAndBytesConfig

    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=list(skip) or None, **options)
    return {"quantization_config": config, "device_map": {"": device}}


@contextlib.contextmanager
def explained_load(folder: str) -> Iterator[None]:
    """Turn any exception of the block into a `ModelError` that names the folder."""
    try:
        yield
    except ModelError:
        raise
    except Exception as e:
        text = str(e)
        if "trust_remote_code" in text:
            fix = "Fix: read the code that comes with it, then set `trust_remote_code: true` on this model"
        elif isinstance(e, MemoryError) or "out of memory" in text:
            fix = "Fix: choose a smaller model or `precision: nf4`"
        else:
            fix = "Fix: check that the folder is complete and that this version of transformers knows the model"
        raise ModelError(f"{folder}: can't be loaded ({type(e).__name__}: {text}).\n{fix}") from e
