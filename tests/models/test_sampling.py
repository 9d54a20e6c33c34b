"""Draws: the right distribution, and each row's own."""

import numpy as np
import pytest
import torch

from cai.models.local.sampling import draw, uniforms

STEP = 0x9E3779B97F4A7C15


def splitmix64(state: int) -> int:
    """One output of SplitMix64 in whole numbers."""
    z = (state + STEP) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_a_number_per_seed_and_step_that_never_changes() -> None:
    seeds = np.array([0, 1, 2**31 - 1], dtype=np.uint64)
    first = uniforms(seeds, 0)
    assert first.tolist() == uniforms(seeds, 0).tolist()
    assert uniforms(seeds[::-1], 0).tolist() == first.tolist()[::-1]
    assert len({*first.tolist(), *uniforms(seeds, 1).tolist()}) == 6
    for number, seed in zip(uniforms(seeds, 4), seeds, strict=True):
        assert number == ((splitmix64(splitmix64(int(seed)) + 5 * STEP) >> 11) + 0.5) / 2**53
    assert splitmix64(0) == 0xE220A8397B1DCDAF, "its first output for the state 0, as published"


def test_numbers_are_even_over_steps_and_seeds() -> None:
    many = np.concatenate([uniforms(np.arange(200, dtype=np.uint64), step) for step in range(200)])
    counts, _ = np.histogram(many, bins=20, range=(0, 1))
    assert abs(counts - len(many) / 20).max() < 5 * np.sqrt(len(many) / 20)
    assert abs(np.corrcoef(many[:-200], many[200:])[0, 1]) < 0.02


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (2.0, 0.95)])
def test_frequencies_match_the_softmax(temperature: float, top_p: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(700) * 3
    probs = torch.softmax(logits / temperature, -1)
    if top_p < 1:
        order = probs.argsort(descending=True)
        before = probs[order].cumsum(0) - probs[order]
        probs[order[before >= top_p]] = 0
        probs /= probs.sum()
    n = 20_000
    tokens = draw(logits.expand(n, -1), torch.full((n,), temperature), torch.full((n,), top_p), (torch.arange(n) + 0.5).double() / n)
    frequencies = torch.bincount(tokens, minlength=700) / n
    assert (frequencies - probs).abs().max() < 2 / n  # evenly spaced numbers leave at most a rounding at each edge
    assert frequencies[probs == 0].sum() == 0


def test_a_row_draws_the_same_in_any_company() -> None:
    torch.manual_seed(0)
    logits, noise = torch.randn(7, 6000), torch.rand(7).double()
    logits[5] *= 0.1  # a nucleus of most tokens
    logits[6] *= 5  # and one of a few
    temperature, top_p = torch.tensor([1.0, 0.0, 0.7, 1.0, 0.3, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.9, 0.5, 1.0, 0.9, 0.9])
    together = draw(logits, temperature, top_p, noise)
    for i in range(7):
        alone = draw(logits[i : i + 1], temperature[i : i + 1], top_p[i : i + 1], noise[i : i + 1])
        assert alone[0] == together[i]
    assert together[1] == logits[1].argmax()


@pytest.mark.parametrize("vocabulary", [2000, 5000])
def test_a_wide_nucleus_is_drawn_in_full(vocabulary: int) -> None:
    n = 2 * vocabulary
    tokens = torch.cat(
        [
            draw(torch.zeros(len(u), vocabulary), torch.ones(len(u)), torch.full((len(u),), 0.9), u)
            for u in ((torch.arange(n) + 0.5).double() / n).split(1000)
        ]
    )
    assert len(tokens.unique()) == pytest.approx(0.9 * vocabulary, rel=0.003)
