"""Tokens per second of completions: the local engine, `generate` on whole batches, and `generate` one prompt at a time.

    python -m bench.generation [--model embedded] [--sequences 32,64,96] [--tokens 96] [--repeats 3] [--loop-prompts 4] [--quick]
    python -m tests.vllm_server --no-adapter --dtype auto python -m bench.generation [...]      # and vLLM's CPU build

All use one model in the precision that suits this machine, the same real prompts (prompts/*.jsonl), temperature 1 and the same
token limit, in one process, taking turns; a ratio is of two runs that followed each other. Tokens after the end of a turn are not
counted. With a server's address in $CAI_TEST_SERVER (vLLM, llama.cpp), it answers the same requests in its turn, all at once, and is
idle in the others'.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from bench.table import Row, row
from cai.core.jsonl import read_records
from cai.models.base import Engine
from cai.models.local.engine import LocalEngine
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.local.precision import resolved_precision
from cai.models.naming import spec_from_name
from cai.models.requests import CompleteRequest, Completion, Sampling
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec
from cai.records import Message

ROOT = Path(__file__).parent.parent
BATCHED, SINGLE, SERVER = "generate, whole batches", "generate, one by one", "server"
Rates = dict[str, float]
"""Tokens per second of one repeat: `engine`, and everything that it is measured against."""


def real_prompts(count: int) -> list[tuple[Message, ...]]:
    """Return conversations from the shipped prompt files, the files taking turns; over again where there are too few."""
    files = [
        [p["messages"] for p in read_records(ROOT / "prompts" / f"{name}.jsonl", dict)] for name in ("harmful", "borderline", "helpful")
    ]
    mixed = [tuple(Message(**m) for m in messages) for taken in zip(*files, strict=False) for messages in taken]
    return [mixed[i % len(mixed)] for i in range(count)]


async def answered(engine: Engine, prompts: Sequence[tuple[Message, ...]], tokens: int, seed: int) -> list[Completion]:
    """Return an engine's completions of all prompts at once."""
    requests = [CompleteRequest(p, Sampling(tokens), seed * 10_000 + i) for i, p in enumerate(prompts)]
    return [r for r in await asyncio.gather(*map(engine.submit, requests)) if isinstance(r, Completion)]


def with_engine(engine: LocalEngine, prompts: Sequence[tuple[Message, ...]], tokens: int, seed: int) -> int:
    """Return how many tokens the engine made."""
    return sum(r.completion_tokens for r in asyncio.run(answered(engine, prompts, tokens, seed)))


def with_server(url: str, prompts: Sequence[tuple[Message, ...]], tokens: int, seed: int) -> int:
    """Return how many tokens a server made; it counts the one that ends a turn, which isn't counted here. Connecting takes its time too."""

    async def run() -> int:
        engine = await ServerEngine.connect(ModelSpec(path=url, concurrency=len(prompts)))
        try:
            return sum(r.completion_tokens - (not r.truncated) for r in await answered(engine, prompts, tokens, seed))
        finally:
            await engine.close()

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


def measure(spec: ModelSpec, sizes: Sequence[int], tokens: int, repeats: int, loop_prompts: int) -> Iterator[tuple[int, list[Rates]]]:
    """Yield each number of sequences with the rates of each repeat."""
    spec = msgspec.structs.replace(spec, batch_size=max(sizes))
    engine, plain, tokenizer = LocalEngine.load(spec), load_causal_lm(spec), load_tokenizer(spec)
    work: dict[str, Callable[[list[tuple[Message, ...]], int], int]] = {
        "engine": lambda prompts, repeat: with_engine(engine, prompts, tokens, repeat),
        BATCHED: lambda prompts, _: with_generate(plain, tokenizer, prompts, tokens, len(prompts)),
        SINGLE: lambda prompts, _: with_generate(plain, tokenizer, prompts[:loop_prompts], tokens, 1),
    }
    with_engine(engine, real_prompts(8), 4, 0)
    with_generate(plain, tokenizer, real_prompts(8), 4, 8)
    if url := os.environ.get("CAI_TEST_SERVER"):
        with_server(url, real_prompts(8), 4, 0)
        work[SERVER] = lambda prompts, repeat: with_server(url, prompts, tokens, repeat)
    for size in sizes:
        prompts = real_prompts(size)
        yield size, [{name: rate(partial(make, prompts, repeat)) for name, make in work.items()} for repeat in range(1, repeats + 1)]
    asyncio.run(engine.close())


def ratios(found: list[Rates]) -> dict[str, list[float]]:
    """Return the engine's rate over each other's, per repeat."""
    return {name: [rates["engine"] / rates[name] for rates in found] for name in found[0] if name != "engine"}


def rows(quick: bool) -> list[Row]:
    """Return the ratios of tokens per second."""
    sizes, tokens, repeats, loop = ((16,), 16, 2, 1) if quick else ((32, 96), 96, 3, 4)
    return [
        row("generation", f"tokens/s, {size} sequences of {tokens} tokens", against, values)
        for size, found in measure(ModelSpec(), sizes, tokens, repeats, loop)
        for against, values in ratios(found).items()
    ]


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--sequences", default="32,64,96")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop-prompts", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one size, short completions, two repeats")
    a = parser.parse_args()
    if a.quick:
        a.sequences, a.tokens, a.repeats, a.loop_prompts = "16", 16, 2, 2
    sizes = [int(n) for n in a.sequences.split(",")]
    spec = spec_from_name(a.model)
    how = f"{a.tokens} new tokens at most, {resolved_precision(spec.precision)}"
    print(f"{a.model}: median tokens/s (min to max) of {a.repeats} runs, {how}\n")
    for i, (size, found) in enumerate(measure(spec, sizes, a.tokens, a.repeats, a.loop_prompts)):
        if i == 0:
            heads = ["sequences", *found[0], *(f"engine / {name}" for name in ratios(found))]
            print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
        cells = [*(spread([rates[name] for rates in found]) for name in found[0]), *(spread(r, 2) for r in ratios(found).values())]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
