"""The run manifest (`manifest.json`): versions, hashes, and the cost and counts of every stage."""

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from cai import __version__
from cai.core.jsonl import NOT_JSON, read_file, write_json
from cai.core.stages import STAGE_INFO
from cai.errors import StoreError
from cai.records import Constitution, Principle

StageState = Literal["running", "done", "failed", "stopped"]
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")

TEXTS, TRUNCATED = "texts", "truncated"
"""Counts of a stage that samples: the texts that it kept, and those of them that were cut off at the token limit."""
MANY_TRUNCATED = 0.1
"""Share of truncated texts above which a run warns."""
TOLD, FOLLOWED = "told:", "followed:"
"""Beginnings of a stage's counts per principle: answers under it, and those of them that follow its check. The principle's id follows."""
IN_REACH = 0.25
"""Share of answers that follow a principle in their context below which a run warns that it is out of the model's reach."""
MIN_TOLD = 8
"""Minimum number of answers for that warning."""


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Return a stage's counts for a person to read, without those per principle."""
    return ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items() if not key.startswith((TOLD, FOLLOWED)))


@dataclass
class StageEntry:
    """The last run of one stage. A finished stage is skipped if its fingerprint and outputs are unchanged."""

    name: str
    status: StageState
    fingerprint: str
    started: str = ""
    seconds: float = 0.0
    calls_made: int = 0
    calls_reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """Cost in US dollars, from the recipe's token prices; 0 for local models."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Content hash of each output, by its path relative to the run directory."""
    counts: dict[str, int] = field(default_factory=dict)
    message: str = ""
    peak_memory_bytes: int = 0
    """Peak resident memory of the process until the end of the stage, in bytes."""
    peak_device_bytes: int = 0
    """Peak memory of the stage's tensors on one GPU, in bytes, as torch reports it; 0 without a GPU."""

    @property
    def truncation_warning(self) -> str:
        """What to do about texts that were cut off at the token limit; empty if at most a tenth of them were."""
        texts, cut = self.counts.get(TEXTS, self.counts.get("responses", 0)), self.counts.get(TRUNCATED, 0)
        if cut <= MANY_TRUNCATED * texts:
            return ""
        limit = STAGE_INFO[self.name].limit if self.name in STAGE_INFO else "the limit"
        return (
            f"{self.name}: {cut} of {texts} texts ({cut / texts:.0%}) were cut off at the token limit. They are judged as they stand, and "
            f"no model is trained to end there; raise {limit}"
        )

    @property
    def out_of_reach(self) -> dict[str, tuple[int, int]]:
        """Principles that few answers follow although they were written under them: id to the number that follow it, and of how many."""
        told = {key.removeprefix(TOLD): n for key, n in self.counts.items() if key.startswith(TOLD)}
        found = {i: (self.counts.get(FOLLOWED + i, 0), n) for i, n in told.items()}
        return {i: (followed, n) for i, (followed, n) in found.items() if n >= MIN_TOLD and followed < IN_REACH * n}

    @property
    def warnings(self) -> list[str]:
        """What the stage's counts warn of, in sentences."""
        reach = [
            f"{self.name}: told {i}, the model follows it in {followed} of {n} answers, too few to learn from. Word its statement as "
            "a request, give it openings, put it last (distill.placement: turns), let a stronger model write, or leave it out"
            for i, (followed, n) in self.out_of_reach.items()
        ]
        return [*([self.truncation_warning] if self.truncation_warning else []), *reach]


@dataclass
class JudgeCard:
    """Measured accuracy of the judge whose labels the run uses."""

    protocol: str
    measured: bool
    pairs: str = ""
    accuracy: float = 0.0
    low: float = 0.0
    high: float = 0.0
    n: int = 0
    beats_baselines: bool = False
    best_baseline: str = ""
    note: str = ""
    calibration: str = ""
    """Hash of the calibration used in the measurement; empty without one."""
    mass: float | None = None
    """Mean probability that the judge gave to its choices together when it labelled, in [0, 1]; None if no choices were read."""
    mass_warning: str = ""
    """Warning if that is small."""
    by_rule: bool = False
    """Whether labels come from the principles' checks, and no judge is asked."""


@dataclass
class ConstitutionCard:
    """The constitution that the run used."""

    id: str
    name: str
    hash: str
    principles: tuple[Principle, ...] = ()


@dataclass
class Manifest:
    """Contents of a run's manifest.json."""

    name: str
    recipe_hash: str = ""
    command: str = ""
    cai_version: str = __version__
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    constitution: ConstitutionCard | None = None
    model: str = ""
    model_fingerprint: str = ""
    trained: str = ""
    """The model that is trained, where it isn't `model`."""
    judged_by: str = ""
    """The model that judges, where it isn't `model`."""
    judge: JudgeCard | None = None
    stages: list[StageEntry] = field(default_factory=list)
    peak_memory_bytes: int = 0
    chosen: tuple[str, ...] = ()
    """Stages that the last command was to run."""

    @property
    def principles(self) -> tuple[Principle, ...]:
        """The principles of the constitution that the run used; none before it is known."""
        return () if self.constitution is None else self.constitution.principles

    def stage(self, name: str) -> StageEntry | None:
        """Return the entry of a stage, or None if the stage has not started."""
        return next((s for s in self.stages if s.name == name), None)

    def put(self, entry: StageEntry) -> None:
        """Add the entry of a stage, or replace it in place."""
        for i, existing in enumerate(self.stages):
            if existing.name == entry.name:
                self.stages[i] = entry
                return
        self.stages.append(entry)


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; return None if the file does not exist. Raises `StoreError` if it can't be read."""
    try:
        return msgspec.json.decode(read_file(path), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, *NOT_JSON) as e:
        raise StoreError(f"{path}: this version can't read the manifest ({e}). Move the run directory away and run again.") from e


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest atomically. Raises `StoreError`."""
    write_json(path, manifest)


def describe_constitution(constitution: Constitution) -> ConstitutionCard:
    """Return a constitution's entry for the manifest."""
    return ConstitutionCard(constitution.id, constitution.name, constitution.hash, constitution.principles)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect a run's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def git_state(root: Path) -> dict[str, str]:
    """Return the workspace's git commit; empty outside a git checkout.

    It is read from git's files. The program `git` is not run, because a shared workspace's `.git/config` can name commands that it starts
    (`core.fsmonitor`, filters).
    """
    for folder in (root, *root.parents):
        if (git := folder / ".git").exists():
            commit = _commit(git)
            return {"commit": commit} if commit else {}
    return {}


def _commit(git: Path) -> str:
    """Return the commit of a `.git` folder, or of the file in its place in worktrees and submodules; empty if there is none."""
    if link := re.fullmatch(r"gitdir: (.+)", _start(git)):
        git = git.parent / link[1]
    head = _start(git / "HEAD")
    if (ref := re.fullmatch(r"ref: (refs/\S+)", head)) and ".." not in ref[1]:
        folders = (git, git / (_start(git / "commondir") or "."))
        loose = (_start(folder / ref[1]) for folder in folders)
        packed = (re.search(rf"^(\w+) {re.escape(ref[1])}$", _start(f / "packed-refs", 1 << 24), re.MULTILINE) for f in folders)
        head = next(iter((*filter(None, loose), *(found[1] for found in packed if found))), "")
    return head if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", head) else ""


def _start(path: Path, most: int = 4096) -> str:
    """Return a regular file's text, up to `most` bytes; empty if there is none."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as f:
            return f.read(most).decode("utf-8", "replace").strip()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""


def machine_facts() -> dict[str, Any]:
    """Return platform, CPU count and, on Linux, memory in bytes."""
    import os

    facts: dict[str, Any] = {"platform": platform.platform(), "cpus": os.cpu_count()}
    if sys.platform == "linux":
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return facts


def reset_device_peak() -> None:
    """Reset the peak memory counters of all GPUs, if torch is loaded."""
    if (cuda := _cuda()) is not None:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def peak_device_bytes() -> int:
    """Return the peak tensor memory on one GPU since `reset_device_peak`, in bytes; 0 without torch or a GPU."""
    cuda = _cuda()
    return 0 if cuda is None else max(int(cuda.max_memory_allocated(device)) for device in range(cuda.device_count()))


def _cuda() -> Any:
    torch = sys.modules.get("torch")  # if torch is not loaded, nothing is on a GPU
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def peak_memory_bytes() -> int:
    """Return this process's peak resident memory, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
