"""The probe measures a model of the asked shape with the code that runs use."""

import math
from dataclasses import astuple, replace

import pytest

from cai.pipeline.memory import EMBEDDED_SHAPE, Dimensions
from cai.pipeline.speed import PROBE_WEIGHTS, draw_seconds, measure_speed, probe_shape
from cai.recipe import Precision
from tests.speeds import SPEED

TINY = Dimensions(64, 2, 128, 4, 2, 16, 300, True, 4.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_rate_is_measured(precision: Precision) -> None:
    ticks = iter(range(10**6))
    speed = measure_speed(
        TINY, precision, clock=lambda: float(next(ticks))
    )  # each look at the clock is a second, so that everything is done once
    assert speed.precision == precision and speed.device in ("cpu", "cuda") and speed.threads >= 1
    numbers = [x for x in astuple(speed) if isinstance(x, float)]
    assert all(math.isfinite(x) and x >= 0 for x in numbers)
    # one pass takes one second of that clock: 4096 tokens over two layers, 2 FLOP a weight and token, attention to half of 128 before
    one_pass = 4096 * 2 * (2 * TINY.linear / 2 + 2 * 128 * 64)
    assert speed.prompt_flops == speed.plain_flops == one_pass and speed.trained_flops == 2 * one_pass
    assert speed.matmul_flops == 2 * 2048**3
    assert speed.head_seconds == 1 / 32 and speed.wide_seconds == 0 and speed.score_seconds == 1 / 64
    assert speed.layer_bytes == TINY.linear / 2 * {"float32": 4, "bfloat16": 2}[precision]


def test_hotter_draws_have_more_wide_nuclei() -> None:
    assert draw_seconds(SPEED, 1.0, 1.0) == draw_seconds(SPEED, 0.0, 0.9) == SPEED.head_seconds
    cool, hot = draw_seconds(SPEED, 0.7, 0.9), draw_seconds(SPEED, 3.0, 0.9)
    assert SPEED.head_seconds < cool < hot == pytest.approx(SPEED.head_seconds + SPEED.wide_seconds)


def test_weights_that_are_read_unnoticed_set_no_bandwidth() -> None:
    assert replace(SPEED, step_seconds=0.0).bandwidth == math.inf and SPEED.bandwidth == 1.4e10


def test_a_probe_has_the_width_of_its_model_as_long_as_that_is_small() -> None:
    small = probe_shape(EMBEDDED_SHAPE)
    assert small == replace(EMBEDDED_SHAPE, layers=9, vocabulary=512)
    large = probe_shape(Dimensions(4096, 32, 14336, 32, 8, 128, 128_256, False, 2.0))
    assert (large.hidden, large.heads, large.key_value_heads, large.head_size) == (2048, 16, 4, 128)
    assert large.linear <= 2 * PROBE_WEIGHTS and large.layers == 1
