"""Questions per second of a judge that asks a whole constitution about each text: shared beginnings, against plain batches.

    python -m bench.prefix_sharing [--model embedded] [--texts 2] [--principles 16] [--text-tokens 250] [--repeats 3] [--quick]
    python -m tests.vllm_server --no-adapter --dtype auto python -m bench.prefix_sharing [...]      # and vLLM's CPU build

Every principle of constitution/general.yaml is asked positively and negatively about each text (made of shipped prompts, in another
order at each repeat, so that no text has been seen before), Yes against No. The plain way pads the same token ids into batches of the
same size and reads the last position's logits. With a server's address in $CAI_TEST_SERVER (vLLM, llama.cpp), it answers the same
questions in its turn, with its prefix cache on. Runs take turns. Beside the speed stand the largest difference of Yes minus No from the
engine's, and in how many answers both prefer the same word.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.generation import ratios, real_prompts, spread
from bench.table import Row, row
from cai.constitution.load import load_constitution
from cai.models.base import Engine
from cai.models.local.encoding import Encoder
from cai.models.local.engine import LocalEngine
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.naming import spec_from_name
from cai.models.requests import ChoiceLogprobs, ChoicesRequest
from cai.models.server.engine import ServerEngine
from cai.recipe import ModelSpec
from cai.records import Message

ROOT = Path(__file__).parent.parent
CHOICES = ("Yes", "No")
PADDED, SERVER = "padded batches of whole prompts", "server"


def questions(texts: int, principles: int, tokens: int, tokenizer: Any, turn: int = 0) -> list[ChoicesRequest]:
    """Return both questions of each principle about each text; another `turn` has other texts."""
    asked = load_constitution(ROOT / "constitution" / "general.yaml").principles
    chosen = [asked[i % len(asked)] for i in range(principles)]
    prompts = real_prompts(90)
    prompts = prompts[17 * turn % 90 :] + prompts[: 17 * turn % 90]
    words = [" ".join(m.content for p in prompts[start::texts] for m in p) for start in range(texts)]
    bodies = [tokenizer.decode(tokenizer(w, add_special_tokens=False)["input_ids"][:tokens]) for w in words]
    return [
        ChoicesRequest((Message("user", f"Here is a text.\n\n{body}\n\nQuestion {i}: {question} Answer Yes or No."),), CHOICES)
        for body in bodies
        for i, p in enumerate(chosen)
        for question in (p.ask_positive, p.ask_negative)
    ]


async def answered(engine: Engine, requests: list[ChoicesRequest]) -> list[float]:
    """Return log P(Yes) - log P(No) of each question, all asked at once."""
    replies = await asyncio.gather(*map(engine.submit, requests))
    return [r.logprobs[0] - r.logprobs[1] for r in replies if isinstance(r, ChoiceLogprobs)]


def with_server(url: str, requests: list[ChoicesRequest]) -> list[float]:
    """Return the same from a server. Connecting takes its time too."""

    async def run() -> list[float]:
        engine = await ServerEngine.connect(ModelSpec(path=url, concurrency=len(requests)))
        try:
            return await answered(engine, requests)
        finally:
            await engine.close()

    return asyncio.run(run())


def with_batches(model: Any, tokenizer: Any, requests: list[ChoicesRequest], size: int) -> list[float]:
    """Return the same from padded batches of `size`."""
    import torch

    encoder = Encoder(tokenizer)
    yes, no = (tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in CHOICES)
    prompts = [encoder.prompt(r.messages)[0] for r in requests]
    found: list[float] = []
    for start in range(0, len(prompts), size):
        batch = {"input_ids": prompts[start : start + size]}
        inputs = tokenizer.pad(batch, return_tensors="pt", padding_side="left")
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = model(**inputs, position_ids=positions, logits_to_keep=1, use_cache=False).logits[:, -1].float()
        found += (logits[:, yes] - logits[:, no]).tolist()
    return found


def measure(
    spec: ModelSpec, texts: int, principles: int, text_tokens: int, repeats: int
) -> tuple[int, list[dict[str, float]], dict[str, list[float]]]:
    """Return how many questions there are, the questions per second of each repeat, and each way's answers, in nats, of all repeats."""
    engine, plain, tokenizer = LocalEngine.load(spec), load_causal_lm(spec), load_tokenizer(spec)
    work: dict[str, Callable[[list[ChoicesRequest]], list[float]]] = {
        "engine": lambda asked: asyncio.run(answered(engine, asked)),
        PADDED: lambda asked: with_batches(plain, tokenizer, asked, spec.batch_size),
    }
    if url := os.environ.get("CAI_TEST_SERVER"):
        work[SERVER] = lambda asked: with_server(url, asked)
    rates: list[dict[str, float]] = []
    said: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        requests = questions(texts, principles, text_tokens, tokenizer, turn)[: None if turn else 4]
        found = {}
        for name, ask in work.items():
            started = time.perf_counter()
            answers = ask(requests)
            found[name] = len(requests) / (time.perf_counter() - started)
            said[name] += answers if turn else []  # the first turn is to warm up
        rates += [found] if turn else []
    asyncio.run(engine.close())
    return len(requests), rates, said


def largest_gap(said: dict[str, list[float]], name: str) -> float:
    """Return the largest difference of an answer from the engine's, in nats."""
    return max(abs(x - y) for x, y in zip(said["engine"], said[name], strict=True))


def agreement(said: dict[str, list[float]], name: str) -> str:
    """Return in how many answers the engine and another way prefer the same word."""
    same = sum((x > 0) == (y > 0) for x, y in zip(said["engine"], said[name], strict=True))
    return f"{same} of {len(said[name])}"


def rows(quick: bool) -> list[Row]:
    """Return the ratios of questions per second."""
    count, rates, said = measure(ModelSpec(), 1, 4, 120, 2) if quick else measure(ModelSpec(), 2, 16, 250, 3)
    note = f"answers differ by at most {largest_gap(said, PADDED):.2g} nats"
    what = f"questions/s about a text ({count} questions)"
    return [row("prefix_sharing", what, against, values, note=note) for against, values in ratios(rates).items()]


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--principles", type=int, default=16)
    parser.add_argument("--text-tokens", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one text, four principles, two repeats")
    a = parser.parse_args()
    if a.quick:
        a.texts, a.principles, a.repeats = 1, 4, 2
    count, rates, said = measure(spec_from_name(a.model), a.texts, a.principles, a.text_tokens, a.repeats)
    print(f"{a.model}: median questions/s (min to max) of {a.repeats} runs, {a.texts} texts of {a.text_tokens} tokens, {count} questions\n")
    print("| | questions/s | engine's rate over it | largest difference, nats | same answer |\n|---|---|---|---|---|")
    over = ratios(rates)
    for name in rates[0]:
        beside = [spread(over[name], 2), f"{largest_gap(said, name):.2f}", agreement(said, name)] if name in over else ["", "", ""]
        print(f"| {name} | {spread([found[name] for found in rates], 1)} | {' | '.join(beside)} |")


if __name__ == "__main__":
    main()
