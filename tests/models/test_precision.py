"""`auto` follows the hardware; what was asked for by name is kept."""

from collections.abc import Iterator

import pytest
import torch

from cai.models.local import precision
from cai.models.local.precision import resolved_precision


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    precision.fastest_precision.cache_clear()
    yield
    precision.fastest_precision.cache_clear()


@pytest.mark.parametrize(
    ("able", "seconds", "chosen"),
    [
        (set(), (2.0, 1.0), "float32"),  # imitated: not even tried
        ({"avx512_bf16"}, (1.0, 2.0), "float32"),
        ({"avx512_bf16"}, (2.0, 1.0), "bfloat16"),
        ({"avx512_bf16", "amx_bf16"}, (8.0, 1.0), "bfloat16"),
        ({"bf16"}, (1.1, 1.0), "float32"),
    ],
)
def test_auto_is_bfloat16_only_where_it_is_faster(
    able: set[str], seconds: tuple[float, float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: name in able for name in ("avx2", *precision.BFLOAT16_FLAGS)})
    monkeypatch.setattr(precision, "product_seconds", lambda: seconds)
    assert resolved_precision("auto") == chosen


def test_both_products_are_timed() -> None:
    assert all(0 < seconds < 60 for seconds in precision.product_seconds())


def test_auto_is_bfloat16_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolved_precision("auto") == "bfloat16"


def test_a_named_precision_is_kept() -> None:
    assert [resolved_precision(p) for p in ("float32", "bfloat16", "nf4")] == ["float32", "bfloat16", "nf4"]
