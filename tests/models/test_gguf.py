"""GGUF files as models: converted once, whole or not at all, and refused with the fix where numbers would be wrong."""

import threading
from pathlib import Path

import pytest
import torch

from cai.errors import ModelError
from cai.models.local.adapter import adapter_base
from cai.models.local.fingerprint import model_fingerprint
from cai.models.local.folders import resolve_model_path
from cai.models.local.gguf import cache_dir, gguf_folder
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.naming import spec_from_name
from cai.pipeline.memory import read_dimensions
from cai.recipe import ModelSpec
from tests.models.gguf_file import write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("CAI_CACHE")
    assert cache_dir() == Path("/xdg/cai")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "cai"


def test_a_gguf_file_is_a_model(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_gguf(tmp_path / "tiny.gguf")
    spec = spec_from_name(str(tmp_path / "tiny.gguf"), ModelSpec(precision="float32"))
    model, tokenizer = load_causal_lm(spec), load_tokenizer(spec)
    assert capsys.readouterr().err.count("Converting tiny.gguf") == 1
    found = model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(found, torch.from_numpy(written["blk.0.attn_q.weight"]).bfloat16().float())
    assert tokenizer("é<|im_end|>")["input_ids"] == [0xC3, 0xA9, 259]
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    shape = read_dimensions(spec)
    assert shape is not None and (shape.hidden, shape.layers, shape.vocabulary) == (16, 1, 260)
    (folder,) = [p for p in cache.iterdir() if p.is_dir()]
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in folder.iterdir())


def test_a_fingerprint_is_the_files_content(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first, copy, other = tmp_path / "a.gguf", tmp_path / "elsewhere" / "b.GGUF", tmp_path / "c.gguf"
    write_gguf(first)
    copy.write_bytes(first.read_bytes())
    write_gguf(other, seed=1)
    prints = [model_fingerprint(ModelSpec(path=str(p))) for p in (first, copy, other)]
    assert prints[0] == prints[1] != prints[2]
    assert prints[0] == model_fingerprint(ModelSpec(path=resolve_model_path(ModelSpec(path=str(first)))))


def test_threads_that_meet_convert_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    threads = [threading.Thread(target=gguf_folder, args=(str(tmp_path / "tiny.gguf"),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err.count("Converting") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"without": ["blk.0.ffn_up.weight"]}, r"lacks 1 weights of the model, such as model\.layers\.0\.mlp\.up_proj"),
        ({"scaling": "yarn"}, "rotary positions are scaled"),
    ],
)
def test_a_file_that_would_give_wrong_numbers_is_refused(tmp_path: Path, cache: Path, options: dict[str, object], message: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", **options)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=message):
        gguf_folder(str(tmp_path / "tiny.gguf"))
    assert [p for p in cache.iterdir() if p.is_dir()] == []


def test_what_is_no_whole_gguf_file_says_what_to_do(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    for name, content, message in (
        ("lfs.gguf", b"version https://git-lfs.github.com/spec/v1\n", "Fix: git lfs pull"),
        ("page.gguf", b"<!DOCTYPE html>", "not a GGUF file"),
        ("big-00001-of-00003.gguf", whole, "llama-gguf-split --merge big-00001-of-00003.gguf"),
        ("torn.gguf", whole[:-5000], rf"is cut short: {len(whole) - 5000:,} of [\d,]+ bytes\.\nFix: download it again"),
        ("damaged.gguf", whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"), "can't be converted"),
        ("header.gguf", whole[:40], "can't be converted"),
        ("empty.gguf", b"", "not a GGUF file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message):
            resolve_model_path(ModelSpec(path=str(tmp_path / name)))
    with pytest.raises(ModelError, match="No such file"):
        resolve_model_path(ModelSpec(path=str(tmp_path / "none.gguf")))


def test_a_folder_of_gguf_files_names_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match=r"Fix: name one of them: .*tiny\.gguf"):
        resolve_model_path(ModelSpec(path=str(tmp_path)))


def test_an_adapter_on_a_conversion_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/other/cai/gguf-0123456789abcdef-1"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"trained on a GGUF file that isn't converted here"):
        adapter_base(tmp_path)
