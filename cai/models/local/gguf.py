"""Convert a `.gguf` file to a folder of safetensors, once, in a cache.

`transformers` reads the packed weights in half a minute to some minutes, and they can't be trained. The folder loads in seconds. Tensors
are unpacked one after the other into the type of the folder: 1.8 billion parameters took 5.4 GiB of memory in bfloat16.
"""

import contextlib
import io
import math
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cai.core.jsonl import atomic_folder, disk_error
from cai.core.waiting import NOTICE_SECONDS
from cai.core.workspace import file_hash
from cai.errors import ModelError

Dtype = Literal["float32", "bfloat16"]
_FORMAT = 1
"""Version of the conversion's output. Increase it when the output changes, so that old folders are not used."""
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_FACTORS = ("rope_freqs.", "rope_factors_")
"""Tensors with which llama.cpp scales rotary positions, in Llama 3.1 and later and in Phi-3. `transformers` ignores them."""


def cache_dir() -> Path:
    """Return the folder for files that can be recreated: `$CAI_CACHE`, else `$XDG_CACHE_HOME/cai`, else `~/.cache/cai`."""
    if own := os.environ.get("CAI_CACHE"):
        return Path(own).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "cai"
    return Path.home() / ".cache" / "cai"


@lru_cache(maxsize=256)
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    return file_hash(path)


def cached_file_hash(path: Path) -> str:
    """Return a file's SHA-256. Within this process the file is read again only if its size or modification time has changed."""
    status = path.stat()
    return _hash_once(path, status.st_size, status.st_mtime_ns)


def is_gguf(path: str) -> bool:
    """Whether a model's path names a `.gguf` file."""
    return path.lower().endswith(".gguf")


def gguf_hash(path: str) -> str:
    """Return the start of a GGUF file's SHA-256."""
    file = Path(path).expanduser()
    try:
        with file.open("rb") as f:
            start = f.read(64)
    except (OSError, RuntimeError) as e:
        raise ModelError(f"{path}: can't be read ({getattr(e, 'strerror', None) or e}).\nFix: name a .gguf file on this machine") from e
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path}: is a Git LFS pointer, not the model.\nFix: git lfs pull")
    if not start.startswith(b"GGUF"):
        raise ModelError(f"{path}: is not a GGUF file (it starts with {start[:4]!r}).\nFix: download it again")
    if _PART.search(file.name):
        raise ModelError(f"{path}: is one part of a split model.\nFix: join the parts: llama-gguf-split --merge {file.name} WHOLE.gguf")
    return cached_file_hash(file)


def folder_of(sha256: str) -> Path:
    """Return the folder of a GGUF file's conversion, which need not be there yet."""
    return cache_dir() / f"gguf-{sha256[:16]}-{_FORMAT}"


def is_conversion(folder: Path) -> bool:
    """Whether a folder's name, perhaps on another machine, is that of a GGUF file's conversion, with the file's hash in it."""
    return re.fullmatch(r"gguf-[0-9a-f]{16}-\d+", folder.name) is not None


def gguf_folder(path: str) -> Path:
    """Return the folder of a GGUF file's conversion to bfloat16, converting it first if it isn't there."""
    return converted(Path(path).expanduser(), folder_of(gguf_hash(path)), "bfloat16")


def converted(file: Path, final: Path, dtype: Dtype, fix: str = "") -> Path:
    """Convert a GGUF file unless its folder is there, and return the folder.

    The folder is written atomically. If several processes need it, one converts and the others wait. Standard error says what is done, with
    a progress bar in a terminal.

    Args:
        dtype: of the weights in the folder.
        fix: what to do if the file can't be converted.
    """
    if final.is_dir():
        return final
    from filelock import FileLock, Timeout

    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{final}.lock")
        try:
            held = lock.acquire(timeout=NOTICE_SECONDS)
        except Timeout:
            print(f"Waiting for another process that converts {file.name} (it holds {lock.lock_file})", file=sys.stderr, flush=True)
            held = lock.acquire()
        with held:
            if not final.is_dir():
                print(f"Converting {file.name} to {final}, once", file=sys.stderr, flush=True)
                _convert(file, final, dtype, fix)
    except OSError as e:
        raise disk_error(e, final) from e
    return final


def _convert(file: Path, final: Path, dtype: Dtype, fix: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from cai.models.local.quiet import quiet_transformers

    hidden = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with atomic_folder(final) as work, quiet_transformers(), hidden:  # the library's progress bar has no switch
        try:
            _refuse_scaled_positions(file)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model, found = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=getattr(torch, dtype),
                output_loading_info=True,
            )
            _refuse_missing(found, model)
        except OSError as e:
            raise ModelError(_unreadable(file, e, fix)) from e
        except ModelError:
            raise
        except Exception as e:  # a damaged or unknown file: gguf, numpy and transformers raise whatever they meet
            raise ModelError(_unreadable(file, e, fix)) from e
        model.save_pretrained(work, max_shard_size="1GB")
        tokenizer.save_pretrained(work)


def _unreadable(file: Path, error: Exception, fix: str) -> str:
    if missing := _missing_bytes(file):
        return f"{file}: is cut short: {missing}.\nFix: {fix or 'download it again'}"
    said = (str(error) or type(error).__name__).splitlines()[0][:300]
    other = "use the publisher's safetensors folder or Hub id, or serve the file with llama.cpp and name the server's URL"
    return f"{file}: can't be converted ({said}).\nFix: {fix or f'check that the file is complete; else {other}'}"


def _missing_bytes(file: Path) -> str:
    """Say how much is there of a file that ends before its tensors do; empty for others, and where its header can't be read."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

    whole = 0

    class Table(GGUFReader):  # type: ignore[misc]  # the package has no types
        def _build_tensors(self, start: int, fields: list[Any]) -> None:
            nonlocal whole
            for *_, shape, kind, offset in (field.parts for field in fields):
                block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind[0])]
                whole = max(whole, int(start + offset[0]) + math.prod(map(int, shape)) * size // block)

    with contextlib.suppress(Exception):  # the library raises whatever it meets in a damaged file
        Table(file)
    found = file.stat().st_size
    return f"{found:,} of {whole:,} bytes" if found < whole else ""


def _refuse_missing(found: dict[str, Any], model: Any) -> None:
    """Refuse a file that lacks weights of its model: a vocabulary, an adapter, a vision part. They would be random numbers."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(found["missing_keys"]) - tied)
    if missing or found["mismatched_keys"]:
        raise ValueError(f"it lacks {len(missing) or 'right shapes of'} weights of the model, such as {(missing or ['?'])[0]}")


def _refuse_scaled_positions(file: Path) -> None:
    from transformers.integrations.gguf import read_gguf_metadata

    fields, tensors = read_gguf_metadata(str(file))
    kinds = {value for name, value in fields.items() if name.endswith("rope.scaling.type") and not name.startswith("gpt-oss.")}
    if kinds - {"none"} or any(name.startswith(_FACTORS) for name in tensors):
        raise ValueError("its rotary positions are scaled, and transformers drops that when it reads a GGUF file")
