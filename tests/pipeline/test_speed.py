"""The probe measures a model of the asked shape with the code that runs use."""

from dataclasses import astuple, replace
from itertools import count

import pytest

from cai.pipeline.memory import EMBEDDED_SHAPE, Dimensions
from cai.pipeline.speed import PROBE_WEIGHTS, forward_flop, nominal_rates, probe, probe_shape
from cai.recipe import Precision

TINY = Dimensions(64, 2, 128, 4, 2, 16, 300, True, 4.0)
LLAMA_8B = Dimensions(4096, 32, 14336, 32, 8, 128, 128_256, False, 2.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rates_are_work_over_measured_seconds(precision: Precision) -> None:
    ticks = count()
    rates = probe(TINY, precision, lambda: float(next(ticks)))  # each look at the clock is a second
    assert rates.read_flops == forward_flop(TINY, 8 * 64, 64)
    assert rates.train_flops == 2 * forward_flop(TINY, 4 * 64, 64) + 4 * 4 * 64 * 300 * 64, "layers and output layer, forward and backward"
    assert (rates.step_seconds, rates.row_seconds) == (0, 0), "one step takes as long as nine on that clock"


def test_a_forward_pass_is_two_flop_a_weight_and_what_attention_adds() -> None:
    weights = EMBEDDED_SHAPE.linear / EMBEDDED_SHAPE.layers
    assert forward_flop(EMBEDDED_SHAPE, 1, 0, layers=1) == 2 * weights
    # scores and mixtures: 2 products, 2 FLOP, over half of 100 tokens on average, 9 heads of 64
    assert forward_flop(EMBEDDED_SHAPE, 10, 100, layers=1) == pytest.approx(10 * (2 * weights + 2 * 2 * 50 * 9 * 64))


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_large_model_is_measured_by_a_small_one(where: str) -> None:
    assert probe_shape(TINY, where) == TINY
    small = probe_shape(LLAMA_8B, where)
    assert small.parameters < 1.2 * PROBE_WEIGHTS[where] and small.head_size == 128 and small.hidden == small.heads * 128
    assert (small.hidden == 4096) == (where == "cuda"), "a GPU's layers keep their width"
    one_layer = replace(EMBEDDED_SHAPE, layers=1)
    assert probe_shape(one_layer, "cpu").layers == 1


def test_nominal_rates_are_those_of_two_cores() -> None:
    assert all(rate > 0 for rate in astuple(nominal_rates(EMBEDDED_SHAPE, "auto")))
    assert 0.02 < nominal_rates(EMBEDDED_SHAPE, "auto").step_seconds < 0.05
