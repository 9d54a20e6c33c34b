"""`auto` follows the hardware; what was asked for by name is kept."""

from collections.abc import Iterator

import pytest
import torch

from cai.models import precision
from cai.models.precision import resolved_precision


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    precision._fastest.cache_clear()
    yield
    precision._fastest.cache_clear()


@pytest.mark.parametrize("able", [set(), {"avx512_bf16"}, {"amx_bf16"}, {"bf16"}])
def test_auto_is_bfloat16_only_where_a_cpu_multiplies_it(able: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: name in able for name in ("avx2", "avx512_bf16", "amx_bf16", "bf16")})
    assert resolved_precision("auto") == ("bfloat16" if able else "float32")


def test_auto_is_bfloat16_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolved_precision("auto") == "bfloat16"


def test_a_named_precision_is_kept() -> None:
    assert [resolved_precision(p) for p in ("float32", "bfloat16", "nf4")] == ["float32", "bfloat16", "nf4"]
