"""Dawid-Skene against votes, where raters or pairs are coin flips: log loss against the simulated truth.

python -m bench.pooling [--draws 8] [--pandalm FILE]

For 3, 5, 10 and 20 raters and 3 to 5 votes a pair; 200 pairs. A share of the raters, or of the pairs, is a coin flip. The votes have the
best of four smoothings, chosen with the truth at hand, which nobody could. With `--pandalm`, one of three annotators of each of PandaLM's
pairs is hidden, and predicted from the others.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from cai.labels.dawid_skene import fit

PAIRS = 200
SHAPES = tuple((raters, votes) for raters in (3, 5, 10, 20) for votes in (3, 4, 5) if votes <= raters)
SMOOTHINGS = (0.25, 0.5, 1.0, 2.0)
Drawn = tuple[Any, Any, Any, Any]
"""Item, annotator and answer of each label, and the truth of each item."""


def simulated(seed: int, raters: int, votes: int, skill: float, flippers: float, doubtful: float) -> Drawn:
    """Draw labels of raters with one skill, of whom a share flips coins, about pairs of which a share is a coin flip for all."""
    generator = np.random.default_rng(seed)
    skills = np.full(raters, skill)
    skills[: round(flippers * raters)] = 0.5
    truth = generator.random(PAIRS) < 0.5
    clear = generator.random(PAIRS) >= doubtful
    item = np.repeat(np.arange(PAIRS), votes)
    who = np.concatenate([generator.choice(raters, votes, replace=False) for _ in range(PAIRS)])
    right = generator.random(len(item)) < np.where(clear[item], skills[who], 0.5)
    return item, who, np.where(right, truth[item], ~truth[item]).astype(float), truth.astype(float)


def log_loss(p: Any, truth: Any) -> float:
    """Return the mean log loss in nats; a truth of ½ is a tie."""
    return float(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean())


def shares(drawn: Drawn, smoothing: float) -> Any:
    """Return the share of votes of each item."""
    item, _, said, truth = drawn
    return (np.bincount(item, said, len(truth)) + smoothing) / (np.bincount(item, minlength=len(truth)) + 2 * smoothing)


def losses(draws: list[Drawn], people: int) -> tuple[float, float]:
    """Return the model's log loss, and that of the votes with their best smoothing."""
    model = np.mean([log_loss(fit(*d[:3], len(d[3]), people)[0], d[3]) for d in draws])
    votes = min(np.mean([log_loss(shares(d, s), d[3]) for d in draws]) for s in SMOOTHINGS)
    return float(model), float(votes)


def hidden(path: Path, seed: int) -> Drawn:
    """Hide one annotator of each pair of a file with `annotators`: A, B or tie."""
    value = {"A": 1.0, "B": 0.0, "tie": 0.5}
    rows = [[value[said] for said in json.loads(line)["annotators"]] for line in path.read_text(encoding="utf-8").splitlines()]
    out = np.random.default_rng(seed).integers(0, 3, len(rows))
    shown = [(i, j, said) for i, row in enumerate(rows) for j, said in enumerate(row) if j != out[i]]
    item, who, said = (np.array(column) for column in zip(*shown, strict=True))
    return item, who, said, np.array([row[j] for row, j in zip(rows, out, strict=True)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--pandalm", type=Path, default=None)
    options = parser.parse_args()
    for skill in (0.55, 0.7, 0.85):
        for of in ("raters", "pairs"):
            for share in (0.0, 0.2, 0.4):
                flips = (share, 0.0) if of == "raters" else (0.0, share)
                found = [
                    losses([simulated(seed, raters, votes, skill, *flips) for seed in range(options.draws)], raters)
                    for raters, votes in SHAPES
                ]
                model, votes = np.mean(found, axis=0)
                worst = max(m - v for m, v in found)
                print(
                    f"skill {skill}, {share:.0%} of {of} a coin flip: {model:.3f}, votes {votes:.3f}, worst shape {worst:+.3f}", flush=True
                )
    if options.pandalm is not None:
        model, votes = losses([hidden(options.pandalm, seed) for seed in range(options.draws)], 3)
        print(f"PandaLM: {model:.3f}, votes {votes:.3f}")
