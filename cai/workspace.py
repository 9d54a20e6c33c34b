"""Where things are: a workspace (constitution/, prompts/, runs/) and a run directory in it, locked while a run uses it."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.errors import DataError, RecipeError, StoreError
from cai.jsonl import disk_error, read_records, write_records

FOLDERS = ("constitution", "prompts", "runs")
_RUN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


@dataclass(frozen=True)
class Workspace:
    """A folder with constitution/, prompts/ and runs/."""

    root: Path

    @property
    def store_path(self) -> Path:
        """The call store that every run of this workspace shares."""
        return self.root / "runs" / "calls.sqlite"

    def run(self, name: str) -> "RunDirectory":
        """Return the run directory of that name (or of a path that ends in it). Raises `RecipeError` on an unsafe name."""
        name = Path(name).name if name.startswith(("runs/", "./", "/")) else name
        if not _RUN_NAME.match(name):
            raise RecipeError(f"run name {name!r}: letters, digits, dot, dash and underscore only, at most 64")
        return RunDirectory(self.root / "runs" / name)


@dataclass(frozen=True)
class RunDirectory:
    """runs/NAME: everything that one run wrote."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def failures(self) -> Path:
        return self.path / "failures.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def data(self, name: str) -> Path:
        """Path of a record file: `data/NAME.jsonl`."""
        return self.path / "data" / f"{name}.jsonl"

    def model(self, name: str) -> Path:
        """Folder of a trained adapter: `models/NAME`."""
        return self.path / "models" / name

    def in_use(self) -> bool:
        """Whether a process is running this recipe now."""
        try:
            with (self.path / ".lock").open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run directory for one process. The lock goes with the process, however it ends.

        Raises:
            StoreError: another process holds it; the message names its id.
        """
        lock = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = lock.open("a+")
        except OSError as e:
            raise disk_error(e, self.path) from e
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                raise StoreError(
                    f"{self.path}: another process (pid {holder}) is running this recipe. Wait for it, stop it, or give this run "
                    "another directory with --name."
                ) from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield


def find_workspace(start: Path) -> Workspace:
    """Return the workspace that holds a path: the nearest folder upwards that has constitution/ and prompts/.

    Raises:
        RecipeError: there is none.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "constitution").is_dir() and (folder / "prompts").is_dir():
            return Workspace(folder)
    raise RecipeError(f"{start}: not in a workspace (a folder with constitution/ and prompts/). Make one with: cai init DIR")


def shipped_workspace() -> Path:
    """Return the folder that `cai init` copies: the checkout's root, or the copy inside the installed package."""
    package = Path(__file__).parent
    installed = package / "_workspace"
    return installed if installed.is_dir() else package.parent


def init_workspace(target: Path) -> list[Path]:
    """Copy the shipped constitutions, prompts and recipes into a folder; never overwrite a file.

    Returns:
        The files made.

    Raises:
        DataError: the folder already has one of them.
        StoreError: it can't be written.
    """
    source = shipped_workspace()
    taken = [target / folder for folder in FOLDERS if (target / folder).exists()]
    if taken:
        raise DataError(f"{target}: already has {', '.join(t.name + '/' for t in taken)}; nothing was changed. Choose an empty folder.")
    made = []
    for folder in FOLDERS:
        files = (source / folder).glob("*.yaml") if folder == "runs" else (source / folder).rglob("*")
        for file in sorted(f for f in files if f.is_file() and f.suffix != ".py" and "__pycache__" not in f.parts):
            destination = target / file.relative_to(source)
            try:
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, destination)
            except OSError as e:
                raise disk_error(e, destination) from e
            made.append(destination)
    return made


def file_hash(path: Path) -> str:
    """Return the content hash of a file, or of a folder's files and their names. Raises `DataError` if missing."""
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            for file in sorted(f for f in path.rglob("*") if f.is_file()):
                digest.update(str(file.relative_to(path)).encode() + b"\0" + file_hash(file).encode())
        else:
            with path.open("rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
    except OSError as e:
        raise DataError(f"{path}: can't be read ({e.strerror or e})") from e
    return digest.hexdigest()[:16]


def replace_stage_rows(path: Path, stage: str, rows: Iterable[Any]) -> None:
    """Rewrite one stage's rows in a file that all stages share (`failures.jsonl`, `metrics.jsonl`); the others' stay.

    Args:
        path: the shared file; every row has a `stage`.
        stage: whose rows to replace.
        rows: records or mappings.
    """
    kept = [r for r in read_records(path, dict[str, Any], torn_tail="drop") if r.get("stage") != stage] if path.exists() else []
    write_records(path, [*kept, *rows])
