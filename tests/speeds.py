"""A machine of round numbers, for tests of plans."""

from cai.pipeline.speed import Rates
from cai.recipe import Precision

RATES = Rates(flops=1e11, weights=5e9)


def steady(precision: Precision) -> Rates:
    """The rates in every precision."""
    return RATES
