"""How fast this machine runs a model, measured in a few seconds, and how long counted work takes at that speed.

The probe builds a model of the asked shape, a few layers deep and with random weights, and runs it through the code that runs use: the
engine's prompts and steps, a plain forward pass, a forward and backward pass through adapters. So attention, norms, packing and the
libraries' own overhead are in the rates, and no constant of another machine is. What a work takes is then its count times a rate;
counts of arithmetic follow the usual 2 FLOP per weight and token (Kaplan et al. 2020, arXiv 2001.08361, §2.1), and twice that for a
backward pass that needs no gradients of weights but the adapters' (4 in place of 6: the frozen ones get none).

Not measured: reading from a cold disk, and a busy machine's next hour. Rates are of the moment.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.models.local.precision import resolved_precision
from cai.pipeline.memory import BYTES, Dimensions
from cai.recipe import LoraSpec, ModelSpec, Precision, TrainSpec

PROBE_WEIGHTS = 32e6
"""Weights of the probe's layers, about: more than a processor's cache holds, so that they are read from memory as a whole model's are."""
PROBE_FLOP = {"cpu": 2e10, "cuda": 2e13}
"""Of one pass over prompts: about a tenth of a second on two cores."""
PATIENCE_SECONDS = 1.0
"""For one rate: what takes longer is done once."""
_HEAD_WEIGHTS = 5e7
"""Of the output layer, at most; a larger vocabulary is reckoned from a part of it."""
_VOCABULARY = 512
"""The probe's own, kept small: the output layer is measured by itself."""
WIDE_NUCLEUS, WIDENING = 0.11, 9
"""Share of drawn tokens, at temperature 1, whose nucleus has more than 256 tokens, and the power of the temperature that it goes by: 0.4 %
and 4.2 % of the embedded model's at temperatures 0.7 and 0.9 (`top_p` 0.9, 768 tokens each; docs/log.md)."""
OPENING_SECONDS = 1.0
"""To open an engine or make a trainer, beside reading the weights: tokenizer, template, configuration. From the stages of docs/log.md."""
IMPORT_SECONDS = 5.0
"""To import torch, transformers and what they bring, once a run; a freshly installed environment takes twice that."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What one layer of a shape, in one precision, takes on this machine."""

    device: str
    precision: str
    threads: int
    matmul_flops: float
    """FLOP a second of a product of two large matrices: what the rates below can't pass."""
    prompt_flops: float
    """FLOP a second of the engine's layers over prompts."""
    step_seconds: float
    """Of a layer for one decoding step, whatever the batch: its weights are read."""
    row_seconds: float
    """Of a layer for one decoded token."""
    column_seconds: float
    """Of a layer for one decoded token, for each token before it."""
    head_seconds: float
    """Of the output layer and of a draw among the likeliest tokens, for one decoded token."""
    wide_seconds: float
    """More for a draw with `top_p` whose nucleus is wide: some thousands of tokens are put in order."""
    plain_flops: float
    """FLOP a second of a forward pass without adapters outside the engine: reward scores, layers without an adapter in training."""
    trained_flops: float
    """FLOP a second of forward and backward passes through layers with adapters."""
    score_seconds: float
    """Of the output layer, the loss and their gradients, for one position that is trained on."""
    loading_bytes_per_second: float
    """Of weights, out of files that are in memory, into an engine."""

    layer_bytes: float
    """Of a layer's weights, as the engine reads them."""

    @property
    def bandwidth(self) -> float:
        """Bytes of weights a second that a decoding step reads; infinite where reading them hides behind the arithmetic."""
        return math.inf if self.step_seconds == 0 else self.layer_bytes / self.step_seconds


def layer_flop(d: Dimensions, tokens: float, length: float, layers: int | None = None) -> float:
    """Return the FLOP of a forward pass through decoder layers.

    Args:
        d: the model's shape.
        tokens: all that run.
        length: of one sequence; each token attends to half of it on average, in two products of 2 FLOP per number.
        layers: how many; None: all.
    """
    n = d.layers if layers is None else layers
    return n * tokens * (2.0 * d.linear / d.layers + 2.0 * length * d.heads * d.head_size)


def prompt_seconds(s: Speed, d: Dimensions, tokens: float, length: float) -> float:
    """Return what the engine takes to run prompts: `tokens` in all (a shared beginning once), each of about `length`."""
    return layer_flop(d, tokens, length) / s.prompt_flops


def completion_seconds(s: Speed, d: Dimensions, rows: float, batch_size: int, longest: float, mean: float, before: float) -> float:
    """Return what decoding takes, prompts aside.

    Args:
        s: this machine's speed.
        d: the model's shape.
        rows: completions.
        batch_size: of them at once.
        longest: tokens of the longest of a batch: that many steps are made.
        mean: tokens of one.
        before: tokens of the prompt.
    """
    steps, tokens = math.ceil(rows / batch_size) * longest, rows * mean
    a_token = s.row_seconds + (before + longest / 2) * s.column_seconds
    return d.layers * (steps * s.step_seconds + tokens * a_token)


def draw_seconds(s: Speed, temperature: float, top_p: float) -> float:
    """Return what the output layer and the draw of one token take; with `top_p` below 1, more of them the hotter they are drawn."""
    wide = 0.0 if top_p >= 1 or temperature == 0 else min(1.0, WIDE_NUCLEUS * temperature**WIDENING)
    return s.head_seconds + wide * s.wide_seconds


def scoring_seconds(s: Speed, d: Dimensions, tokens: float, length: float) -> float:
    """Return what a plain forward pass over `tokens` takes, sequences of about `length`: a reward model's scores."""
    return layer_flop(d, tokens, length) / s.plain_flops


def training_seconds(
    s: Speed, d: Dimensions, config: TrainSpec, tokens: float, length: float, scored: float, reference_share: float = 0.0
) -> float:
    """Return what optimizer steps take.

    Args:
        s: this machine's speed.
        d: the model's shape.
        config: which layers have adapters, and whether activations are computed again.
        tokens: that run forward and backward, over all steps, padding included.
        length: of one sequence.
        scored: positions whose scores over the vocabulary are trained on, over all steps; 0 for a reward model.
        reference_share: of `tokens`, that a reference runs too, forward only.
    """
    trained = d.layers if config.lora.layers is None else min(config.lora.layers, d.layers)
    again = 1.5 if config.gradient_checkpointing else 1.0  # a forward pass more on two
    both = layer_flop(d, tokens, length, trained) * 2 * again / s.trained_flops
    frozen = layer_flop(d, tokens, length, d.layers - trained) / s.plain_flops
    reference = reference_share * (layer_flop(d, tokens, length) / s.plain_flops + scored * s.score_seconds / 3)
    return both + frozen + scored * s.score_seconds + reference


def loading_seconds(s: Speed, d: Dimensions, merged: bool = False) -> float:
    """Return what it takes to have a model ready; merging an adapter goes over all weights once more."""
    return OPENING_SECONDS + (2 if merged else 1) * d.parameters * d.file_bytes / s.loading_bytes_per_second


def measure_speed(d: Dimensions, precision: Precision, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Measure this machine, for models of a shape in a precision: a few seconds, and memory for the weights of `PROBE_WEIGHTS`.

    Args:
        d: the shape.
        precision: as a recipe has it.
        clock: seconds; `time.process_time` on a machine with other work, where only ratios mean something.

    Raises:
        ModelError: the libraries can't load such a model.
    """
    import torch

    from cai.train.running import quiet_training

    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe = probe_shape(d)

    def timed(run: Callable[[], Any], repeats: int = 2) -> float:
        """Return the mean seconds of a call after one that isn't counted; of that one where it alone took long."""
        took: list[float] = []
        while len(took) <= repeats and sum(took) < PATIENCE_SECONDS:
            started = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            took.append(clock() - started)
        return took[0] if len(took) == 1 else sum(took[1:]) / (len(took) - 1)

    with tempfile.TemporaryDirectory() as folder, quiet_training():
        path = _random_model(probe, Path(folder))
        spec = ModelSpec(path=path, precision=precision)
        tokens = int(max(32, min(4096, PROBE_FLOP[device] / layer_flop(probe, 1, 128))))
        prompt, step, row, column, loading = _engine_rates(spec, probe, tokens, timed, clock)
        plain, trained = _training_rates(spec, probe, tokens, timed)
        head, wide, score = _head_rates(d, precision, device, timed)
    side = 2048
    a = torch.randn(side, side, device=device, dtype=_dtype(precision))
    weights = d.linear / d.layers
    larger = weights / (probe.linear / probe.layers)
    return Speed(
        device,
        resolved_precision(precision),
        torch.get_num_threads(),
        matmul_flops=2.0 * side**3 / timed(lambda: a @ a, 1),
        prompt_flops=prompt,
        step_seconds=step * larger,
        row_seconds=row * larger,
        column_seconds=column * d.heads / probe.heads,
        head_seconds=head,
        wide_seconds=wide,
        plain_flops=plain,
        trained_flops=trained,
        score_seconds=score,
        loading_bytes_per_second=loading,
        layer_bytes=weights * BYTES[resolved_precision(precision)],
    )


def probe_shape(d: Dimensions) -> Dimensions:
    """Return the shape to measure in place of another: fewer layers, and narrower ones where a single one is large."""
    hidden, intermediate, heads, cached = d.hidden, d.intermediate, d.heads, d.key_value_heads
    one = d.linear / d.layers
    while one > 2 * PROBE_WEIGHTS and min(heads, cached) > 1:  # a product of half the width runs at nearly the rate of the whole
        hidden, intermediate, heads, cached, one = hidden // 2, intermediate // 2, heads // 2, cached // 2, one / 4
    layers = max(1, min(d.layers, round(PROBE_WEIGHTS / one)))
    return Dimensions(hidden, layers, intermediate, heads, cached, d.head_size, _VOCABULARY, True, 4.0)


def _dtype(precision: Precision) -> Any:
    import torch

    return torch.float32 if resolved_precision(precision) == "float32" else torch.bfloat16


def _random_model(d: Dimensions, folder: Path) -> str:
    """Save a model of a shape, whose weights are noise. Returns its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=d.vocabulary,
        hidden_size=d.hidden,
        intermediate_size=d.intermediate,
        num_hidden_layers=d.layers,
        num_attention_heads=d.heads,
        num_key_value_heads=d.key_value_heads,
        head_dim=d.head_size,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    noise = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    drawn = {n: torch.empty(p.shape).uniform_(-0.03, 0.03, generator=noise) for n, p in model.named_parameters()}
    model.load_state_dict(drawn, strict=False, assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    return str(folder)


def _ids(rows: int, columns: int) -> list[list[int]]:
    """Return token ids that share no beginning."""
    return [[(7 * i + 11 * j) % (_VOCABULARY - 3) + 3 for j in range(columns)] for i in range(rows)]


def _engine_rates(
    spec: ModelSpec, d: Dimensions, tokens: int, timed: Callable[..., float], clock: Callable[[], float]
) -> tuple[float, float, float, float, float]:
    """Return FLOP a second of prompts, and seconds of a step, a row and a column of one layer; bytes a second of loading."""
    import torch

    from cai.models.local.cpu import speed_up
    from cai.models.local.kv_cache import KVCache
    from cai.models.local.loading import load_causal_lm
    from cai.models.local.prefix import run_prompts

    load_causal_lm(spec)  # what the first one imports is not loading
    started = clock()
    model = speed_up(load_causal_lm(spec))
    loading = d.parameters * 4.0 / (clock() - started)
    length = min(128, tokens)
    prompts = _ids(max(1, tokens // length), length)
    with torch.inference_mode():
        prompt = timed(lambda: run_prompts(model, prompts))

        def step(rows: int, columns: int) -> float:
            """Return the seconds of a decoding step of one layer, and what the memory has room for."""
            one = KVCache(model, columns)
            ids = torch.tensor(_ids(1, columns), device=model.device)
            one.forward(ids, torch.ones_like(ids, dtype=torch.bool), keep=0)
            slots = one.take(torch.zeros(rows, dtype=torch.long, device=model.device), 8)
            new = torch.full((rows, 1), 5, device=model.device)
            return timed(lambda: slots.forward(new, torch.ones_like(new, dtype=torch.bool), keep=0), 5) / d.layers

        few, many, far = step(4, 64), step(64, 64), step(64, 320)
    a_column = max(0.0, (far - many) / (64 * 256))
    a_row = max(0.0, (many - few) / 60 - a_column * 72)
    return layer_flop(d, len(prompts) * length, length) / prompt, max(0.0, few - 4 * (a_row + 72 * a_column)), a_row, a_column, loading


def _training_rates(spec: ModelSpec, d: Dimensions, tokens: int, timed: Callable[..., float]) -> tuple[float, float]:
    """Return FLOP a second of a plain forward pass, and of forward and backward passes through adapters."""
    import torch

    from cai.models.local.loading import load_causal_lm
    from cai.train.arguments import with_new_adapter

    model = load_causal_lm(spec, trainable=True)
    length = min(128, tokens)
    ids = torch.tensor(_ids(max(1, tokens // length), length), device=model.device)
    half = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=resolved_precision(spec.precision) != "float32")

    def forward() -> Any:
        with half:
            return backbone(input_ids=ids, use_cache=False).last_hidden_state

    backbone = model.base_model
    with torch.no_grad():
        plain = timed(forward)
    adapted = with_new_adapter(model, LoraSpec())
    backbone = adapted.get_base_model().base_model

    def both() -> None:
        forward().float().square().mean().backward()
        adapted.zero_grad()

    one = layer_flop(d, ids.numel(), length)
    return one / plain, 2 * one / timed(both, 2)


def _head_rates(d: Dimensions, precision: Precision, device: str, timed: Callable[..., float]) -> tuple[float, float, float]:
    """Return the seconds of the output layer for a decoded token, what a wide nucleus adds, and of a position that is trained on."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    from cai.models.local.sampling import NUCLEUS, draw

    size = int(min(d.vocabulary, max(1024, _HEAD_WEIGHTS / d.hidden)))
    whole = d.vocabulary / size
    weight = torch.empty(size, d.hidden).uniform_(-1, 1).to(device=device, dtype=_dtype(precision))
    rows, positions = 32, 64
    hidden = torch.randn(positions, d.hidden, device=device, dtype=weight.dtype, requires_grad=True)
    temperature, top_p = torch.full((rows,), 0.7, device=device), torch.full((rows,), 0.9, device=device)
    uniform = torch.full((rows,), 0.5, device=device, dtype=torch.float64)
    targets = torch.arange(positions, device=device)

    def sample(likely: int) -> float:
        """Return the seconds of a step that draws among some `likely` tokens."""
        ahead = torch.where(torch.arange(size, device=device) < likely, 20.0, 0.0)

        def run() -> None:
            with torch.inference_mode():
                draw(linear(hidden[:rows], weight) * 0.01 + ahead, temperature, top_p, uniform)

        return timed(run)

    def loss() -> None:
        cross_entropy(linear(hidden, weight).float(), targets).backward()  # type: ignore[no-untyped-call]

    narrow = sample(NUCLEUS[0] // 4)
    return whole * narrow / rows, whole * max(0.0, sample(4 * NUCLEUS[0]) - narrow) / rows, whole * timed(loss, 2) / positions
