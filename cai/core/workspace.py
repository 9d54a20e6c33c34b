"""Where things are: a workspace (constitution/, prompts/, runs/) and a run directory in it, locked while a run uses it."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cai.core.jsonl import disk_error, read_records, write_records
from cai.errors import DataError, RecipeError, StoreError

FOLDERS = ("constitution", "prompts", "runs")
STORE_NAME = "calls.sqlite"
_LOCK_TRIES = 10
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Workspace:
    """A folder with constitution/, prompts/ and runs/."""

    root: Path

    @property
    def store_path(self) -> Path:
        """The call store that every run of this workspace shares."""
        return self.root / "runs" / STORE_NAME

    def run(self, name: str) -> "RunDirectory":
        """Return the run directory of that name. Raises `RecipeError` on an unsafe one."""
        if not _RUN_NAME.fullmatch(name):
            raise RecipeError(f"run name {name[:80]!r}: letters, digits, dot, dash and underscore only, at most 64")
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

    @property
    def unfinished(self) -> Path:
        """Folder of what is kept of a stage until it is done."""
        return self.path / "unfinished"

    def in_use(self) -> bool:
        """Whether a process is running this recipe now."""
        try:
            with (self.path / ".lock").open() as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no lock file yet, or one that isn't ours to read
            return False
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run directory for one process. The lock goes with the process, however it ends.

        Raises:
            StoreError: another process holds it; the message names its id.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / ".lock").open("a+")
        except OSError as e:
            raise disk_error(e, self.path) from e
        with handle:
            try:
                mine = _flock(handle)
                if mine:
                    handle.truncate(0)
                    handle.write(str(os.getpid()))
                    handle.flush()
            except OSError as e:
                raise disk_error(e, self.path) from e
            if not mine:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                raise StoreError(
                    f"{self.path}: another process (pid {holder}) is running this recipe. Wait for it, stop it, or give this run "
                    "another directory with --name."
                )
            yield


def _flock(handle: TextIO) -> bool:
    """Take the lock; a short wait, because `cai status` holds it for an instant when it looks."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


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


def find_run(name: str) -> RunDirectory:
    """Return the directory of a run: NAME or runs/NAME in the workspace around the current folder, or a path into any workspace.

    Raises:
        RecipeError: the name is unsafe, or there is no workspace.
        DataError: no run of that name was started.
    """
    path = Path(name)
    try:
        around = path.parent if path.parent.name == "runs" and path.parent.is_dir() else Path.cwd()
    except OSError as e:
        raise RecipeError(f"{name[:80]}…: no run's name or path ({e.strerror})") from e
    run = find_workspace(around).run(path.name)
    if not any((run.path / name).is_file() for name in ("recipe.yaml", "manifest.json")):
        known = sorted({p.parent.name for p in run.path.parent.glob("*/recipe.yaml")})
        raise DataError(f"{run.path}: no such run. " + (f"There are: {', '.join(known)}" if known else "Start one with: cai run RECIPE"))
    return run


def shipped_workspace() -> Path:
    """Return the folder that `cai init` copies: the checkout's root, or the copy inside the installed package."""
    package = Path(__file__).parents[1]
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
