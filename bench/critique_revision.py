"""Prompts per second through respond, critique and revise: `cai`, against a loop that calls `generate` for one prompt at a time.

    python -m bench.critique_revision [--prompts 64] [--loop-prompts 6] [--repeats 3] [--tokens 80]

Both use the embedded model in bfloat16, the same templates, sampling and token limit, and real prompts. The loop is what a first script
does: a `generate` call per turn, no batching. Runs alternate; each ratio is of one pair of runs.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.table import Row
from cai.constitution.load import load_constitution
from cai.core.flow import run_items
from cai.data.prompts import load_prompts
from cai.generate.critique import Writer, critique_and_revise, respond
from cai.models.base import TextModel
from cai.models.local.engine import LocalEngine
from cai.models.local.loading import load_causal_lm, load_tokenizer
from cai.models.store import CallStore
from cai.models.templates import Templates, load_templates
from cai.recipe import CritiqueConfig, ModelSpec, PromptSource, SteadySampling
from cai.records import Constitution, Prompt, RevisionTrace

ROOT = Path(__file__).parent.parent


def with_cai(
    engine: LocalEngine, prompts: list[Prompt], constitution: Constitution, templates: Templates, config: CritiqueConfig, seed: int
) -> tuple[float, int]:
    """Return seconds and completion tokens."""

    async def run() -> tuple[float, int]:
        with CallStore(None) as store:
            model = TextModel(engine, store, "bench")
            writer = Writer(model, templates, seed)

            async def work(prompt: Prompt) -> RevisionTrace:
                response = await respond(prompt, writer, config.sampling)
                return await critique_and_revise(response, constitution, writer, config)

            started = time.perf_counter()
            flow = run_items(prompts, work, window=len(prompts), max_failure_fraction=1.0, stage="bench", failures=[])
            done = [trace async for trace in flow]
            seconds = time.perf_counter() - started
            assert len(done) == len(prompts)
            return seconds, model.usage.completion_tokens

    return asyncio.run(run())


def with_loop(
    model: Any, tokenizer: Any, prompts: list[Prompt], constitution: Constitution, templates: Templates, config: CritiqueConfig
) -> tuple[float, int]:
    """Return seconds and completion tokens of the one-prompt-at-a-time loop."""
    import torch

    tokens = 0

    def generate(messages: Any, prefill: str) -> str:
        nonlocal tokens
        chat = [{"role": m.role, "content": m.content} for m in messages]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + prefill
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        sampling = {"do_sample": True, "temperature": config.sampling.temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=config.sampling.max_tokens, pad_token_id=tokenizer.pad_token_id, **sampling)
        new = out[0, ids["input_ids"].shape[1] :]
        tokens += len(new)
        return str(tokenizer.decode(new, skip_special_tokens=True))

    started = time.perf_counter()
    for i, prompt in enumerate(prompts):
        applying = constitution.for_kind(prompt.kind)
        principle = applying[i % len(applying)]
        values: dict[str, Any] = {"conversation": prompt.messages}
        asked = templates.respond.render(values)
        values = {**values, "response": generate(asked.messages, asked.prefill), "critique_request": principle.critique}
        asked = templates.critique.render({**values, "statement": principle.statement})
        values = {**values, "critique": generate(asked.messages, asked.prefill), "revision_request": principle.revision}
        asked = templates.revise.render({**values, "statement": principle.statement})
        generate(asked.messages, asked.prefill)
    return time.perf_counter() - started, tokens


def measure(count: int, loop_count: int, repeats: int, max_tokens: int) -> dict[str, Any]:
    """Alternate both and return rates and ratios."""
    constitution = load_constitution(ROOT / "constitution" / "general.yaml")
    templates = load_templates(ROOT / "prompts" / "templates")
    config = CritiqueConfig(sampling=SteadySampling(max_tokens=max_tokens), min_p_revised=0.0)
    prompts = list(load_prompts(PromptSource(path="prompts/harmful.jsonl", limit=count), ROOT, 0).prompts)
    loop_prompts = prompts[:: max(1, count // loop_count)][:loop_count]
    spec = ModelSpec()
    engine = LocalEngine.load(spec)
    plain, tokenizer = load_causal_lm(spec), load_tokenizer(spec)
    with_cai(engine, prompts[:8], constitution, templates, config, 99)
    with_loop(plain, tokenizer, loop_prompts[:1], constitution, templates, config)
    rows = []
    for repeat in range(repeats):
        ours, our_tokens = with_cai(engine, prompts, constitution, templates, config, repeat)
        theirs, their_tokens = with_loop(plain, tokenizer, loop_prompts, constitution, templates, config)
        row = {
            "cai_prompts_per_s": len(prompts) / ours,
            "loop_prompts_per_s": len(loop_prompts) / theirs,
            "cai_tokens_per_s": our_tokens / ours,
            "loop_tokens_per_s": their_tokens / theirs,
        }
        row["ratio"] = row["cai_prompts_per_s"] / row["loop_prompts_per_s"]
        row["ratio_tokens"] = row["cai_tokens_per_s"] / row["loop_tokens_per_s"]
        rows.append(row)
        print({key: round(value, 3) for key, value in row.items()}, file=sys.stderr, flush=True)
    asyncio.run(engine.close())
    spread = {key: [round(f([r[key] for r in rows]), 3) for f in (min, statistics.median, max)] for key in rows[0]}
    return {"prompts": count, "loop_prompts": loop_count, "max_tokens": max_tokens, "repeats": repeats, "min_median_max": spread}


def rows(quick: bool) -> list[Row]:
    """Return the ratio of prompts per second."""
    count, loop, repeats, tokens = (12, 1, 2, 24) if quick else (64, 6, 3, 80)
    spread = measure(count, loop, repeats, tokens)["min_median_max"]["ratio"]
    what = f"critique and revision, prompts/s ({count} prompts, {tokens} tokens)"
    against = "a transformers loop, one prompt at a time"
    return [Row("critique_revision", what, against, spread[1], spread[0], spread[2], repeats)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--loop-prompts", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=80)
    a = parser.parse_args()
    print(json.dumps(measure(a.prompts, a.loop_prompts, a.repeats, a.tokens), indent=1))
