"""The fingerprint of a local model: a content hash of all that affects its answers."""

from pathlib import Path
from typing import Any

from cai.ids import content_hash
from cai.models.local.adapter import canonical_config, check_adapter
from cai.models.local.embedded import EMBEDDED, embedded_fingerprint, embedded_model_dir
from cai.models.local.folders import json_mapping, resolve_model_path
from cai.models.local.gguf import cache_dir, cached_file_hash, is_conversion
from cai.models.local.precision import resolved_precision
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
ARITHMETIC = 5
"""Version of the local engine's computation. Increase it with every change that can change an answer: stored calls are then not reused."""


def model_fingerprint(spec: ModelSpec) -> str:
    """Return a content hash of all that affects a local model's answers: weights, adapter, tokenizer, chat template, precision, code.

    File locations are not part of it, so a model that is moved or copied keeps its stored calls. A conversion is identified by its GGUF
    file; the embedded model need not be converted yet.
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


def _files_hash(folder: Path, code: bool) -> str:
    names = {*_TOKENIZER_FILES, "generation_config.json"}
    files = [p for p in sorted(folder.iterdir()) if p.name in names or p.suffix == ".safetensors" or (code and p.suffix == ".py")]
    hashes = {p.name: _weights_hash(p) for p in files}
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).exists():  # a base model's location at saving time does not identify it
            config = json_mapping(folder / name)
            if name == "adapter_config.json":
                config = canonical_config(config)
            hashes[name] = content_hash({k: v for k, v in config.items() if k not in ("_name_or_path", "base_model_name_or_path")})
    return content_hash(hashes, 64)


def _weights_hash(path: Path) -> str:
    """Return a file's SHA-256. The Hub's cache names large files by it, so these need not be read."""
    blob = path.resolve()
    return blob.name[:16] if blob.parent.name == "blobs" and len(blob.name) == 64 else cached_file_hash(path)
