"""The probe measures this machine, and the FLOP of a model are those of its weights and its attention."""

from itertools import count

import pytest

from cai.pipeline.memory import EMBEDDED_SHAPE
from cai.pipeline.speed import LAYER_SECONDS, Rates, forward_flop, nominal_rates, probe, step_seconds
from cai.recipe import Precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rates_are_work_over_measured_seconds(precision: Precision) -> None:
    ticks = count()
    rates = probe(precision, lambda: float(next(ticks)))  # each look at the clock is a second
    assert rates == Rates(4 * 2 * 256 * 4096 * 4096, 16 * 4096 * 4096), "four large products in a second, sixteen small ones in another"


def test_a_forward_pass_is_two_flop_a_weight_and_what_attention_adds() -> None:
    weights = EMBEDDED_SHAPE.linear / EMBEDDED_SHAPE.layers
    assert forward_flop(EMBEDDED_SHAPE, 1, 0, layers=1) == 2 * weights
    # scores and mixtures: 2 products, 2 FLOP, over half of 100 tokens on average, 9 heads of 64
    assert forward_flop(EMBEDDED_SHAPE, 10, 100, layers=1) == pytest.approx(10 * (2 * weights + 2 * 2 * 50 * 9 * 64))


def test_a_decoding_step_reads_all_weights_and_launches_every_layer() -> None:
    weights = EMBEDDED_SHAPE.parameters - (2 * 30 + 1) * 576  # without norms; the head is the embedding
    assert step_seconds(EMBEDDED_SHAPE, Rates(1e11, 5e9)) == pytest.approx(weights / 5e9 + 30 * LAYER_SECONDS)
    assert 0.02 < step_seconds(EMBEDDED_SHAPE, nominal_rates("auto")) < 0.05, "of two cores"
