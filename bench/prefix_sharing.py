"""Questions per second of a judge that asks a whole constitution about each text: shared beginnings, against plain batches.

    python -m bench.prefix_sharing [--texts 2] [--principles 16] [--text-tokens 250] [--repeats 3] [--quick]

Every principle of constitution/general.yaml is asked positively and negatively about each text (made of shipped prompts), Yes against
No. The plain way pads the same token ids into batches of the same size and reads the last position's logits. Runs take turns, and the
largest difference of Yes minus No between the two is printed beside the speed.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from bench.generation import real_prompts, spread
from bench.table import Row, row
from cai.constitution.load import load_constitution
from cai.models.base import ChoiceLogprobs, ChoicesRequest
from cai.models.encoding import Encoder
from cai.models.loading import load_causal_lm, load_tokenizer
from cai.models.local import LocalEngine
from cai.recipe import ModelSpec
from cai.records import Message

ROOT = Path(__file__).parent.parent
CHOICES = ("Yes", "No")


def questions(texts: int, principles: int, tokens: int, tokenizer: Any) -> list[ChoicesRequest]:
    """Return both questions of each principle about each text."""
    asked = load_constitution(ROOT / "constitution" / "general.yaml").principles
    chosen = [asked[i % len(asked)] for i in range(principles)]
    words = [" ".join(m.content for p in real_prompts(90)[start::texts] for m in p) for start in range(texts)]
    bodies = [tokenizer.decode(tokenizer(w, add_special_tokens=False)["input_ids"][:tokens]) for w in words]
    return [
        ChoicesRequest((Message("user", f"Here is a text.\n\n{body}\n\nQuestion {i}: {question} Answer Yes or No."),), CHOICES)
        for body in bodies
        for i, p in enumerate(chosen)
        for question in (p.ask_positive, p.ask_negative)
    ]


def with_engine(engine: LocalEngine, requests: list[ChoicesRequest]) -> list[float]:
    """Return log P(Yes) - log P(No) of each question."""

    async def run() -> list[float]:
        replies = await asyncio.gather(*map(engine.submit, requests))
        return [r.logprobs[0] - r.logprobs[1] for r in replies if isinstance(r, ChoiceLogprobs)]

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


def measure(texts: int, principles: int, text_tokens: int, repeats: int) -> tuple[int, list[tuple[float, float]], float]:
    """Return how many questions there are, both rates of each repeat, and the largest difference of an answer, in nats."""
    spec = ModelSpec()
    engine, plain, tokenizer = LocalEngine.load(spec), load_causal_lm(spec), load_tokenizer(spec)
    requests = questions(texts, principles, text_tokens, tokenizer)
    with_engine(engine, requests[:4])
    with_batches(plain, tokenizer, requests[:4], 4)
    rates: list[tuple[float, float]] = []
    gap = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        shared = with_engine(engine, requests)
        middle = time.perf_counter()
        unshared = with_batches(plain, tokenizer, requests, spec.batch_size)
        rates.append((len(requests) / (middle - started), len(requests) / (time.perf_counter() - middle)))
        gap = max(gap, *(abs(x - y) for x, y in zip(shared, unshared, strict=True)))
    asyncio.run(engine.close())
    return len(requests), rates, gap


def rows(quick: bool) -> list[Row]:
    """Return the ratio of questions per second."""
    count, rates, gap = measure(1, 4, 120, 2) if quick else measure(2, 16, 250, 3)
    ratios = [shared / plain for shared, plain in rates]
    note = f"answers differ by at most {gap:.2g} nats"
    return [row("prefix_sharing", f"questions/s about a text ({count} questions)", "padded batches of whole prompts", ratios, note=note)]


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--principles", type=int, default=16)
    parser.add_argument("--text-tokens", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one text, four principles, two repeats")
    a = parser.parse_args()
    if a.quick:
        a.texts, a.principles, a.repeats = 1, 4, 2
    count, rates, gap = measure(a.texts, a.principles, a.text_tokens, a.repeats)
    print(f"median questions/s (min to max) of {a.repeats} runs, {a.texts} texts of {a.text_tokens} tokens\n")
    print("| questions | shared | plain batches | ratio | largest difference of Yes - No, in nats |")
    print("|---|---|---|---|---|")
    columns = [spread(c, 1) for c in zip(*rates, strict=True)]
    print(f"| {count} | " + " | ".join([*columns, spread([s / u for s, u in rates], 2), f"{gap:.2f}"]) + " |")


if __name__ == "__main__":
    main()
