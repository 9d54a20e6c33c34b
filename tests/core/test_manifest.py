"""What a run says about itself, on disk and back."""

from pathlib import Path

import pytest

from cai.constitution.load import load_constitution
from cai.core.manifest import (
    JudgeCard,
    Manifest,
    StageEntry,
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
