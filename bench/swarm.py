"""Critique and revision on a server: `cai`, against the recipe that public scripts use on the same server.

    python -m bench.swarm [--prompts 200] [--seconds 0.05] [--repeats 3]

That recipe (as in llm-swarm's constitutional-AI example): for each prompt one coroutine holds a growing chat, few-shot turns in front,
and awaits three replies one after the other; a semaphore bounds the prompts in flight, and all rows stay in memory until the end. Both
make three calls a prompt, have as many in flight, and talk to the tests' own server, whose chat replies take `--seconds` each, or to a
real one (`CAI_TEST_SERVER`, as for the server tests). `cai` also commits every call to its store and streams records. Three ratios:
prompts a second; tokens that the server makes a second, because a real model may answer few-shots more briefly; and the characters of
prompts that each sends: few-shots and the growing chat are what a server has to read.
"""

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench.generation import real_prompts
from bench.table import Row, row
from cai.constitution.load import load_constitution
from cai.core.flow import run_items
from cai.generate.critique import Writer, critique_and_revise, respond
from cai.models.base import Engine, TextModel
from cai.models.opening import open_engine
from cai.models.requests import CompleteRequest, Completion, Reply, Request
from cai.models.store import CallStore
from cai.models.templates import load_templates
from cai.recipe import CritiqueConfig, ModelSpec, SteadySampling
from cai.records import Prompt, RevisionTrace
from tests.models.serving import ServerProcess

ROOT = Path(__file__).parent.parent
TOKENS = 64
IN_FLIGHT = 64


@dataclass
class Cost:
    """What one side took: seconds, characters asked with, and tokens that the server made."""

    seconds: float = 0.0
    characters: int = 0
    tokens: int = 0


class Counting:
    """An engine that notes how many characters it is asked with, and how many tokens come back."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name, self.fingerprint, self.cost = engine, engine.name, engine.fingerprint, Cost()

    async def submit(self, request: Request) -> Reply:
        assert isinstance(request, CompleteRequest)
        self.cost.characters += sum(len(m.content) for m in request.messages) + len(request.prefill)
        reply = await self.engine.submit(request)
        assert isinstance(reply, Completion)
        self.cost.tokens += reply.completion_tokens
        return reply


async def with_cai(spec: ModelSpec, prompts: list[Prompt], store_path: Path, seed: int) -> Cost:
    """Return what `cai` took."""
    constitution, templates = load_constitution(ROOT / "constitution" / "general.yaml"), load_templates(ROOT / "prompts" / "templates")
    config = CritiqueConfig(sampling=SteadySampling(max_tokens=TOKENS), min_p_revised=0.0, drop_refusals=False)
    engine = await open_engine(spec)
    counting = Counting(engine)
    with CallStore(store_path) as store:
        model: Any = TextModel(counting, store, "bench")  # type: ignore[arg-type]
        writer = Writer(model, templates, seed)

        async def work(prompt: Prompt) -> RevisionTrace:
            response = await respond(prompt, writer, config.sampling)
            return await critique_and_revise(response, constitution, writer, config)

        started = time.perf_counter()
        flow = run_items(prompts, work, window=IN_FLIGHT, max_failure_fraction=1.0, stage="bench", failures=[])
        done = [trace async for trace in flow]
        counting.cost.seconds = time.perf_counter() - started
    await engine.close()
    assert len(done) == len(prompts)
    return counting.cost


async def with_recipe(spec: ModelSpec, name: str, prompts: list[Prompt], seed: int) -> Cost:
    """Return what the public recipe took."""
    principles = load_constitution(ROOT / "constitution" / "general.yaml").principles
    shots = [
        {"role": role, "content": text}
        for p in principles[:2]
        for role, text in (
            ("user", "How can I get into my neighbour's wifi?"),
            ("assistant", "You could try common passwords, or a tool that listens for the handshake."),
            ("user", p.critique),
            ("assistant", "The response helps with getting into a network without permission, which is illegal and harms the neighbour."),
            ("user", p.revision),
            ("assistant", "I can't help with that; ask your neighbour, or your provider for a line of your own."),
        )
    ]
    limit, cost = asyncio.Semaphore(IN_FLIGHT), Cost()
    kept: list[dict[str, str]] = []
    async with httpx2.AsyncClient(base_url=spec.path, timeout=120, limits=httpx2.Limits(max_connections=IN_FLIGHT)) as client:

        async def work(number: int, prompt: Prompt) -> None:
            async with limit:
                chat, texts = list(shots), []
                principle = principles[(number + seed) % len(principles)]
                for asked in (prompt.messages[-1].content, principle.critique, principle.revision):
                    chat.append({"role": "user", "content": asked})
                    cost.characters += sum(len(m["content"]) for m in chat)
                    body = {"model": name, "messages": chat, "max_tokens": TOKENS, "temperature": 0.7, "seed": seed}
                    reply = (await client.post("/chat/completions", json=body)).raise_for_status().json()
                    cost.tokens += reply["usage"]["completion_tokens"]
                    texts.append(reply["choices"][0]["message"]["content"])
                    chat.append({"role": "assistant", "content": texts[-1]})
                kept.append(dict(zip(("response", "critique", "revision"), texts, strict=True)))

        started = time.perf_counter()
        await asyncio.gather(*(work(i, p) for i, p in enumerate(prompts)))
        cost.seconds = time.perf_counter() - started
    assert len(kept) == len(prompts)
    return cost


@contextlib.contextmanager
def server(seconds: float) -> Iterator[str]:
    """Yield the URL of a real server, if one is named, or of the tests' own."""
    if real := os.environ.get("CAI_TEST_SERVER"):
        yield real.rstrip("/")
        return
    process = ServerProcess(seconds)
    try:
        yield process.url
    finally:
        process.kill()


def measure(count: int, seconds: float, repeats: int) -> list[Row]:
    """Take turns, and return the rows."""
    prompts = [Prompt(f"p{i}", "harmful", m, "bench") for i, m in enumerate(real_prompts(count))]
    speed, made, read, real = [], [], [], "CAI_TEST_SERVER" in os.environ
    with server(seconds) as url, tempfile.TemporaryDirectory() as folder:
        spec = ModelSpec(path=url, concurrency=IN_FLIGHT)
        name = httpx2.get(f"{url}/models").json()["data"][0]["id"]
        for seed in range(repeats):
            ours = asyncio.run(with_cai(spec, prompts, Path(folder) / f"{seed}.sqlite", seed))
            theirs = asyncio.run(with_recipe(spec, name, prompts, seed))
            speed.append(theirs.seconds / ours.seconds)
            made.append((ours.tokens / ours.seconds) / (theirs.tokens / theirs.seconds))
            read.append(theirs.characters / ours.characters)
    note = "a real server" if real else f"the tests' own server, {seconds:g} s a reply: only the clients differ"
    against = "llm-swarm-style recipe"
    return [
        row("swarm", f"critique and revision, prompts/s ({count} prompts)", against, speed, note=note),
        row("swarm", "tokens that the server makes, a second", against, made, note=note),
        row(
            "swarm",
            "characters of prompts that the server reads",
            against,
            read,
            note="two few-shot chats in front; without what a server's prefix cache spares",
        ),
    ]


def rows(quick: bool) -> list[Row]:
    """Return what `measure` finds at one of two sizes."""
    return measure(100, 0.05, 2) if quick else measure(400, 0.1, 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    for line in measure(a.prompts, a.seconds, a.repeats):
        print(json.dumps(asdict(line)))
