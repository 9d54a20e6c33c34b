"""Rows for people: shares are the weights' shares among the principles that apply, and agree with what is really drawn."""

from collections import Counter
from pathlib import Path

import pytest

from cai.constitution.load import load_constitution
from cai.ids import rendezvous_order
from cai.records import LABELLED_KINDS, Constitution, Principle


def principle(name: str, weight: float, *kinds: str) -> Principle:
    return Principle(name, f"Do {name}.", "", "", "", "", "", applies_to=kinds, weight=weight)


SMALL = Constitution("c", "C", "", (principle("a", 1, "harmful", "helpful"), principle("b", 3, "helpful"), principle("z", 0, "helpful")))


def test_shares_are_those_of_the_weights():
    a, b, z = (SMALL.draw_shares(p, p.applies_to) for p in SMALL.principles)
    assert (a, b, z) == ({"harmful": 1.0, "helpful": 0.25}, {"helpful": 0.75}, {"helpful": 0.0})
    assert SMALL.draw_shares(SMALL.principles[1]) == {"harmful": 0.0, "borderline": 0.0, "helpful": 0.75}


def test_shares_of_a_kind_sum_to_one():
    general = load_constitution(Path(__file__).parents[2] / "constitution" / "general.yaml")
    for kind in LABELLED_KINDS:
        assert sum(general.draw_shares(p)[kind] for p in general.principles) == pytest.approx(1.0)


def test_share_is_the_chance_of_being_drawn_first():
    weights = [(p.id, p.weight) for p in SMALL.for_kind("helpful")]
    drawn = Counter(rendezvous_order(f"prompt-{i}", weights)[0] for i in range(4000))
    assert drawn["b"] / 4000 == pytest.approx(0.75, abs=0.02)
