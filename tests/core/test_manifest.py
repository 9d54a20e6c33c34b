"""What a run says about itself, on disk and back."""

import os
import subprocess
from pathlib import Path

import pytest

from cai.constitution.load import load_constitution
from cai.core.manifest import (
    JudgeCard,
    Manifest,
    StageEntry,
    counts_in_words,
    describe_constitution,
    git_state,
    installed_versions,
    machine_facts,
    peak_memory_bytes,
    read_manifest,
    write_manifest,
)
from cai.errors import StoreError
from tests.workspaces import ROOT


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = Manifest(
        "r",
        constitution=describe_constitution(load_constitution(ROOT / "constitution" / "general.yaml")),
        judge=JudgeCard("pairwise", True, accuracy=0.5),
        versions=installed_versions(),
        machine=machine_facts(),
    )
    manifest.put(StageEntry("respond", "done", "f", counts={"prompts": 3}, outputs={"data/x": "h"}))
    write_manifest(tmp_path / "m.json", manifest)
    assert read_manifest(tmp_path / "m.json") == manifest
    assert read_manifest(tmp_path / "none.json") is None


def test_an_entry_is_replaced_in_its_place() -> None:
    manifest = Manifest("r")
    for name in ("respond", "critique"):
        manifest.put(StageEntry(name, "running", "f"))
    manifest.put(StageEntry("respond", "done", "g"))
    assert [(s.name, s.status) for s in manifest.stages] == [("respond", "done"), ("critique", "running")]
    assert manifest.stage("respond") is manifest.stages[0] and manifest.stage("sft") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": 3}', '{"name": "r", "stages": [{"name": "x", "status": "odd", "fingerprint": ""}]}']
)
def test_a_damaged_manifest_is_told_and_left(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(StoreError, match="Move the run directory away"):
        read_manifest(path)
    assert path.read_text() == text


def test_facts_are_real(tmp_path: Path) -> None:
    assert installed_versions()["torch"][0].isdigit() and installed_versions()["python"].startswith("3.")
    assert peak_memory_bytes() > 2**20
    assert machine_facts()["memory_bytes"] > 2**28
    assert git_state(tmp_path) == {}


@pytest.mark.attack
def test_a_commit_is_read_and_no_command_of_the_checkout_runs(tmp_path: Path) -> None:
    def git(*args: str, at: Path = tmp_path / "w") -> str:
        author = ("-c", "user.email=a@b.c", "-c", "user.name=a")
        return subprocess.run(["git", "-C", str(at), *author, *args], capture_output=True, text=True, check=True).stdout.strip()

    workspace, other = tmp_path / "w" / "deeper", tmp_path / "other"
    workspace.mkdir(parents=True)
    (workspace / "f").write_text("x")
    git("init", "-q")
    assert git_state(workspace) == {}  # nothing is committed
    git("add", ".")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD")
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    trap.chmod(0o755)
    git("worktree", "add", "-q", str(other))
    git("config", "core.fsmonitor", str(trap))
    git("config", "filter.x.clean", str(trap))
    (tmp_path / "w" / ".gitattributes").write_text("* filter=x")
    (workspace / "f").write_text("y")
    assert git_state(workspace) == git_state(other) == {"commit": commit}
    assert not (tmp_path / "ran").exists()
    branch = git("branch", "--show-current")
    (tmp_path / "w" / ".git" / "refs" / "heads" / branch).unlink()
    (tmp_path / "w" / ".git" / "packed-refs").write_text(f"# pack-refs with: peeled\n{commit} refs/heads/{branch}\n")
    assert git_state(workspace) == {"commit": commit}


@pytest.mark.attack
@pytest.mark.parametrize("head", ["ref: ../../secret", "ref: refs/heads/../../../secret", "top secret", "", "\0", "ref: refs/\0"])
def test_a_hostile_checkout_tells_nothing_of_other_files(tmp_path: Path, head: str) -> None:
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "w" / ".git").mkdir(parents=True)
    (tmp_path / "w" / ".git" / "HEAD").write_text(head)
    assert git_state(tmp_path / "w") == {}
    (tmp_path / "w" / ".git" / "HEAD").unlink()
    os.mkfifo(tmp_path / "w" / ".git" / "HEAD")  # reading it would wait for ever
    assert git_state(tmp_path / "w") == {}


def test_a_stage_warns_of_cut_texts_and_of_principles_out_of_reach() -> None:
    few = {"told:rare": 40, "followed:rare": 3, "told:never": 8, "told:often": 40, "followed:often": 12, "told:once": 7}
    entry = StageEntry("distill", "done", "f", counts={"prompts": 40, "texts": 40, "truncated": 5, **few})
    assert entry.out_of_reach == {"rare": (3, 40), "never": (0, 8)}
    cut, rare, never = entry.warnings
    assert "5 of 40 texts (12%) were cut off" in cut and "distill.sampling.max_tokens" in cut
    assert "told rare, the model follows it in 3 of 40 answers" in rare and "told never, the model follows it in 0 of 8" in never
    assert counts_in_words(entry.counts) == "40 prompts, 40 texts, 5 truncated"
    assert StageEntry("distill", "done", "f", counts={"texts": 40, "truncated": 4}).warnings == []
