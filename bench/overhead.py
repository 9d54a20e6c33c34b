"""What a run costs beside its model: time and memory a call, and the call store at many calls. The model is scripted and answers at once.

    python -m bench.overhead [--items 2000 8000] [--calls 100000 400000] [--texts 20000 80000]

Time is this process's processor time, so that other work on the machine counts less; commits a second are also given by the clock. Each
size runs in a process of its own, and what grows with the size is the difference between two sizes: that is what the last lines
extrapolate from, and they say so. `--one pipeline 1000000` runs one size (or `once`: without the
replay; `stopped`: a run stopped amid a stage; `store`; `repeats`).
"""

import argparse
import asyncio
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from bench.table import Row, row
from cai.core.console import Reporter
from cai.core.workspace import Workspace, init_workspace
from cai.data.repeats import NearRepeats
from cai.ids import content_hash
from cai.models import opening
from cai.models.requests import ChoiceLogprobs, ChoicesRequest, CompleteRequest, Completion, Reply, Request, Sampling
from cai.models.scripted import ScriptedEngine
from cai.models.store import CallStore
from cai.pipeline.driver import RunSummary, run_recipe
from cai.pipeline.stages import STAGES
from cai.recipe import Recipe, load_recipe
from cai.records import Message

STAGES_MEASURED = ("respond", "critique", "pairs", "feedback")
RECIPE = """\
model: { path: scripted }
prompts:
  train: [{ path: prompts/many.jsonl }]
  near_duplicates: null
critique: { min_p_revised: 0.0 }
feedback: { principles: sample, per_label: 1, bench_pairs: null }
max_failure_fraction: 1.0
name: overhead
"""
PROMPT = "How do I explain to somebody that matter number {i} is not what they think, and that {other} would be better for everybody?"
SENTENCE = "This is a sentence of an answer, as models give them. "
WINDOW = 512
"""Calls that arrive together, as they do from a run's default window."""


def answer_at_once(request: Request) -> Reply:
    """A reply that depends on the request and costs next to nothing."""
    number = zlib.crc32(request.messages[-1].content.encode())
    if isinstance(request, CompleteRequest):
        return Completion(f"{SENTENCE * (1 + request.seed % 5)} This is answer {number ^ request.seed} to it.", False, 200, 40)
    assert isinstance(request, ChoicesRequest)
    return ChoiceLogprobs(tuple(-1.0 - (number + i) % 7 for i in range(len(request.choices))), 200)


@contextmanager
def scripted_run(items: int) -> Iterator[tuple[Workspace, Recipe]]:
    """Give a workspace of some prompts, and a recipe for them, whose model answers at once."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        init_workspace(workspace.root)
        with (workspace.root / "prompts" / "many.jsonl").open("w") as f:
            for i in range(items):
                kind = ("harmful", "borderline", "helpful")[i % 3]
                text = PROMPT.format(i=i, other=content_hash(i))
                f.write(json.dumps({"id": f"p{i}", "kind": kind, "messages": [{"role": "user", "content": text}]}) + "\n")
        path = workspace.root / "runs" / "overhead.yaml"
        path.write_text(RECIPE)
        recipe = load_recipe(path)
        workspace.run(recipe.name).model("sft").mkdir(parents=True)  # `pairs` samples from whatever adapter is there; a script has none
        opening.ScriptedEngine = lambda name: ScriptedEngine(answer_at_once, name)  # type: ignore[assignment, misc]
        yield workspace, recipe


def run_pipeline(items: int, replay: bool = True) -> dict[str, Any]:
    """Run the stages that ask a model over some prompts, then again with the manifest, then, if asked, from the call store alone."""
    with scripted_run(items) as (workspace, recipe):
        run = workspace.run(recipe.name)

        def timed() -> tuple[float, float, RunSummary]:
            wall, cpu = time.perf_counter(), time.process_time()
            summary = run_recipe(recipe, workspace, STAGES, Reporter(), only=STAGES_MEASURED)
            return time.perf_counter() - wall, time.process_time() - cpu, summary

        before = peak_bytes()
        _, first, summary = timed()
        calls = sum(s.calls_made for s in summary.stages)
        peak = peak_bytes()
        resume_wall, resume, _ = timed()
        found = {
            "items": items,
            "calls": calls,
            "cpu_s": first,
            "cpu_us_per_call": 1e6 * first / calls,
            "peak_mb_before": before / 1e6,
            "peak_mb": peak / 1e6,
            "resume_s": resume_wall,
            "resume_cpu_s": resume,
            "store_bytes_per_call": workspace.store_path.stat().st_size / calls,
        }
        if not replay:
            return found
        run.manifest.unlink()
        shutil.rmtree(run.path / "data")
        replay_wall, again_cpu, again = timed()
        assert sum(s.calls_made for s in again.stages) == 0
        return {**found, "from_store_s": replay_wall, "cpu_s_from_store": again_cpu, "cpu_us_per_call_from_store": 1e6 * again_cpu / calls}


class StopAt(Reporter):
    """Stops a run, as Ctrl-C does, when a stage has been answered a number of times, and notes when it was answered first."""

    def __init__(self, stage: str, calls: int) -> None:
        self.name, self.left = stage, calls
        self.begun = time.perf_counter()
        self.first: float | None = None
        self.within = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Look whether it is the stage."""
        self.within = name == self.name
        yield

    def call(self) -> None:
        """Count an answer."""
        if self.within:
            self.first = self.first or time.perf_counter()
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def stop_amid(items: int) -> dict[str, Any]:
    """Stop a run amid `critique`, and run it again up to its first call."""
    with scripted_run(items) as (workspace, recipe):
        two = ("respond", "critique")

        def run(calls: int) -> StopAt:
            reporter = StopAt("critique", calls)
            with suppress(KeyboardInterrupt):
                run_recipe(recipe, workspace, STAGES, reporter, only=two)
            assert reporter.first is not None
            return reporter

        run(items)  # a critique and a revision each
        journal = workspace.run(recipe.name).unfinished / "results.jsonl"
        finished = sum(1 for _ in journal.open("rb")) - 1
        cpu = time.process_time()
        again = run(2 * WINDOW)
        return {
            "items": items,
            "finished_items_taken_up": finished,
            "s_to_first_call": again.first - again.begun if again.first else 0.0,
            "cpu_s_to_first_calls": time.process_time() - cpu,
            "peak_mb": peak_bytes() / 1e6,
        }


def fill_store(calls: int) -> dict[str, Any]:
    """Put calls of a usual size into a store, as a server's replies arrive, then open it and look calls up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.sqlite"
        text = SENTENCE * 10

        async def fill(store: CallStore) -> None:
            for first in range(0, calls, WINDOW):
                rows = range(first, min(first + WINDOW, calls))
                await asyncio.gather(
                    *(store.put(key(i), "respond", "m", request(i), Completion(f"{i} {text}", False, 200, 120), 1.0) for i in rows)
                )

        def request(i: int) -> CompleteRequest:
            return CompleteRequest((Message("system", "Be good."), Message("user", f"{i} {text}")), Sampling(), i)

        before = peak_bytes()
        with CallStore(path) as store:
            wall, cpu = time.perf_counter(), time.process_time()
            asyncio.run(fill(store))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = sum(p.stat().st_size for p in Path(folder).iterdir())
        opened = time.perf_counter()
        with CallStore(path) as store:
            assert store.get(key(0), Completion) is not None
            opened = time.perf_counter() - opened
            looked = [random.Random(0).randrange(calls) for _ in range(20_000)]
            hits = time.process_time()
            assert all(store.get(key(i), Completion) is not None for i in looked)
            hits = time.process_time() - hits
            misses = time.process_time()
            assert all(store.get(key(-1 - i), Completion) is None for i in looked)
            misses = time.process_time() - misses
        return {
            "calls": calls,
            "commits_per_s": calls / wall,
            "commits_per_cpu_s": calls / cpu,
            "bytes_per_call": size / calls,
            "open_and_first_call_ms": 1e3 * opened,
            "hit_cpu_us": 1e6 * hits / len(looked),
            "miss_cpu_us": 1e6 * misses / len(looked),
            "peak_mb_more": (peak_bytes() - before) / 1e6,
        }


def find_repeats(texts: int) -> dict[str, Any]:
    """Look for near-repeats among prompts of 25 words: of words in common use, and made from one sentence with two words exchanged."""
    words = [content_hash(i, 6) for i in range(5000)]
    draw = random.Random(0)
    before = peak_bytes()

    def cpu_us(count: int, text: Callable[[int], str]) -> float:
        with NearRepeats(0.8) as met:
            cpu = time.process_time()
            for i in range(count):
                met.twin(text(i), f"prompt {i}")
            return 1e6 * (time.process_time() - cpu) / count

    apart = cpu_us(texts, lambda i: " ".join(draw.choices(words, k=25)))
    peak = peak_bytes()
    alike = {n: cpu_us(n, lambda i: PROMPT.format(i=i, other=content_hash(i))) for n in (1000, 2000)}
    return {
        "texts": texts,
        "cpu_us_per_text": apart,
        "peak_mb_more": (peak - before) / 1e6,
        **{f"cpu_us_per_text_of_one_sentence_{n}": us for n, us in alike.items()},
    }


def key(i: int) -> str:
    """A call's key."""
    return content_hash(i, length=64)


def peak_bytes() -> int:
    """This process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


MEASURES: dict[str, Callable[[int], dict[str, Any]]] = {
    "pipeline": run_pipeline,
    "once": partial(run_pipeline, replay=False),
    "stopped": stop_amid,
    "store": fill_store,
    "repeats": find_repeats,
}


def in_process_of_its_own(what: str, size: int) -> dict[str, Any]:
    """Measure one size in a fresh process, so that its peak of memory is its own."""
    command = [sys.executable, "-m", "bench.overhead", "--one", what, str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows(quick: bool) -> list[Row]:
    """Return what a call costs beside its model, and what the store keeps up with."""
    items, calls = (300, 20_000) if quick else (2000, 100_000)
    run, store = in_process_of_its_own("pipeline", items), in_process_of_its_own("store", calls)
    return [
        row("overhead", f"our processor time a call ({run['calls']:,} calls)", "", [run["cpu_us_per_call"]], "µs"),
        row("overhead", f"peak memory of a run of {items:,} items", "", [run["peak_mb"]], "MB"),
        row("overhead", f"commits a second of processor time ({calls:,} calls)", "", [store["commits_per_cpu_s"]], "/s"),
    ]


def growth(smaller: dict[str, Any], larger: dict[str, Any], value: str, per: str) -> float:
    """How much a figure grows with each further item or call."""
    return float((larger[value] - smaller[value]) / (larger[per] - smaller[per]))


def main(items: list[int], calls: list[int], texts: list[int]) -> None:
    """Print each size's figures, and what they come to at a million items and ten million calls."""
    pipelines = [in_process_of_its_own("pipeline", n) for n in sorted(items)]
    stores = [in_process_of_its_own("store", n) for n in sorted(calls)]
    repeats = [in_process_of_its_own("repeats", n) for n in sorted(texts)]
    for found in (*pipelines, *stores, *repeats):
        print(json.dumps({k: round(v, 2) for k, v in found.items()}))
    if len(pipelines) > 1:
        ends = pipelines[0], pipelines[-1]
        further = {f"{name}_further_call": round(1e6 * growth(*ends, name, "calls"), 2) for name in ("cpu_s", "cpu_s_from_store")}
        print(json.dumps({f"us_{name}": value for name, value in further.items()}))
        memory = growth(pipelines[0], pipelines[-1], "peak_mb", "items")
        print(json.dumps({"extrapolated_peak_mb_at_1e6_items": round(pipelines[-1]["peak_mb"] + memory * (1e6 - pipelines[-1]["items"]))}))
    if len(stores) > 1:
        print(json.dumps({"extrapolated_gb_at_1e7_calls": round(stores[-1]["bytes_per_call"] * 1e7 / 1e9, 1)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[2000, 8000])
    parser.add_argument("--calls", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--texts", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(MEASURES[given.one[0]](int(given.one[1]))))
    else:
        main(given.items, given.calls, given.texts)
