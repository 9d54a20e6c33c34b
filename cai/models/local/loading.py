"""Load a model's files, tokenizer and weights from a `ModelSpec`, and compute their fingerprint.

Only safetensors weights are read, because a pickle can run code. Every problem raises a `ModelError` that says how to fix it, before the
weights are loaded where possible.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.errors import ModelError
from cai.ids import content_hash
from cai.models.local.embedded import EMBEDDED, embedded_fingerprint, embedded_model_dir, is_embedded_dir
from cai.models.local.gguf import cache_dir, cached_file_hash, gguf_folder, is_conversion, is_gguf
from cai.models.local.named import NAMED, name_of, named_folder
from cai.models.local.precision import resolved_precision
from cai.models.local.quiet import quiet_transformers
from cai.recipe import ModelSpec

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_PROMPT_ADAPTERS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "XLORA")
"""PEFT's types that change what the model is given, or mix adapters by input, instead of its weights."""
_VOCABULARY_WEIGHT = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|lm_head|embed_out|embed_in|output_layer|word_embeddings)(?:\.modules_to_save)?\.weight$"
)
_PROBE_TOKENS = 16
_SWITCHES = ("enable_thinking", "thinking")
_SET_SWITCH = re.compile(r"\A(?:\{% set (?:enable_)?thinking = (?:true|false) %\})+")
SAME_LOGITS = 1e-3
"""Largest difference between logits before and after merging, relative to the largest logit. Float32 rounds by about 1e-5."""
ARITHMETIC = 5
"""Version of the local engine's computation. Increase it with every change that can change an answer: stored calls are then not reused."""


def resolve_model_path(spec: ModelSpec) -> str:
    """Return the folder of a spec's base model, after converting or downloading it if necessary.

    Raises:
        ModelError: not a local model, no such file, folder or Hub model, the Hub can't be reached, a named model was not fetched, or the
            folder has no safetensors weights.
    """
    if spec.path == EMBEDDED:
        return str(embedded_model_dir())
    if spec.path in NAMED:
        return str(named_folder(spec.path))
    if is_gguf(spec.path):
        return str(gguf_folder(spec.path))
    if spec.path == "scripted" or spec.path.startswith(("http://", "https://")):
        raise ModelError(
            f"{spec.path}: this needs weights in this process; a server or scripted model has none.\nFix: name a folder or Hub id"
        )
    try:
        folder = Path(spec.path).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError) as e:  # the name is too long, or names no user
        raise ModelError(f"{spec.path[:200]}: no model's folder or Hub id ({getattr(e, 'strerror', None) or e})") from e
    if there:
        return str(_checked(folder))
    if spec.path.startswith((".", "/", "~")) or spec.path.count("/") != 1 or folder.parent.is_dir():
        raise ModelError(
            f"{spec.path}: no such model folder.\n"
            f"Fix: give a folder, a .gguf file, a Hub id as OWNER/NAME, `{EMBEDDED}`, or {' or '.join(NAMED)}"
        )
    return str(_checked(_from_hub(spec)))


def _checked(folder: Path) -> Path:
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(f"{folder}: is an adapter, not a whole model.\nFix: name it as `adapter`, and its base model as `path`")
    if not (folder / "config.json").exists() and not any(folder.glob("*.gguf")):
        raise ModelError(f"{folder}: has no config.json, so it is not a model folder")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in _PICKLED for p in folder.glob(pattern))
        if packed := sorted(folder.glob("*.gguf")):
            raise ModelError(f"{folder}: its weights are GGUF files.\nFix: name one of them: {packed[0]}")
        found = f"only pickled weights ({', '.join(pickled[:3])}), which can run code when loaded" if pickled else "no weights"
        raise ModelError(
            f"{folder}: found {found}; expected *.safetensors.\n"
            "Fix: in a place you trust, load it once with transformers and save it again with model.save_pretrained(FOLDER)"
        )
    return folder


def _from_hub(spec: ModelSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    files = [*_HUB_FILES, "*.py"] if spec.trust_remote_code else list(_HUB_FILES)
    with contextlib.suppress(LocalEntryNotFoundError):  # not downloaded before
        folder = Path(snapshot_download(spec.path, allow_patterns=files, local_files_only=True))
        if (folder / "config.json").exists() and any(folder.glob("*.safetensors")):
            return folder
    try:
        return Path(snapshot_download(spec.path, allow_patterns=files))
    except GatedRepoError as e:
        raise ModelError(f"{spec.path}: its owner asks you to accept terms.\nFix: accept them on the Hub, then `hf auth login`") from e
    except RepositoryNotFoundError as e:
        raise ModelError(f"{spec.path}: neither a folder here nor a model on the Hub.\nFix: check the spelling, or `hf auth login`") from e
    except Exception as e:  # the network has many ways to fail, each with its own exception type
        raise ModelError(
            f"{spec.path}: no such folder, and the Hub can't be reached ({type(e).__name__}: {e}).\n"
            f"Fix: go online once, copy the model here and name its folder, or use `{EMBEDDED}`"
        ) from e


def adapter_base(folder: Path) -> str:
    """Return the base model that a LoRA adapter's folder names, in the form of `ModelSpec.path`.

    Raises:
        ModelError: the folder holds no readable adapter.
    """
    base = str(_adapter_config(folder).get("base_model_name_or_path") or "")
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


def _adapter_config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        there = file.exists()
    except OSError as e:
        raise ModelError(f"{str(folder)[:200]}: no adapter's folder ({e.strerror})") from e
    if not there:
        raise ModelError(f"{folder}: no adapter_config.json, so this is not an adapter.\nFix: name the folder that training wrote")
    if not (folder / "adapter_model.safetensors").exists():
        raise ModelError(f"{folder}: no adapter_model.safetensors. Pickled adapters are not loaded: they can run code")
    return _json_mapping(file)


def check_adapter(folder: Path, base: Path) -> None:
    """Refuse an adapter that can't be merged into its base model, by reading its small files only.

    Args:
        folder: the adapter.
        base: folder of the base model.

    Raises:
        ModelError: it is not an adapter of the weights (but learned prompts, say), or it has another vocabulary than the base model.
    """
    kind = str(_adapter_config(folder).get("peft_type", ""))
    if kind in _PROMPT_ADAPTERS:
        raise ModelError(
            f"{folder}: is not a LoRA adapter but one of type {kind}, which is a learned prompt and can't be merged into weights.\n"
            "Fix: name a LoRA adapter"
        )
    ours, theirs = _vocabulary(_json_mapping(base / "config.json")), _saved_vocabulary(folder / "adapter_model.safetensors")
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


def _json_mapping(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{file}: not valid JSON ({e})") from e
    if not isinstance(config, dict):
        raise ModelError(f"{file}: expected a mapping, found {type(config).__name__}")
    return config


def model_fingerprint(spec: ModelSpec) -> str:
    """Return a content hash of all that affects a local model's answers: weights, adapter, tokenizer, chat template, precision, code.

    File locations are not part of it, so a model that is moved or copied keeps its stored calls. A conversion is identified by its GGUF
    file; the embedded model need not be converted yet.

    Raises:
        ModelError: the model or adapter is missing or can't be read.
    """
    parts: list[Any] = [ARITHMETIC, resolved_precision(spec.precision)]
    if spec.path == EMBEDDED:
        parts.append(embedded_fingerprint())
    else:
        folder = Path(resolve_model_path(spec))
        parts.append(folder.name if is_conversion(folder) and folder.parent == cache_dir() else _files_hash(folder, spec.trust_remote_code))
    if spec.adapter is not None:
        check_adapter(Path(spec.adapter), embedded_model_dir() if spec.path == EMBEDDED else Path(resolve_model_path(spec)))
        parts.append(_files_hash(Path(spec.adapter), False))
    if spec.thinking is not None:
        parts.append({"thinking": spec.thinking})
    return f"local:{content_hash(parts)}"


def canonical_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's configuration with its lists of names in order: PEFT writes sets, whose order changes from process to process.

    >>> canonical_config({"target_modules": ["v_proj", "q_proj"], "r": 8, "layers_to_transform": [2, 1]})
    {'target_modules': ['q_proj', 'v_proj'], 'r': 8, 'layers_to_transform': [2, 1]}
    """
    names = {key for key, value in config.items() if isinstance(value, list) and all(isinstance(name, str) for name in value)}
    return {key: sorted(value) if key in names else value for key, value in config.items()}


def _files_hash(folder: Path, code: bool) -> str:
    names = {*_TOKENIZER_FILES, "generation_config.json"}
    files = [p for p in sorted(folder.iterdir()) if p.name in names or p.suffix == ".safetensors" or (code and p.suffix == ".py")]
    hashes = {p.name: _weights_hash(p) for p in files}
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).exists():  # a base model's location at saving time does not identify it
            config = _json_mapping(folder / name)
            if name == "adapter_config.json":
                config = canonical_config(config)
            hashes[name] = content_hash({k: v for k, v in config.items() if k not in ("_name_or_path", "base_model_name_or_path")})
    return content_hash(hashes, 64)


def _weights_hash(path: Path) -> str:
    """Return a file's SHA-256. The Hub's cache names large files by it, so these need not be read."""
    blob = path.resolve()
    return blob.name[:16] if blob.parent.name == "blobs" and len(blob.name) == 64 else cached_file_hash(path)


def count_layers(spec: ModelSpec) -> int:
    """Return the number of layers of a local model, from its configuration. Raises `ModelError`."""
    from transformers import AutoConfig

    folder = resolve_model_path(spec)
    with quiet_transformers(), explained_load(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def load_tokenizer(spec: ModelSpec) -> Any:
    """Return the tokenizer: the adapter's if its folder has one, else the base model's. Padding defaults to the end token.

    Raises:
        ModelError: it can't be loaded, has no chat template, or has no switch for `spec.thinking`.
    """
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

    Raises:
        ModelError: the weights can't be loaded, or the adapter does not fit this base model.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder, precision = resolve_model_path(spec), resolved_precision(spec.precision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    merge = spec.adapter is not None and not trainable and precision != "nf4"
    dtype = torch.float32 if precision == "float32" or merge else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "attn_implementation": "sdpa"}
    if precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
        )
        options["device_map"] = {"": device}
    with quiet_transformers(), explained_load(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **options)
    if spec.adapter is not None:
        check_adapter(Path(spec.adapter), Path(folder))
        model = _with_adapter(model, spec.adapter, folder, trainable)
        if merge:
            model = merged(model, spec.adapter)
    if precision != "nf4":
        model = model.to(device=device, dtype=torch.float32 if precision == "float32" else torch.bfloat16)
    if not trainable:
        model.requires_grad_(False)
    return model.train(trainable)


def merged(model: Any, adapter: str) -> Any:
    """Return the base model with its adapter merged in, after checking that both give the same logits.

    Where input and output embeddings share one matrix and the adapter changes one of them, each gets a matrix of its own first.

    Args:
        model: a PEFT model in float32.
        adapter: for messages.

    Raises:
        ModelError: this adapter can't be merged, or the merged model gives other logits.
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


def _with_adapter(model: Any, adapter: str, base: str, trainable: bool) -> Any:
    from peft import PeftModel

    _adapter_config(Path(adapter))
    wrong = f"{adapter}: this adapter doesn't fit the model {base}"
    fix = "Fix: name as `path` the model that it was trained on (base_model_name_or_path in its adapter_config.json)"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable, use_safetensors=True)
        except Exception as e:  # truncated weights, invalid settings: each library has its own exception types
            raise ModelError(f"{wrong} ({(str(e) or type(e).__name__).splitlines()[0][:500]}).\n{fix}") from e
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise ModelError(f"{wrong} (some of its layers have no weights).\n{fix}")
        if "tie_word_embeddings" in str(warning.message):  # `merged` unties them
            continue
        if not issubclass(warning.category, FutureWarning):  # about the libraries' own code: a user can't act on it
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model


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
