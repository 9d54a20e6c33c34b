"""A machine of round numbers, for tests of plans."""

from cai.pipeline.memory import Dimensions
from cai.pipeline.speed import Speed
from cai.recipe import Precision

SPEED = Speed(
    device="cpu",
    precision="float32",
    threads=2,
    matmul_flops=2e11,
    prompt_flops=1e11,
    step_seconds=1e-3,
    row_seconds=1e-5,
    column_seconds=1e-7,
    head_seconds=1e-3,
    wide_seconds=2e-3,
    plain_flops=8e10,
    trained_flops=5e10,
    score_seconds=4e-3,
    loading_bytes_per_second=1e9,
    layer_bytes=1.4e7,
)


def steady(shape: Dimensions, precision: Precision) -> Speed:
    """Every model's speed."""
    return SPEED
