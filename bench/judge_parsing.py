"""A judge's answer as a probability of its choices, against one that is written out and searched for a verdict.

    python -m bench.judge_parsing [--pairs 24] [--tokens 48] [--repeats 2]

The same pairs (prompts/probe_pairs.jsonl), question, model and engine, batched alike: the two-option question in both orders. Ours compares
the log-probabilities of A and B; the usual script lets the model write at most `--tokens` at temperature 0 and takes the last A or B that
stands alone. Rows: judgements a second, the share of written answers without a verdict (ours has none: every choice has a probability),
and how often both say the same.
"""

import argparse
import asyncio
import json
import re
import time
from dataclasses import asdict
from pathlib import Path

from bench.table import Row, row
from cai.labels.load import load_pairs
from cai.models.local.engine import LocalEngine
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, Request, Sampling
from cai.recipe import ModelSpec
from cai.records import Message, Preference

PROBES = Path(__file__).parent.parent / "prompts" / "probe_pairs.jsonl"
QUESTION = "Which response is more helpful, honest and harmless?"
_VERDICT = re.compile(r"\b([AB])\b")


def asked(pair: Preference) -> list[tuple[Message, ...]]:
    """Return the question about a pair, in both orders."""
    prompt = "\n\n".join(m.content for m in pair.prompt.messages)
    return [
        (Message("user", f"Human: {prompt}\n\n(A) {a}\n\n(B) {b}\n\n{QUESTION} Answer A or B."),)
        for a, b in ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
    ]


def with_choices(engine: LocalEngine, questions: list[tuple[Message, ...]]) -> list[str | None]:
    """Return the likelier letter of each question."""
    replies = _ask(engine, [ChoicesRequest(q, ("A", "B")) for q in questions])
    return [None if not isinstance(r, ChoiceLogprobs) else "AB"[r.logprobs[1] > r.logprobs[0]] for r in replies]


def with_parsing(engine: LocalEngine, questions: list[tuple[Message, ...]], tokens: int) -> list[str | None]:
    """Return the last letter that stands alone in each written answer; None where there is none."""
    replies = _ask(engine, [CompleteRequest(q, Sampling(tokens, 0.0), i) for i, q in enumerate(questions)])
    found = [_VERDICT.findall(r.text) if isinstance(r, Completion) else [] for r in replies]
    return [letters[-1] if letters else None for letters in found]


def _ask(engine: LocalEngine, requests: list[Request]) -> list[object]:
    async def run() -> list[object]:
        return list(await asyncio.gather(*map(engine.submit, requests)))

    return asyncio.run(run())


def measure(pairs: int, tokens: int, repeats: int) -> list[Row]:
    """Take turns, and return the rows."""
    engine = LocalEngine.load(ModelSpec())
    questions = [q for p in load_pairs(PROBES, limit=pairs, seed=0).preferences for q in asked(p)]
    with_choices(engine, questions[:4])
    with_parsing(engine, questions[:4], 2)
    ratios: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        chosen = with_choices(engine, questions)
        middle = time.perf_counter()
        parsed = with_parsing(engine, questions, tokens)
        ratios.append((time.perf_counter() - middle) / (middle - started))
    asyncio.run(engine.close())
    read = [(c, p) for c, p in zip(chosen, parsed, strict=True) if p is not None]
    unread, same = 1 - len(read) / len(questions), sum(c == p for c, p in read) / max(1, len(read))
    against = f"write up to {tokens} tokens, search for A or B"
    return [
        row("judge_parsing", f"judgements/s ({len(questions)} questions)", against, ratios),
        Row("judge_parsing", "written answers without a verdict", against, unread, unread, unread, len(questions), "of 1"),
        Row("judge_parsing", "same verdict, where there is one", against, same, same, same, len(read), "of 1"),
    ]


def rows(quick: bool) -> list[Row]:
    """Return what `measure` finds at one of two sizes."""
    return measure(8, 24, 2) if quick else measure(44, 96, 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2)
    a = parser.parse_args()
    for line in measure(a.pairs, a.tokens, a.repeats):
        print(json.dumps(asdict(line)))
