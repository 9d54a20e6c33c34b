"""A machine of round numbers, for tests of plans."""

from cai.pipeline.memory import Dimensions
from cai.pipeline.speed import Rates
from cai.recipe import Precision

RATES = Rates(read_flops=1e11, step_seconds=0.03, row_seconds=1e-3, train_flops=5e10)


def steady(shape: Dimensions, precision: Precision) -> Rates:
    """Every model's rates."""
    return RATES
