"""Requests per second that `cai` gets out of a server, against the very same requests from a bare load generator.

    python -m tests.vllm_server --no-adapter --dtype auto python -m bench.server_throughput [--sequences 64] [--tokens 64] [--repeats 4]

or with the address of any vLLM that runs already in $CAI_TEST_SERVER. `cai` asks as a stage does: `TextModel`, each reply committed to a
new call store on the disk. A first, uncounted pass records what it sends and fills the server's prefix cache; the generator sends those
bytes again, a loop per request in flight, and reads the replies without looking at them. The two take turns, each repeat in the other
order, and a ratio is of two runs that followed each other.

Two kinds of work: completions of shipped prompts, with seeds; and the judge's questions about a few texts, which are a request for the
tokens and one for the log-probabilities each. Processor time is this process's alone: the server is another.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx2

from bench.generation import real_prompts, spread
from bench.prefix_sharing import questions
from cai.models.base import TextModel
from cai.models.local.loading import load_tokenizer
from cai.models.requests import CompleteRequest, Request, Sampling
from cai.models.server.engine import ServerEngine
from cai.models.store import CallStore
from cai.recipe import ModelSpec

Sent = tuple[str, bytes]
"""URL and body of one request."""


class Recorder(httpx2.AsyncBaseTransport):
    """The network, with a note of every request that has a body."""

    def __init__(self, connections: int) -> None:
        self.sent: list[Sent] = []
        self._network = httpx2.AsyncHTTPTransport(limits=limits(connections))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.content:
            self.sent.append((str(request.url), request.content))
        return await self._network.handle_async_request(request)

    async def aclose(self) -> None:
        await self._network.aclose()


def limits(connections: int) -> httpx2.Limits:
    """As many connections as requests in flight, all kept."""
    return httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)


async def through_cai(spec: ModelSpec, requests: Sequence[Request], recorder: Recorder | None = None) -> tuple[float, float]:
    """Answer the requests into a new call store; return the seconds by the clock and of the processor, connecting not counted."""
    engine = await ServerEngine.connect(spec, recorder)
    if recorder is not None:
        recorder.sent.clear()
    try:
        with tempfile.TemporaryDirectory() as folder, CallStore(Path(folder) / "calls.sqlite") as store:
            model = TextModel(engine, store, "bench")

            async def work() -> None:
                await asyncio.gather(*map(model.call, requests))

            return await timed(work)
    finally:
        await engine.close()


async def bare(spec: ModelSpec, sent: Sequence[Sent]) -> tuple[float, float]:
    """Send the same bytes from as many loops as requests may be in flight; return the seconds as `through_cai` does."""
    async with httpx2.AsyncClient(limits=limits(spec.concurrency), timeout=spec.timeout_seconds) as client:
        waiting = iter(sent)

        async def loop() -> None:
            for url, body in waiting:
                (await client.post(url, content=body, headers={"content-type": "application/json"})).raise_for_status()

        async def work() -> None:
            await asyncio.gather(*(loop() for _ in range(spec.concurrency)))

        return await timed(work)


async def timed(work: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Return the seconds that work takes, by the clock and of this process's processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    await work()
    return time.perf_counter() - wall, time.process_time() - cpu


async def measure(spec: ModelSpec, requests: Sequence[Request], repeats: int) -> str:
    """Return a row of the table: requests, both rates, their ratio, and both processor times a request."""
    recorder = Recorder(spec.concurrency)
    await through_cai(spec, requests, recorder)
    sent = recorder.sent
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            theirs = await bare(spec, sent)
            ours = await through_cai(spec, requests)
        else:
            ours = await through_cai(spec, requests)
            theirs = await bare(spec, sent)
        pairs.append((ours, theirs))
    rates = [spread([len(sent) / run[side][0] for run in pairs], 1) for side in (0, 1)]
    ratio = spread([theirs[0] / ours[0] for ours, theirs in pairs], 3)
    milliseconds = [spread([1e3 * run[side][1] / len(sent) for run in pairs], 2) for side in (0, 1)]
    return " | ".join([str(len(sent)), *rates, ratio, *milliseconds])


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--principles", type=int, default=12)
    parser.add_argument("--concurrency", type=int, default=ModelSpec().concurrency)
    parser.add_argument("--repeats", type=int, default=4)
    a = parser.parse_args()
    if not (url := os.environ.get("CAI_TEST_SERVER")):
        sys.exit("no server: run this under `python -m tests.vllm_server`, or set CAI_TEST_SERVER to a vLLM's address")
    spec = ModelSpec(path=url, concurrency=a.concurrency)
    work: dict[str, list[Request]] = {
        "completions": [CompleteRequest(p, Sampling(a.tokens), i) for i, p in enumerate(real_prompts(a.sequences))],
        "questions": [*questions(a.texts, a.principles, 250, load_tokenizer(ModelSpec()))],
    }
    print(f"median (min to max) of {a.repeats} pairs of runs, {a.concurrency} requests in flight\n")
    print("| work | requests | cai, requests/s | bare, requests/s | cai / bare | cai, CPU ms a request | bare, CPU ms a request |")
    print("|---|---|---|---|---|---|---|")
    for name, requests in work.items():
        print(f"| {name} | {asyncio.run(measure(spec, requests, a.repeats))} |", flush=True)


if __name__ == "__main__":
    main()
