"""Scores of a reward model a second, against the usual loop over padded batches in the order in which texts come.

    python -m bench.reward_scoring [--pairs prompts/probe_pairs.jsonl] [--limit 44] [--batch 16] [--repeats 3]

Both sides of the same pairs, one model (the embedded one with a scalar head, untrained: what it says doesn't matter), one precision. Both
take turns; the largest difference of a score is printed, for the head sees the same text either way.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.table import Row, row
from cai.labels.load import load_pairs
from cai.models.local.loading import load_tokenizer
from cai.recipe import ModelSpec
from cai.records import Message
from cai.train.encode import encode_turn
from cai.train.reward.ensemble import EnsembleMember, RewardEnsemble, load_scorer, scoring_tokenizer

PROBES = Path(__file__).parent.parent / "prompts" / "probe_pairs.jsonl"
MAX_LENGTH = 512
Items = Sequence[tuple[Sequence[Message], str]]


def in_order(rewards: RewardEnsemble, items: Items, batch: int) -> list[float]:
    """Return scores by padded batches of so many texts, in their order."""
    turns = [encode_turn(rewards.tokenizer, messages, response) for messages, response in items]
    ids = [(prompt + response)[-MAX_LENGTH:] for prompt, response in turns]
    scores: list[float] = []
    for start in range(0, len(ids), batch):
        padded = rewards.tokenizer.pad({"input_ids": ids[start : start + batch]}, return_tensors="pt").to(rewards.model.device)
        with torch.inference_mode():
            scores += rewards.model(**padded, use_cache=False).logits[:, 0].float().tolist()
    return scores


def measure(pairs: Path, limit: int | None, batch: int, repeats: int) -> list[Row]:
    """Take turns, and return the row."""
    spec = ModelSpec()
    tokenizer = scoring_tokenizer(load_tokenizer(spec))
    torch.manual_seed(0)
    model = load_scorer(spec, tokenizer.pad_token_id).eval()
    rewards = RewardEnsemble(model, tokenizer, (EnsembleMember("reward", None, MAX_LENGTH, 0.0),))
    items = [(p.prompt.messages, text) for p in load_pairs(pairs, limit=limit, seed=0).preferences for text in (p.chosen, p.rejected)]
    rewards.score(items[:8])
    ratios, apart = [], 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        ours = [s.value for s in rewards.score(items)]
        middle = time.perf_counter()
        theirs = in_order(rewards, items, batch)
        ratios.append((time.perf_counter() - middle) / (middle - started))
        apart = max(apart, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
    tokens = sum(len(a) + len(b) for a, b in (encode_turn(tokenizer, *item) for item in items))
    note = f"{len(items)} responses of {tokens / len(items):.0f} tokens; {len(items) / (middle - started):.1f} a second; within {apart:.1g}"
    return [row("reward_scoring", "reward scores/s", f"padded batches of {batch}, in order", ratios, note=note)]


def rows(quick: bool) -> list[Row]:
    """Return what `measure` finds at one of two sizes."""
    return measure(PROBES, 16 if quick else None, 16, 2 if quick else 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=PROBES)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    for line in measure(a.pairs, a.limit, a.batch, a.repeats):
        print(json.dumps(asdict(line)))
