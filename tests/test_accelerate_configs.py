"""The launch configurations for several GPUs: accelerate reads them whole, and they say what their names say."""

from pathlib import Path

import pytest
import yaml

from tests.workspaces import ROOT

FOLDER = ROOT / "docs" / "accelerate"
EXPECTED = {
    "multi_gpu": ("MULTI_GPU", {}),
    "fsdp": ("FSDP", {"fsdp_version": 2}),
    "deepspeed_zero2": ("DEEPSPEED", {"zero_stage": 2}),
    "deepspeed_zero3": ("DEEPSPEED", {"zero_stage": 3, "zero3_save_16bit_model": True}),
}


def test_each_configuration_is_known() -> None:
    assert {p.stem for p in FOLDER.glob("*")} == EXPECTED.keys()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_accelerate_reads_it(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path: Path = FOLDER / f"{name}.yaml"
    kind, settings = EXPECTED[name]
    config = load_config_from_file(str(path))  # raises on a key that it doesn't know
    assert str(config.distributed_type).rpartition(".")[2] == kind
    assert config.mixed_precision == "bf16"
    inner = {**(config.fsdp_config or {}), **(config.deepspeed_config or {})}
    assert settings.items() <= inner.items()
    assert f"docs/accelerate/{name}.yaml" in path.read_text(), "says how it is launched"
    assert yaml.safe_load(path.read_text())["num_machines"] == 1
