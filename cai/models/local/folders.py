"""Find the folder of a model's files from a `ModelSpec`, and check what it holds before anything is loaded.

Only safetensors weights are read, because a pickle can run code.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from cai.core.jsonl import read_file
from cai.errors import ModelError
from cai.models.local.embedded import EMBEDDED, embedded_model_dir
from cai.models.local.gguf import gguf_folder, is_gguf
from cai.models.local.named import NAMED, is_named, named_folder
from cai.recipe import ModelSpec

_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def resolve_model_path(spec: ModelSpec) -> str:
    """Return the folder of a spec's base model, after converting or downloading it if necessary."""
    if spec.path == EMBEDDED:
        return str(embedded_model_dir())
    if is_named(spec.path):
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


def json_mapping(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping. Raises `ModelError`."""
    try:
        config = json.loads(read_file(file))
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{file}: not valid JSON ({e})") from e
    if not isinstance(config, dict):
        raise ModelError(f"{file}: expected a mapping, found {type(config).__name__}")
    return config
