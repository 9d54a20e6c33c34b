"""Names on the command line."""

import json
from pathlib import Path

import pytest

from cai.errors import ModelError
from cai.models.naming import spec_from_name
from cai.recipe import ModelSpec


def test_each_form_of_name_is_recognised(tmp_path: Path) -> None:
    assert spec_from_name("embedded") == ModelSpec()
    assert spec_from_name("owner/model") == ModelSpec(path="owner/model")
    assert spec_from_name(str(tmp_path)) == ModelSpec(path=str(tmp_path))
    assert spec_from_name("http://h:1/v1") == ModelSpec(path="http://h:1/v1")
    assert spec_from_name("https://h/v1#a/b") == ModelSpec(path="https://h/v1", name="a/b")


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base", "peft_type": "LORA"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert spec_from_name(str(tmp_path)) == ModelSpec(path="owner/base", adapter=str(tmp_path))


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("./none", "runs/none/models/policy", str(tmp_path / "none")):
        with pytest.raises(ModelError, match="no such model folder"):
            spec_from_name(name)
