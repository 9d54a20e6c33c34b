"""What a run says about itself: versions, hashes, and per stage what it cost and what it counted. Read by `status` and the report."""

import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from cai import __version__
from cai.core.jsonl import NOT_JSON, write_text
from cai.errors import StoreError
from cai.records import Constitution, Principle

StageState = Literal["running", "done", "failed", "stopped"]
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")

STAGE_NAMES = ("respond", "critique", "sft", "pairs", "feedback", "preferences", "reward", "policy", "evaluate", "report")
"""The stages of a run, in order. `cai.pipeline.stages` declares what each does."""


@dataclass
class StageEntry:
    """One stage's last run. A finished stage whose fingerprint and outputs are unchanged is not run again."""

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
    """US dollars, from the recipe's token prices; 0 for local models."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Path from the run directory to content hash."""
    counts: dict[str, int] = field(default_factory=dict)
    message: str = ""
    peak_memory_bytes: int = 0
    """Highest resident memory of the process so far, when the stage ended."""
    peak_device_bytes: int = 0
    """Most that the stage's tensors took on one GPU, by torch's count; 0 where there is none."""


@dataclass
class JudgeCard:
    """What is known of the judge whose labels this run uses."""

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
    """Hash of the calibration that it was measured with; empty without one."""


@dataclass
class ConstitutionCard:
    """The constitution as it was used."""

    id: str
    name: str
    hash: str
    principles: tuple[Principle, ...] = ()


@dataclass
class Manifest:
    """The run's manifest.json."""

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
    judge: JudgeCard | None = None
    stages: list[StageEntry] = field(default_factory=list)
    peak_memory_bytes: int = 0

    def stage(self, name: str) -> StageEntry | None:
        """Return the entry of a stage, or None if it has not been started."""
        return next((s for s in self.stages if s.name == name), None)

    def put(self, entry: StageEntry) -> None:
        """Add a stage's entry or replace it in place."""
        for i, existing in enumerate(self.stages):
            if existing.name == entry.name:
                self.stages[i] = entry
                return
        self.stages.append(entry)


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None where there is none yet. Raises `StoreError` on one that can't be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, *NOT_JSON) as e:
        raise StoreError(f"{path}: not a manifest that this version reads ({e}). Move the run directory away and run again.") from e


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest atomically. Raises `StoreError`."""
    write_text(path, msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode() + "\n")


def describe_constitution(constitution: Constitution) -> ConstitutionCard:
    """Return the card that the manifest keeps of a constitution."""
    return ConstitutionCard(constitution.id, constitution.name, constitution.hash, constitution.principles)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def git_state(root: Path) -> dict[str, str]:
    """Return the commit of the workspace and whether it has uncommitted changes; empty where it isn't a git checkout."""

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}


def machine_facts() -> dict[str, Any]:
    """Return processor count, memory and platform, as far as the system tells."""
    import os

    facts: dict[str, Any] = {"platform": platform.platform(), "cpus": os.cpu_count()}
    if sys.platform == "linux":
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return facts


def reset_device_peak() -> None:
    """Begin to count the GPUs' memory anew, if torch is loaded and has any."""
    if (cuda := _cuda()) is not None:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def peak_device_bytes() -> int:
    """Return the most that tensors took on one GPU since `reset_device_peak`; 0 where torch isn't loaded or has none."""
    cuda = _cuda()
    return 0 if cuda is None else max(int(cuda.max_memory_allocated(device)) for device in range(cuda.device_count()))


def _cuda() -> Any:
    torch = sys.modules.get("torch")  # a stage that hasn't loaded it has put nothing on a GPU
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def peak_memory_bytes() -> int:
    """Return this process's peak resident memory, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
