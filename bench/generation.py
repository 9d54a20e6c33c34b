"""Tokens per second of completions: the local engine, `generate` on whole batches, and `generate` one prompt at a time.

    python -m bench.generation [--sequences 32,64,96] [--tokens 96] [--repeats 3] [--loop-prompts 4] [--quick]

All use the embedded model in bfloat16, the same real prompts (prompts/*.jsonl), temperature 1 and the same token limit, in one process,
taking turns; a ratio is of two runs that followed each other. Tokens after the end of a turn are not counted.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.table import Row, row
from cai.jsonl import read_records
from cai.models.base import CompleteRequest, Completion, Sampling
from cai.models.loading import load_causal_lm, load_tokenizer
from cai.models.local import LocalEngine
from cai.recipe import ModelSpec
from cai.records import Message

ROOT = Path(__file__).parent.parent


def real_prompts(count: int) -> list[tuple[Message, ...]]:
    """Return conversations from the shipped prompt files, the files taking turns; over again where there are too few."""
    files = [
        [p["messages"] for p in read_records(ROOT / "prompts" / f"{name}.jsonl", dict)] for name in ("harmful", "borderline", "helpful")
    ]
    mixed = [tuple(Message(**m) for m in messages) for taken in zip(*files, strict=False) for messages in taken]
    return [mixed[i % len(mixed)] for i in range(count)]


def with_engine(engine: LocalEngine, prompts: Sequence[tuple[Message, ...]], tokens: int, seed: int) -> int:
    """Return how many tokens the engine made."""

    async def run() -> int:
        requests = [CompleteRequest(p, Sampling(tokens), seed * 10_000 + i) for i, p in enumerate(prompts)]
        replies = await asyncio.gather(*map(engine.submit, requests))
        return sum(r.completion_tokens for r in replies if isinstance(r, Completion))

    return asyncio.run(run())


def with_generate(model: Any, tokenizer: Any, prompts: Sequence[tuple[Message, ...]], tokens: int, size: int) -> int:
    """Return how many tokens `generate` made, in batches of `size` sorted by length."""
    import torch

    chats = [[{"role": m.role, "content": m.content} for m in p] for p in prompts]
    texts = sorted((tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats), key=len)
    made = 0
    for start in range(0, len(texts), size):
        inputs = tokenizer(texts[start : start + size], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(
                **inputs, max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, pad_token_id=tokenizer.pad_token_id
            )
        for ids in out[:, inputs["input_ids"].shape[1] :].tolist():
            made += ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    return made


def rate(work: Callable[[], int]) -> float:
    """Return tokens per second of one run."""
    started = time.perf_counter()
    made = work()
    return made / (time.perf_counter() - started)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return `median (min to max)`."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def measure(sizes: Sequence[int], tokens: int, repeats: int, loop_prompts: int) -> Iterator[tuple[int, list[tuple[float, float, float]]]]:
    """Yield each number of sequences with the tokens per second, per repeat, of the engine, of whole batches and of one by one."""
    spec = ModelSpec(batch_size=max(sizes))
    engine, plain, tokenizer = LocalEngine.load(spec), load_causal_lm(spec), load_tokenizer(spec)
    with_engine(engine, real_prompts(8), 4, 0)
    with_generate(plain, tokenizer, real_prompts(8), 4, 8)
    for size in sizes:
        prompts = real_prompts(size)
        found = []
        for repeat in range(1, repeats + 1):
            ours = rate(lambda p=prompts, r=repeat: with_engine(engine, p, tokens, r))  # type: ignore[misc]
            batched = rate(lambda p=prompts: with_generate(plain, tokenizer, p, tokens, len(p)))  # type: ignore[misc]
            single = rate(lambda p=prompts: with_generate(plain, tokenizer, p[:loop_prompts], tokens, 1))  # type: ignore[misc]
            found.append((ours, batched, single))
        yield size, found
    asyncio.run(engine.close())


def rows(quick: bool) -> list[Row]:
    """Return the ratios of tokens per second."""
    sizes, tokens, repeats, loop = ((16,), 16, 2, 1) if quick else ((32, 96), 96, 3, 4)
    return [
        row("generation", f"tokens/s, {size} sequences of {tokens} tokens", against, [r[0] / r[other] for r in found])
        for size, found in measure(sizes, tokens, repeats, loop)
        for other, against in ((1, "generate, whole batches"), (2, "generate, one by one"))
    ]


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", default="32,64,96")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop-prompts", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one size, short completions, two repeats")
    a = parser.parse_args()
    if a.quick:
        a.sequences, a.tokens, a.repeats, a.loop_prompts = "16", 16, 2, 2
    sizes = [int(n) for n in a.sequences.split(",")]
    print(f"median tokens/s (min to max) of {a.repeats} runs, {a.tokens} new tokens at most\n")
    print("| sequences | engine | generate, batched | generate, one by one | engine / batched | engine / one by one |")
    print("|---|---|---|---|---|---|")
    for size, found in measure(sizes, a.tokens, a.repeats, a.loop_prompts):
        columns = list(zip(*found, strict=True))
        ratios = [[r[0] / r[other] for r in found] for other in (1, 2)]
        print(f"| {size} | " + " | ".join([*map(spread, columns), *(spread(r, 2) for r in ratios)]) + " |", flush=True)


if __name__ == "__main__":
    main()
