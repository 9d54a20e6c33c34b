"""Paths in a workspace (constitution/, prompts/, runs/) and in a run directory, and the lock on a run directory."""

import contextlib
import errno
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

from cai.core.jsonl import disk_error, no_link, read_existing, write_records
from cai.core.plugins import did_you_mean
from cai.errors import DataError, RecipeError, StoreError

FOLDERS = ("constitution", "prompts", "runs")
STORE_NAME = "calls.sqlite"
_LOCK_TRIES = 10
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8 in one line of printable characters. Others can't be written into records and addresses."""
    return name.isprintable()


def is_run_name(name: str) -> bool:
    """Whether a run may have this name.

    >>> is_run_name("v1.2"), is_run_name("s (copy)"), is_run_name("calls.sqlite-wal")
    (True, False, False)
    """
    return _RUN_NAME.fullmatch(name) is not None and not name.lower().startswith(STORE_NAME)


@dataclass(frozen=True)
class Workspace:
    """A workspace: a folder with constitution/, prompts/ and runs/."""

    root: Path

    @property
    def store_path(self) -> Path:
        """Path of the call store, which all runs of the workspace share."""
        return self.root / "runs" / STORE_NAME

    def run(self, name: str) -> "RunDirectory":
        """Return the run directory of a name. Raises `RecipeError` on an unsafe name."""
        if not is_run_name(name):
            raise RecipeError(f"run name {name[:80]!r}: letters, digits, dot, dash and underscore only, at most 64, and not {STORE_NAME}…")
        return RunDirectory(self.root / "runs" / name)


@dataclass(frozen=True)
class RunDirectory:
    """A run directory (runs/NAME), which holds all files of one run."""

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
        """Return the path of a record file: `data/NAME.jsonl`."""
        return self.path / "data" / f"{name}.jsonl"

    def model(self, name: str) -> Path:
        """Return the folder of a trained adapter: `models/NAME`."""
        return self.path / "models" / name

    @property
    def unfinished(self) -> Path:
        """Folder for the intermediate files of unfinished stages."""
        return self.path / "unfinished"

    @property
    def live(self) -> Path:
        """Steps of the training that is under way, one a line. After a resume, the later of two lines about a step counts."""
        return self.unfinished / "steps.jsonl"

    def in_use(self) -> bool:
        """Return whether a process holds the run's lock."""
        try:
            with (self.path / ".lock").open() as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no lock file yet, or not readable
            return False
        return False

    def holder(self) -> int | None:
        """Return the id of the process that holds the run's lock; None if no process does."""
        try:
            return int((self.path / ".lock").read_text()) if self.in_use() else None
        except ValueError:  # it is just taking the lock
            return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run directory for this process. The operating system releases the lock when the process ends.

        Raises:
            StoreError: the folder holds other files, or another process holds the lock; the message names its process id.
        """
        ours = (".lock", "manifest.json", "recipe.yaml", "data", "models")  # data may be put there by hand, to start from a later stage
        if (
            not any((self.path / name).exists() for name in ours)
            and (other := next((f for f in self.path.rglob("*") if f.is_file()), None)) is not None
        ):
            raise StoreError(f"{self.path}: is no run's folder: it has {other.relative_to(self.path)}. Choose another --name.")
        self._refuse_links()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open(self.path / ".lock", "a+", opener=no_link)  # noqa: SIM115 - Path.open takes no opener; closed below
        except OSError as e:
            raise disk_error(e, self.path / ".lock" if e.errno == errno.ELOOP else self.path) from e
        with handle:
            try:
                acquired = _flock(handle)
                if acquired:
                    handle.truncate(0)
                    handle.write(str(os.getpid()))
                    handle.flush()
            except OSError as e:
                raise disk_error(e, self.path) from e
            if not acquired:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                raise StoreError(
                    f"{self.path}: another process (pid {holder}) is running this recipe. Wait for it, stop it, or give this run "
                    "another directory with --name."
                )
            yield

    def _refuse_links(self) -> None:
        """Raise `StoreError` if a link in the folder leaves `runs/`: a run writes through it. `runs/` and the folder may be links."""
        inside = (self.path.resolve(), self.path.parent.resolve())
        for link in self.path.rglob("*"):
            if link.is_symlink() and not any(link.resolve().is_relative_to(folder) for folder in inside):
                raise StoreError(
                    f"{link}: is a link to {link.resolve()}, outside of {self.path.parent}, and the run would write there. Put what it "
                    "names in its place, or remove it."
                )


def _flock(handle: TextIO) -> bool:
    """Try to take the lock; retry for 0.2 s, because `cai status` holds it for a moment."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def find_workspace(start: Path) -> Workspace:
    """Return the workspace of a path: the path or its nearest parent folder that has constitution/ and prompts/.

    Raises:
        RecipeError: the path is not in a workspace.
    """
    as_named = (start.absolute(),) if ".." not in start.parts else ()  # first: runs/ may be a link to another disk
    for path in (*as_named, start.resolve()):
        for folder in (path, *path.parents):
            if (folder / "constitution").is_dir() and (folder / "prompts").is_dir():
                return Workspace(folder)
    start = start.resolve()
    raise RecipeError(f"{start}: not in a workspace (a folder with constitution/ and prompts/). Make one with: cai init DIR")


_RUN_FILES = ("recipe.yaml", "manifest.json")
"""Files of which a run's directory has at least one."""


def find_run(name: str) -> RunDirectory:
    """Return the directory of a run: NAME or runs/NAME in the current workspace, or a path into any workspace.

    Raises:
        RecipeError: the name is unsafe, or there is no workspace.
        DataError: there is no run of that name.
    """
    path = Path(name)
    try:
        around = path.parent if path.parent.name == "runs" and path.parent.is_dir() else Path.cwd()
    except OSError as e:
        raise RecipeError(f"{name[:80]}…: not a run's name or path ({e.strerror})") from e
    run = find_workspace(around).run(path.name)
    if not any((run.path / name).is_file() for name in _RUN_FILES):
        raise no_such_run(run)
    return run


def no_such_run(run: RunDirectory) -> DataError:
    """Return the error for a run that does not exist. It lists those that do."""
    known = sorted({p.parent.name for name in _RUN_FILES for p in run.path.parent.glob(f"*/{name}")})
    return DataError(f"{run.path}: no such run. " + (f"There are: {', '.join(known)}" if known else "Start one with: cai run RECIPE"))


def no_such_file(path: Path, folder: str) -> str:
    """Return the message for a YAML file that does not exist. It lists those beside it and in a folder of the workspace.

    Args:
        path: the missing file.
        folder: `runs` for recipes, `constitution` for constitutions, empty for others.
    """
    near: set[Path] = set()
    with contextlib.suppress(RecipeError, OSError):
        near |= {p.absolute() for p in path.parent.glob("*.yaml")}
        near |= set((find_workspace(path.parent).root / folder).glob("*.yaml"))
    here = Path.cwd()
    there = sorted(str(p.relative_to(here) if p.is_relative_to(here) else p) for p in near)
    named = next((p for p in there if Path(p).stem == path.stem), None)
    guess = f". Did you mean {named!r}?" if named else did_you_mean(str(path), there) or "."
    return f"{path}: no such file{guess} " + (f"There are: {', '.join(there)}" if there else "Make a workspace with: cai init DIR")


PAIR_FILES = ("pairs", "revision_pairs", "distilled_pairs")
"""Names of a run's files of pairs, of which a run may lack some."""
TEMPLATES = Path("prompts/templates")
"""Folder of the prompt templates in a workspace."""


def shipped_workspace() -> Path:
    """Return the folder that `cai init` copies: the root of the checkout, or the copy in the installed package."""
    package = Path(__file__).parents[1]
    installed = package / "_workspace"
    return installed if installed.is_dir() else package.parent


def init_workspace(target: Path) -> list[Path]:
    """Copy the shipped constitutions, prompts and recipes into a folder, without overwriting anything.

    Returns:
        Paths of the new files.

    Raises:
        DataError: the target already has one of the folders.
        StoreError: the target can't be written.
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
    """Return the content hash of a file, or of a folder's files and their names. Raises `DataError` if it can't be read."""
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
    """Replace the rows of one stage in a file that all stages share (`failures.jsonl`, `metrics.jsonl`).

    Args:
        path: the shared file; every row has a `stage`.
        stage: the stage whose rows to replace.
        rows: new rows: records or mappings.
    """
    kept = [r for r in read_existing(path, dict[str, Any], torn_tail="drop") if r.get("stage") != stage]
    write_records(path, [*kept, *rows])
